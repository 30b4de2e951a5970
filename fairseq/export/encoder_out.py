"""Models to Hugging Face, compared before the result gets its name: RoBERTa-like ones here.

Shapes: B sentences of T tokens, V logits, C channels.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.layout import config_of, read_state
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.load import folder_of_dictionary
from fairseq.errors import (
    MissingFileError,
    UnsupportedError,
    install_hint,
)
from fairseq.export import decoder_out, encoder_tokenizer, heads, travelling
from fairseq.export.card import write_card
from fairseq.export.compare import (
    ODD_TEXTS,
    Agreement,
    batches,
    masked,
    nats,
    perplexities,
    same_tokens,
)
from fairseq.export.encoder_names import ENCODER, FAMILIES, HEAD, THEIR_ACTS, to_theirs
from fairseq.export.loaded import Loaded, TheirModel
from fairseq.export.model_files import filled, refuse_operator
from fairseq.files.folders import new_folder
from fairseq.files.io import require_checkpoint
from fairseq.models.base import FairseqLanguageModel
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from fairseq.protocols import Settings, Task

SENTENCES = 100


def require_transformers() -> Any:
    """Import transformers.

    Raises:
        UnsupportedError: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedError(f"this needs transformers: {install_hint('hf')}") from error
    return transformers


def find_data(checkpoint: Path, data: Path | None, flag: str = "--data") -> Path:
    """Return the data folder of a checkpoint: ``data``, its own folder, or as recorded.

    Raises:
        MissingFileError: if none of them holds a dictionary; it says which flag names one.
    """
    if data is not None:
        return data
    state = read_state(checkpoint)
    folder = folder_of_dictionary(checkpoint.parent, state)
    if folder is not None:
        return folder
    recorded = getattr(config_of(state, settle=False).task, "data", None)
    raise MissingFileError(
        f"no dict.txt beside {checkpoint} or in {recorded}; name its folder with {flag}"
    )


class _AnyModel(RobertaModel):
    """Loads encoders and decoders alike, to encode text and to read weights."""

    @classmethod
    def hub_interface(cls, args: Settings, task: Task, models: list[Any]) -> RobertaHubInterface:
        return RobertaHubInterface(args, task, models[0])


def load_ours(checkpoint: Path, data: Path | None, **settings: object) -> Any:
    """Load a checkpoint for use; its data folder is ``data``, its own folder, or as recorded.

    Raises:
        MissingFileError: if the checkpoint or its dictionary is not found.
        UnsupportedError: if it holds a growth operator.
    """
    require_checkpoint(checkpoint, "Give the .pt file.")
    data = find_data(checkpoint, data)
    folder = checkpoint.resolve().parent
    hub = _AnyModel.from_pretrained(str(folder), checkpoint.name, str(data.resolve()), **settings)
    refuse_operator(checkpoint, hub.cfg.model)
    return hub.eval()


def default_sentences() -> list[str]:
    """Return English sentences from the documentation of Python itself."""
    import argparse
    import random
    import statistics
    import textwrap

    unique: dict[str, None] = {}
    for module in (statistics, random, argparse, textwrap, json, contextlib, shutil, inspect, re):
        members = [module, *(getattr(module, name) for name in sorted(dir(module)))]
        for member in members:
            text = " ".join((inspect.getdoc(member) or "").split())
            sentences = re.findall(r"[A-Z][a-z][^.<>=_\[\]{}]{20,150}\.(?= |$)", text)
            unique.update(dict.fromkeys(sentences))
    return list(unique)[:SENTENCES]


# -- what a model says of sentences --------------------------------------------------------------


def our_tokens(hub: Loaded[RobertaModel], sentences: Sequence[str]) -> list[Tensor]:
    """Return the tokens of sentences, cut to what the model takes."""
    limit = min(int(hub.model.max_positions()), 512)
    return [hub.encode(sentence)[:limit] for sentence in sentences]


@torch.inference_mode()
def compare(
    hub: Loaded[RobertaModel],
    theirs: TheirModel,
    tokens: Sequence[Tensor],
    mapped: Sequence[Tensor],
    head: str | None = None,
) -> Agreement:
    """Return how far two models are apart; perplexities are those of tokens that are masked.

    Args:
        hub: our model.
        theirs: a model of Hugging Face.
        tokens: sentences in our ids.
        mapped: the same in theirs.
        head: name of the classification head that is compared instead.
    """
    pad, mask = hub.task.source_dictionary.pad(), hub._mask()
    headless = hub.model.encoder.lm_head is None
    agreement, lost = Agreement(), []

    def said(ours_BT: Tensor, theirs_BT: Tensor, kept_BT: Tensor) -> tuple[Tensor, Tensor]:
        asked = {"classification_head_name": head} if head else {"features_only": headless}
        expected = hub.model(ours_BT, **asked)[0]
        output = theirs(theirs_BT, attention_mask=kept_BT.long())
        return expected, output.last_hidden_state if headless and not head else output.logits

    pairs = zip(batches(tokens, pad), batches(mapped, pad), strict=True)
    for (ours_BT, kept_BT), (theirs_BT, _) in pairs:
        expected, reply = said(ours_BT, theirs_BT, kept_BT)
        if head:
            agreement.add(expected, reply, headless=False)
            continue
        agreement.add(expected[kept_BT], reply[kept_BT], headless)
        if headless:
            continue
        masked_BT, hidden_BT = masked(ours_BT, kept_BT, mask)
        expected, reply = said(masked_BT, theirs_BT.masked_fill(hidden_BT, mask), kept_BT)
        agreement.add(expected[hidden_BT], reply[hidden_BT], headless)
        right_N = ours_BT[hidden_BT]
        has_row_N = right_N < expected.shape[-1]
        both = (expected[hidden_BT][has_row_N], reply[hidden_BT][has_row_N])
        lost.append((nats(both[0], right_N[has_row_N]), nats(both[1], right_N[has_row_N])))
    agreement.perplexities = perplexities(lost)
    return agreement


# -- to Hugging Face -----------------------------------------------------------------------------


def native_family(config: RobertaConfig, headless: bool = False) -> str | None:
    """Return the native class of Hugging Face that computes the same, None if there is none.

    Args:
        config: of our model.
        headless: whether the vocabulary head is left out.
    """
    ordinary = (
        config.head in ("roberta", "none")
        and config.position == "learned"
        and config.mask_embedding == "learned"
        and config.layernorm_embedding
        and not config.scale_embedding
        and config.embedding_multiplier is None
        and not config.encoder_normalize_before
        and config.activation_fn in THEIR_ACTS
    )
    if not ordinary:
        return None
    if config.position_offset is None:
        # the vocabulary head of their RoBERTa always has the exact gelu
        same_head = headless or config.head == "none" or config.activation_fn == "gelu"
        return "roberta" if not config.segments and same_head else None
    if config.position_offset == 0:
        return {0: "distilbert", 2: "bert"}.get(config.segments)
    return None


def to_huggingface(
    checkpoint: Path,
    out: Path,
    data: Path | None = None,
    sentences: Sequence[str] | None = None,
    force: bool = False,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    **settings: object,
) -> dict[str, Any]:
    """Export a checkpoint as a folder of Hugging Face.

    Args:
        checkpoint: the ``.pt`` file.
        out: the folder to make.
        data: folder with ``dict.txt``.
        sentences: on which both models are compared.
        force: replace ``out``.
        head: name of the classification head that goes with an encoder, ``none`` for its
            vocabulary head; by default the head it was fine-tuned with.
        labels: names of the classes; by default those of the label dictionary.
        **settings: override settings of the checkpoint, such as the files of its encoder.

    Returns:
        ``{"class", "remote_code", "extra_rows", "sentences", "max_abs_difference", ...}``; of
        causal language models see :func:`fairseq.export.decoder_out.write`.

    Raises:
        CheckpointError: if the exported model or tokenizer differs.
    """
    transformers = require_transformers()
    hub = load_ours(checkpoint, data, **settings)
    sentences = list(sentences or default_sentences())
    with new_folder(out, force, checkpoint) as folder:
        if isinstance(hub.model, FairseqLanguageModel):
            heads.chosen(hub, head)
            result = decoder_out.write(transformers, hub, folder, sentences)
            headless = hub.model.decoder.output_projection is None
            auto = "AutoModel" if headless else "AutoModelForCausalLM"
        else:
            taken = heads.chosen(hub, head)
            auto, result = write(transformers, hub, folder, sentences, taken, labels)
        write_card(folder, hub, checkpoint, result, auto)
    return result


def write(
    transformers: ModuleType,
    hub: Loaded[RobertaModel],
    folder: Path,
    sentences: Sequence[str],
    head: str | None,
    labels: Sequence[str] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Write an encoder into a folder and compare what was written.

    Args:
        hub: our model with its task and encoder.
        sentences: on which both models are compared, beside odd texts.
        head: the classification head that goes with it, in the place of the vocabulary head.
        labels: names of the classes.

    Returns:
        the class of transformers that loads it, and what :func:`to_huggingface` returns.
    """
    dictionary, mask = hub.task.source_dictionary, hub._mask()
    extra = len(encoder_tokenizer.missing_pieces(hub.bpe, dictionary))
    first_free = max(len(dictionary), mask + 1)
    family = native_family(hub.model.config, head is not None)
    if head and family and not heads.fits(hub, head, family):
        family = None
    headless = hub.model.config.head == "none"
    kind = heads.CLASSIFIER if head else "" if headless else "ForMaskedLM"
    auto = f"AutoModel{kind}"
    told = heads.labels_of(hub, head, labels) if head else {}
    if family:
        model = _native(transformers, hub, family, extra, head, told)
    else:
        settings = {**travelling.encoder_settings(hub, first_free + extra), **told}
        if head:
            settings["pooler_size"] = heads.head_of(hub, head).shape[1]
        model = travelling.build(hub.model.state_dict(), settings, kind or "Model", head)
    model.save_pretrained(str(folder))
    if family is None:
        shutil.copy(Path(__file__).with_name(f"{travelling.FILE}.py"), folder)
    encoder_tokenizer.save_tokenizer(folder, hub, first_free)
    trust = {"trust_remote_code": family is None}
    loaded = getattr(transformers, auto).from_pretrained(str(folder), **trust).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **trust)
    texts = [*sentences, *ODD_TEXTS]
    tokens = our_tokens(hub, texts)
    mapped = same_tokens(tokenizer, texts, tokens, dictionary.unk(), first_free - 1)
    agreement = compare(hub, loaded, tokens, mapped, head)
    agreement.check()
    return auto, {
        "class": type(loaded).__name__,
        "remote_code": family is None,
        "extra_rows": extra,
        "sentences": len(sentences),
        **agreement.facts(),
    }


def _native(
    transformers: ModuleType,
    hub: Loaded[RobertaModel],
    name: str,
    extra: int,
    head: str | None = None,
    told: Mapping[str, object] | None = None,
) -> Any:
    """Return the model as a native class, with ``extra`` more rows that read as unknown.

    ``head`` is the classification head that goes with it, ``told`` what there is to say of it.
    """
    config, dictionary = hub.model.config, hub.task.source_dictionary
    family, state = FAMILIES[name], dict(hub.model.state_dict())
    headless = config.head == "none"
    if head:
        state = {key: value for key, value in state.items() if not key.startswith(HEAD)}
    table = state[f"{ENCODER}embed_tokens.weight"]
    for key in (f"{ENCODER}embed_tokens.weight", f"{HEAD}weight"):
        if key in state:
            unknown = state[key][dictionary.unk()]
            state[key] = torch.cat([state[key], unknown.expand(extra, -1)])
    if f"{HEAD}bias" in state:
        below = state[f"{HEAD}bias"][dictionary.unk()] + decoder_out.BELOW_UNKNOWN
        state[f"{HEAD}bias"] = torch.cat([state[f"{HEAD}bias"], below.expand(extra)])
    renamed = to_theirs(state, family, config.layers())
    if head:
        renamed.update(heads.to_theirs(state, head, name))
    if name == "roberta":
        renamed["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(
            1, config.encoder_embed_dim
        )
    shape = {**_their_config(config, name, len(table) + extra, dictionary), **(told or {})}
    shape["max_position_embeddings"] = len(state[f"{ENCODER}embed_positions.weight"])
    prefix = {"roberta": "Roberta", "bert": "Bert", "distilbert": "DistilBert"}[name]
    their_config = getattr(transformers, f"{prefix}Config")(**shape)
    if head:
        model = getattr(transformers, prefix + heads.CLASSIFIER)(their_config)
    elif headless:
        renamed = {k.removeprefix(family.body): v for k, v in renamed.items()}
        options_ = {} if name == "distilbert" else {"add_pooling_layer": False}
        model = getattr(transformers, f"{prefix}Model")(their_config, **options_)
    else:
        model = getattr(transformers, f"{prefix}ForMaskedLM")(their_config)
    return filled(model, renamed)


def _their_config(
    config: RobertaConfig, name: str, rows: int, dictionary: Dictionary
) -> dict[str, Any]:
    """Return the settings of a native class."""
    ids = {f"{role}_token_id": getattr(dictionary, role)() for role in ("bos", "pad", "eos")}
    if name == "distilbert":
        return {
            "vocab_size": rows,
            "dim": config.encoder_embed_dim,
            "n_layers": config.layers(),
            "n_heads": config.encoder_attention_heads,
            "hidden_dim": config.encoder_ffn_embed_dim,
            "activation": THEIR_ACTS[config.activation_fn],
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "tie_weights_": True,
            "pad_token_id": dictionary.pad(),
        }
    return {
        "vocab_size": rows,
        "hidden_size": config.encoder_embed_dim,
        "num_hidden_layers": config.layers(),
        "num_attention_heads": config.encoder_attention_heads,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "hidden_act": THEIR_ACTS[config.activation_fn],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.layer_norm_eps,
        "type_vocab_size": config.segments or 1,
        "tie_word_embeddings": not config.untie_weights_roberta,
        **(ids if name == "roberta" else {"pad_token_id": dictionary.pad()}),
    }
