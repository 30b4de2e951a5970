"""Heads that classify sentences: ours is that of RoBERTa, and BERT's pooler with its classifier.

All are a hidden layer on the first token and a linear map; names and activations differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export.loaded import Loaded
from fairseq.models.roberta.model import RobertaModel
from fairseq.models.transformer_lm.model import TransformerLanguageModel
from fairseq.modules.heads import ClassificationHead

NAME = "sentence_classification_head"
PREFIX = "classification_heads."
CLASSIFIER = "ForSequenceClassification"
# family -> hidden layer, output layer, activation between them
PARTS = {
    "roberta": ("classifier.dense", "classifier.out_proj", "tanh"),
    "bert": ("bert.pooler.dense", "classifier", "tanh"),
    "distilbert": ("pre_classifier", "classifier", "relu"),
}
# Weights that no model here needs: poolers of models without a classifier, next-sentence heads.
UNUSED = ("pooler.", "cls.seq_relationship.", "position_ids", "embeddings.token_type_ids")


def chosen(
    hub: Loaded[RobertaModel] | Loaded[TransformerLanguageModel], asked: str | None
) -> str | None:
    """Return the name of the classification head that an export takes along.

    Args:
        hub: the model with its task.
        asked: the name; ``none`` for the vocabulary head. By default the head that the checkpoint
            was fine-tuned with.

    Raises:
        UnsupportedError: if there is no such head.
    """
    there = list(getattr(hub.model, "classification_heads", ()))
    trained_head = getattr(hub.task.cfg, "classification_head_name", None)
    if asked == "none" or (asked is None and trained_head not in there):
        return None
    name = trained_head if asked is None else asked
    if name not in there:
        raise UnsupportedError(
            f"there is no classification head '{name}'; the checkpoint has: "
            f"{', '.join(there) or 'none'}"
        )
    return name


def head_of(hub: Loaded[RobertaModel], name: str) -> ClassificationHead:
    """Return a classification head by its name."""
    return cast("ClassificationHead", hub.model.classification_head(name))


def fits(hub: Loaded[RobertaModel], head: str, family: str) -> bool:
    """Tell whether a family of theirs has a head that computes the same."""
    config, shape = hub.model.config, head_of(hub, head).shape
    act = config.pooler_activation_fn
    width = config.encoder_embed_dim
    return config.pooling == "cls" and shape[1:] == (width, width) and act == PARTS[family][2]


def labels_of(hub: Loaded[RobertaModel], head: str, labels: Sequence[str] | None) -> dict[str, Any]:
    """Return what a configuration of theirs says of the labels.

    Args:
        hub: the model with its task.
        head: name of its head.
        labels: their names; by default those of the label dictionary.
    """
    classes = head_of(hub, head).out_proj.out_features
    regression = bool(getattr(hub.task.cfg, "regression_target", False))
    dictionary = getattr(hub.task, "_label_dictionary", None)
    if labels is None and dictionary is not None:
        labels = dictionary.symbols[dictionary.nspecial :]
    known = dict(enumerate(labels or ()))
    names = [known.get(place, f"LABEL_{place}") for place in range(classes)]
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: place for place, name in enumerate(names)},
        "problem_type": "regression" if regression else "single_label_classification",
        "classifier_dropout": hub.model.config.pooler_dropout,
    }


def _names(head: str, family: str) -> list[tuple[str, str]]:
    """Return our name and theirs of each weight of a head."""
    parts = zip(("dense", "out_proj"), PARTS[family][:2], strict=True)
    return [
        (f"{PREFIX}{head}.{ours}.{kind}", f"{their_name}.{kind}")
        for ours, their_name in parts
        for kind in ("weight", "bias")
    ]


def to_theirs(state: Mapping[str, Tensor], head: str, family: str) -> dict[str, Tensor]:
    """Return the weights of a head under the names of a family."""
    return {their_name: state[ours] for ours, their_name in _names(head, family)}


def to_ours(weights: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Return the weights of their classifier as our head."""
    return {ours: weights[their_name] for ours, their_name in _names(NAME, family)}


def of_model(described: Mapping[str, Any], weights: Mapping[str, Tensor], family: str) -> bool:
    """Tell whether a model of theirs classifies sentences.

    Raises:
        UnsupportedError: naming a head that has no place here.
    """
    named = (described.get("architectures") or [""])[0]
    if named.endswith(CLASSIFIER):
        return True
    output = PARTS[family][1]
    others = sorted(
        {
            key.rsplit(".", 1)[0]
            for key in weights
            if key.startswith((output, "qa_outputs", "score"))
        }
    )
    if others:
        raise UnsupportedError(
            f"{named or family} has the head {', '.join(others)}, which has no place here: "
            "vocabulary heads and classifiers of sentences can be imported"
        )
    return False


def our_settings(described: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return our settings of a model of theirs that classifies sentences.

    Raises:
        UnsupportedError: if each of its labels is a question of its own.
    """
    if described.get("problem_type") == "multi_label_classification":
        raise UnsupportedError(
            "a classifier with several labels for a sentence (multi_label_classification) has no "
            "place here: sentence_prediction gives each sentence one class"
        )
    dropout = described.get("classifier_dropout", described.get("seq_classif_dropout"))
    classes = len(described.get("id2label") or ()) or described.get("num_labels", 2)
    return {
        "task": "sentence_prediction",
        "criterion": "sentence_prediction",
        "classification_head_name": NAME,
        "num_classes": classes,
        "regression_target": described.get("problem_type") == "regression" or classes == 1,
        "pooler_activation_fn": PARTS[family][2],
        "pooler_dropout": described.get("hidden_dropout_prob", 0.1) if dropout is None else dropout,
    }


def write_dictionaries(folder: Path, dictionary: Dictionary, described: Mapping[str, Any]) -> None:
    """Write the dictionaries that the task of sentence prediction reads.

    Raises:
        UnsupportedError: if two labels have one name, or one has a blank in it.
    """
    for name in ("input0", "label"):
        (folder / name).mkdir()
    dictionary.save(folder / "input0" / "dict.txt")
    told = {int(place): str(name) for place, name in (described.get("id2label") or {}).items()}
    names = [told[place] for place in sorted(told)] or ["LABEL_0", "LABEL_1"]
    names = ["_".join(name.split()) for name in names]
    if len(set(names)) < len(names):
        raise UnsupportedError(f"labels that are named alike cannot be imported: {names}")
    labels = Dictionary()
    for name in names:
        labels.add_symbol(name, n=0)
    labels.save(folder / "label" / "dict.txt")
