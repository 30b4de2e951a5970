"""A vocabulary head for a model that was trained without one: its own input embeddings.

Contrastive weight tying trains hidden states against the input embeddings alone, so that
``logits = hidden E^T`` needs no training. The loss is least where the score of a token is
``log p(token | context) - log q(token)``, q being how often the token is a negative; the logarithm
of the unigram probabilities as a bias takes the second term back.

Shapes: V vocabulary, C channels.

Source: Godey et al. 2023 (headless language models), section 3; the bias is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq import utils
from fairseq.checkpoint.layout import config_of, derived_record, read_state
from fairseq.config import options
from fairseq.config.build import plain
from fairseq.config.sections import FairseqConfig
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.dictionary_record import compare_with_record
from fairseq.data.storage.load import load_indexed_dataset
from fairseq.errors import CheckpointError, DataError, UnsupportedError
from fairseq.export.decoder_names import BIAS, OUTPUT, TABLE
from fairseq.export.encoder_names import ENCODER, HEAD
from fairseq.export.encoder_out import find_data
from fairseq.export.model_files import refuse_operator, write_model
from fairseq.files.folders import refuse_existing
from fairseq.files.io import require_checkpoint
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig
from fairseq.protocols import Settings, StateDict


def add_head(
    checkpoint: Path,
    out: Path,
    mode: str,
    data: Path | None = None,
    log_unigram_bias: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint whose vocabulary head is the input embeddings, without training history.

    ``transformer_lm`` gets ``--head vocabulary``; a copy also takes in the linear map and the
    temperature of the training, if any. ``roberta`` gets ``--head clap`` with beta 1 and without
    normalisation, which is the same projection; it is always tied and has no bias.

    Args:
        checkpoint: the ``.pt`` file of a model with ``--head none``.
        out: the file to write.
        mode: ``tied`` to the embeddings, or a ``copy`` of them.
        data: folder with ``dict.txt`` and the training data, for the bias; several joined with
            ``:``.
        log_unigram_bias: add the bias of :func:`unigram_bias`.
        force: replace ``out``.

    Returns:
        ``{"model", "head", "bias"}``.

    Raises:
        DataError: if ``out`` exists, the dictionary holds no counts, or the data are not there.
        UnsupportedError: for models that have a head, or that cannot have this one.
    """
    require_checkpoint(checkpoint, "Give the .pt file.")
    refuse_existing(out, force)
    state = read_state(checkpoint)
    config = config_of(state)
    refuse_operator(checkpoint, config.model)
    if getattr(config.model, "head", None) != "none":
        raise UnsupportedError(f"{checkpoint}: only models with --head none can be given a head")
    weights, change = dict(state["model"]), _change_of(config.criterion, state.get("criterion"))
    if mode == "tied" and change is not None:
        raise UnsupportedError(
            f"{checkpoint} was trained with a projection or a temperature, which tied embeddings "
            "cannot hold: use --add-head copy"
        )
    if getattr(config.task, "output_dictionary_size", -1) >= 0:
        raise UnsupportedError(
            f"{checkpoint} was trained with --output-dictionary-size: a head of all its embeddings "
            "has more rows than that"
        )
    if hasattr(config.model, "decoder_embed_dim"):
        settings = _add_to_decoder(config.model, weights, mode, change)
    else:
        settings = _add_to_encoder(weights, mode, log_unigram_bias)
    if log_unigram_bias:
        folders = _data_folders(checkpoint, data, str(config.task.data))
        dictionary = Dictionary.load(str(folders[0] / "dict.txt"))
        compare_with_record(str(checkpoint), state, dictionary)
        bias_V = unigram_bias(dictionary, len(weights[TABLE]), lines_of(folders))
        weights[BIAS] = bias_V.to(weights[TABLE].dtype)
        settings["head_bias"] = True
    criteria = {"language_modeling": "cross_entropy", "masked_lm": "masked_lm"}
    if (task := getattr(config.task, "_name", None)) in criteria:
        settings["criterion"] = criteria[task]
    settled = _settled(config, settings)
    if settled.model.head != settings["head"]:
        raise UnsupportedError(f"the criterion of task {task} leaves no room for a head")
    record = derived_record(state, str(checkpoint), "add_head")
    write_model(out, weights, settled, {"added_head": mode}, record)
    return {"model": config.model._name, "head": mode, "bias": log_unigram_bias}


def _settled(config: FairseqConfig, settings: dict[str, Any]) -> FairseqConfig:
    """Return a configuration with other settings; those of a loss that is replaced are gone."""
    sections = {name: values for name, values in plain(config).items() if values is not None}
    if "criterion" in settings:
        sections.pop("criterion", None)
    return options.make_config(settings, sections, strict=False)


def _change_of(criterion: Settings, trained: StateDict | None) -> Tensor | None:
    """Return what multiplies the embeddings in the scores of the training, (C, C) or a scalar.

    Scores are ``(W h) E^T / temperature``, which is ``h (E W / temperature)^T``.

    Args:
        criterion: the settings of contrastive weight tying, or of any other loss.
        trained: the state of the criterion, which holds W.

    Returns:
        None if they are ``h E^T``.

    Raises:
        UnsupportedError: if directions alone were compared: no linear head does.
    """
    if getattr(criterion, "contrastive_normalize", False):
        raise UnsupportedError("--contrastive-normalize compares directions; no linear head does")
    temperature = float(getattr(criterion, "contrastive_temperature", 1.0))
    projection_CC = (trained or {}).get("projection.weight")
    if projection_CC is None:
        return None if temperature == 1 else torch.tensor(1 / temperature)
    return projection_CC.float() / temperature


def _add_to_decoder(
    config: TransformerLanguageModelConfig,
    weights: dict[str, Tensor],
    mode: str,
    change: Tensor | None,
) -> dict[str, Any]:
    """Add the output layer to the weights of a decoder; return the settings that change."""
    if TABLE not in weights:
        raise UnsupportedError("adaptive input has several embedding tables, a head needs one")
    if config.decoder_input_dim != config.decoder_output_dim:
        raise UnsupportedError(
            f"embeddings of width {config.decoder_input_dim} do not fit hidden states of width "
            f"{config.decoder_output_dim}"
        )
    output_VC = weights[TABLE].clone()
    if change is not None:
        changed_VC = output_VC.float() @ change if change.dim() else output_VC.float() * change
        output_VC = changed_VC.to(output_VC.dtype)
    weights[OUTPUT] = output_VC
    return {"head": "vocabulary", "share_decoder_input_output_embed": mode == "tied"}


def _add_to_encoder(weights: dict[str, Tensor], mode: str, bias: bool) -> dict[str, Any]:
    """Add the CLAP head to the weights of an encoder; return the settings that change."""
    if mode != "tied" or bias:
        raise UnsupportedError(
            "the head of roberta that is hidden E^T is --head clap, which is tied and has no bias: "
            "use --add-head tied without --log-unigram-bias"
        )
    table_VC = weights[f"{ENCODER}embed_tokens.weight"]
    weights[f"{HEAD}weight"] = table_VC.clone()
    weights[f"{HEAD}beta"] = torch.ones((), dtype=table_VC.dtype)
    return {
        "head": "clap",
        "clap_initial_beta": 1.0,
        "clap_normalize": False,
        "clap_normalize_hidden": False,
    }


def _data_folders(checkpoint: Path, data: Path | None, recorded: str) -> list[Path]:
    """Return the folders of the training data, of which the first holds the dictionary."""
    if data is not None:
        return [Path(folder) for folder in utils.split_paths(str(data))]
    first = find_data(checkpoint, None)
    shards = [Path(folder) for folder in utils.split_paths(recorded)]
    return shards if first == shards[0] else [first]


def lines_of(folders: Sequence[Path]) -> int:
    """Return how many lines the training data have; each has its end-of-sentence.

    Raises:
        DataError: if they are not there.
    """
    lines = 0
    for folder in folders:
        data = load_indexed_dataset(str(folder / "train"))
        if data is None:
            raise DataError(
                f"{folder} has no train.bin, and the dictionary does not count </s>: name the "
                "folder of the training data with --data (shards are joined with ':')"
            )
        lines += len(data)
    return lines


def unigram_bias(dictionary: Dictionary, rows: int, lines: int = 0) -> Tensor:
    """Return ``log((count + 1) / sum of (count + 1))`` of every symbol, fp32 of shape (V,).

    A ``dict.txt`` holds no counts of the special symbols that stand first; but for end-of-sentence
    they count as once.

    Args:
        dictionary: with the counts of the training data.
        rows: V; symbols that only round the size are added or dropped.
        lines: how often end-of-sentence occurs in them.

    Raises:
        CheckpointError: if the dictionary is not that of the model.
        DataError: if it holds no counts.
    """
    fitted = dictionary if len(dictionary) == rows else dictionary.resized(rows)
    if fitted is None:
        raise CheckpointError(
            f"the dictionary has {len(dictionary)} entries, the embedding table {rows} rows: name "
            "the folder of the model's own dict.txt with --data"
        )
    if not fitted.is_counted():
        raise DataError("the dictionary holds no counts: --log-unigram-bias needs those of a text")
    counts_V = torch.tensor(fitted.count, dtype=torch.float64) + 1
    if fitted.nspecial:
        counts_V[fitted.eos()] += lines
    return (counts_V / counts_V.sum()).log().float()
