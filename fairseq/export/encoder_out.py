"""Models to Hugging Face, compared before the result gets its name: RoBERTa-like ones here.

Shapes: B sentences of T tokens, V logits, C channels.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.layout import config_of, upgrade_state
from fairseq.errors import (
    CheckpointError,
    DataError,
    MissingFileError,
    UnsupportedError,
    install_hint,
)
from fairseq.export import decoder_out, encoder_tokenizer
from fairseq.export.card import write_card
from fairseq.export.encoder_names import ENCODER, FAMILIES, HEAD, to_theirs
from fairseq.files.io import require_file
from fairseq.files.safe_load import safe_load
from fairseq.models.base import FairseqLanguageModel

TOLERANCE = 1e-5
SENTENCES = 100
_ACTS = {"gelu": "gelu", "gelu_fast": "gelu_new", "gelu_accurate": "gelu_new", "relu": "relu"}
REMOTE = "modeling_fairseq_roberta"


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


@contextlib.contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes ``out`` at the end, and vanishes after an error.

    Raises:
        DataError: if ``out`` exists and is not to be replaced.
    """
    if out.exists() and not force:
        raise DataError(f"{out} exists; choose another --out, or give --force to replace it")
    temporary = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def find_data(checkpoint: Path, data: Path | None) -> Path:
    """Return the data folder of a checkpoint: ``data``, its own folder, or as recorded.

    Raises:
        MissingFileError: if none of them holds a dictionary.
    """
    if data is not None:
        return data
    recorded = getattr(config_of(upgrade_state(safe_load(checkpoint))).task, "data", None)
    for folder in (checkpoint.parent, Path(str(recorded).split(":")[0])):
        if (folder / "dict.txt").is_file():
            return folder
    raise MissingFileError(
        f"no dict.txt beside {checkpoint} or in {recorded}; name its folder with --data"
    )


def load_ours(checkpoint: Path, data: Path | None, **settings: Any) -> Any:
    """Load a checkpoint for use; its data folder is ``data``, its own folder, or as recorded.

    Raises:
        MissingFileError: if the checkpoint or its dictionary is not found.
    """
    from fairseq.models.roberta import RobertaModel

    require_file(checkpoint, "checkpoint", "Give the .pt file.")
    data = find_data(checkpoint, data)
    folder = checkpoint.resolve().parent
    return RobertaModel.from_pretrained(
        str(folder), checkpoint.name, str(data.resolve()), **settings
    ).eval()


def default_sentences() -> list[str]:
    """Return English sentences from the documentation of Python itself."""
    import argparse
    import random
    import statistics
    import textwrap

    found: dict[str, None] = {}
    for module in (statistics, random, argparse, textwrap, json, contextlib, shutil, inspect, re):
        members = [module, *(getattr(module, name) for name in sorted(dir(module)))]
        for member in members:
            text = " ".join((inspect.getdoc(member) or "").split())
            sentences = re.findall(r"[A-Z][a-z][^.<>=_\[\]{}]{20,150}\.(?= |$)", text)
            found.update(dict.fromkeys(sentences))
    return list(found)[:SENTENCES]


# -- what a model says of sentences --------------------------------------------------------------


def our_tokens(hub: Any, sentences: Sequence[str]) -> list[Tensor]:
    """Return the tokens of sentences, cut to what the model takes."""
    limit = min(int(hub.model.max_positions()), 512)
    return [hub.encode(sentence)[:limit] for sentence in sentences]


def _batches(tokens: Sequence[Tensor], pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield padded batches, and where their tokens are."""
    for first in range(0, len(tokens), 10):
        rows = list(tokens[first : first + 10])
        tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        yield tokens_BT, tokens_BT != pad


@torch.inference_mode()
def largest_difference(
    hub: Any, theirs: Any, tokens: Sequence[Tensor], mapped: Sequence[Tensor]
) -> float:
    """Return the greatest absolute difference of logits, or of features where there is no head.

    Args:
        hub: our model.
        theirs: a model of Hugging Face.
        tokens: sentences in our ids.
        mapped: the same in theirs.
    """
    worst = 0.0
    pad = hub.task.source_dictionary.pad()
    has_head = hub.model.encoder.lm_head is not None
    for (ours_BT, kept_BT), (theirs_BT, _) in zip(
        _batches(tokens, pad), _batches(mapped, pad), strict=True
    ):
        expected = hub.model(ours_BT, features_only=not has_head)[0]
        output = theirs(theirs_BT, attention_mask=kept_BT.long())
        found = output.logits if has_head else output.last_hidden_state
        found = found[..., : expected.shape[-1]]
        worst = max(worst, float((found - expected)[kept_BT].abs().max()))
    return worst


def check_difference(worst: float, greatest: float = 1.0) -> None:
    """Raise if two models differ.

    Args:
        worst: their greatest absolute difference.
        greatest: the greatest absolute logit; above 1 rounding errors grow with it.

    Raises:
        CheckpointError: if they do.
    """
    allowed = TOLERANCE * max(1.0, greatest)
    if not worst <= allowed:
        raise CheckpointError(
            f"the converted model differs by {worst:.2e} (at most {allowed:.0e} is allowed); "
            "nothing was written"
        )


# -- to Hugging Face -----------------------------------------------------------------------------


def native_family(config: Any) -> str | None:
    """Return the native class of Hugging Face that computes the same, None if there is none.

    Raises:
        UnsupportedError: for what no class can express, ours included.
    """
    for name in ("embedding_multiplier", "alibi_slopes"):
        if getattr(config, name) is not None:
            raise UnsupportedError(f"{name} of an encoder is not known to Hugging Face's models")
    plain = (
        config.head in ("roberta", "none")
        and config.position == "learned"
        and config.mask_embedding == "learned"
        and config.layernorm_embedding
        and not config.scale_embedding
        and not config.encoder_normalize_before
        and config.activation_fn in _ACTS
    )
    if not plain:
        return None
    if config.position_offset is None:
        return "roberta" if not config.segments else None
    if config.position_offset == 0:
        return {0: "distilbert", 2: "bert"}.get(config.segments)
    return None


def to_huggingface(
    checkpoint: Path,
    out: Path,
    data: Path | None = None,
    sentences: Sequence[str] | None = None,
    force: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Export a checkpoint as a folder of Hugging Face.

    Args:
        checkpoint: the ``.pt`` file.
        out: the folder to make.
        data: folder with ``dict.txt``.
        sentences: on which both models are compared.
        force: replace ``out``.
        **settings: override settings of the checkpoint, such as the files of its encoder.

    Returns:
        ``{"class", "remote_code", "sentences", "max_abs_difference"}``; of causal language models
        see :func:`fairseq.export.decoder_out.write`.

    Raises:
        CheckpointError: if the exported model or tokenizer differs.
    """
    transformers = require_transformers()
    hub = load_ours(checkpoint, data, **settings)
    sentences = list(sentences or default_sentences())
    if isinstance(hub.model, FairseqLanguageModel):
        with new_folder(out, force) as folder:
            result = decoder_out.write(transformers, hub, folder, sentences)
            check_difference(result["max_abs_difference"], result["greatest_logit"])
            headless = result["class"] in ("GPT2Model", "GPTNeoXModel")
            auto = "AutoModel" if headless else "AutoModelForCausalLM"
            write_card(folder, hub, checkpoint, result, auto)
        return result
    with new_folder(out, force) as folder:
        family = native_family(hub.model.config)
        dictionary, mask = hub.task.source_dictionary, hub._mask()
        extra = encoder_tokenizer.missing_pieces(hub.bpe, dictionary)
        first_free = max(len(dictionary), mask + 1)
        longest = int(hub.model.max_positions())
        model = _native(transformers, hub, family, len(extra)) if family else _remote(hub)
        model.save_pretrained(str(folder))
        if family is None:
            shutil.copy(Path(__file__).with_name(f"{REMOTE}.py"), folder)
        encoder_tokenizer.save_tokenizer(folder, hub.bpe, dictionary, mask, first_free, longest)
        tokens = our_tokens(hub, sentences)
        loaded, mapped = _reload(transformers, hub, folder, family, sentences, tokens)
        worst = largest_difference(hub, loaded, tokens, mapped)
        check_difference(worst)
        result = {
            "class": type(loaded).__name__,
            "remote_code": family is None,
            "sentences": len(sentences),
            "max_abs_difference": worst,
        }
        auto = "AutoModel" if hub.model.config.head == "none" else "AutoModelForMaskedLM"
        write_card(folder, hub, checkpoint, result, auto)
    return result


def _reload(
    transformers: Any,
    hub: Any,
    folder: Path,
    family: str | None,
    sentences: Sequence[str],
    tokens: Sequence[Tensor],
) -> tuple[Any, list[Tensor]]:
    """Load what was written; return the model and the tokens its own tokenizer gives."""
    headless = hub.model.encoder.lm_head is None
    auto = transformers.AutoModel if headless else transformers.AutoModelForMaskedLM
    loaded = auto.from_pretrained(str(folder), trust_remote_code=family is None).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(folder), trust_remote_code=family is None
    )
    mapped = [
        torch.tensor(tokenizer(text)["input_ids"])[: len(row)]
        for text, row in zip(sentences, tokens, strict=True)
    ]
    dictionary = hub.task.source_dictionary
    last = max(len(dictionary) - 1, hub._mask())
    for text, ours, theirs in zip(sentences, tokens, mapped, strict=True):
        seen = theirs.masked_fill(theirs > last, dictionary.unk())
        if not torch.equal(seen, ours):
            raise CheckpointError(
                f"the exported tokenizer splits {text!r} into {theirs.tolist()}, the checkpoint's "
                f"into {ours.tolist()}; nothing was written"
            )
    return loaded, mapped


def _native(transformers: Any, hub: Any, name: str, extra: int) -> Any:
    """Return the model as a native class, with ``extra`` more rows that read as unknown."""
    config, dictionary = hub.model.config, hub.task.source_dictionary
    family, state = FAMILIES[name], dict(hub.model.state_dict())
    headless = config.head == "none"
    table = state[f"{ENCODER}embed_tokens.weight"]
    for key in (f"{ENCODER}embed_tokens.weight", f"{HEAD}weight"):
        if key in state:
            unknown = state[key][dictionary.unk()]
            state[key] = torch.cat([state[key], unknown.expand(extra, -1)])
    if f"{HEAD}bias" in state:
        never = torch.full((extra,), -1e4)
        state[f"{HEAD}bias"] = torch.cat([state[f"{HEAD}bias"], never])
    renamed = to_theirs(state, family, config.layers())
    if name == "roberta":
        renamed["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(
            1, config.encoder_embed_dim
        )
    shape = _their_config(config, name, len(table) + extra, dictionary)
    shape["max_position_embeddings"] = len(state[f"{ENCODER}embed_positions.weight"])
    prefix = {"roberta": "Roberta", "bert": "Bert", "distilbert": "DistilBert"}[name]
    their_config = getattr(transformers, f"{prefix}Config")(**shape)
    if headless:
        renamed = {k.removeprefix(family.body): v for k, v in renamed.items()}
        options_ = {} if name == "distilbert" else {"add_pooling_layer": False}
        model = getattr(transformers, f"{prefix}Model")(their_config, **options_)
    else:
        model = getattr(transformers, f"{prefix}ForMaskedLM")(their_config)
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    if lost := [key for key in missing if "position_ids" not in key] + list(unexpected):
        raise CheckpointError(f"{type(model).__name__} and the checkpoint differ: {lost[:5]}")
    return model.eval()


def _their_config(config: Any, name: str, rows: int, dictionary: Any) -> dict[str, Any]:
    """Return the settings of a native class."""
    ids = {f"{role}_token_id": getattr(dictionary, role)() for role in ("bos", "pad", "eos")}
    if name == "distilbert":
        return {
            "vocab_size": rows,
            "dim": config.encoder_embed_dim,
            "n_layers": config.layers(),
            "n_heads": config.encoder_attention_heads,
            "hidden_dim": config.encoder_ffn_embed_dim,
            "activation": _ACTS[config.activation_fn],
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
        "hidden_act": _ACTS[config.activation_fn],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.layer_norm_eps,
        "type_vocab_size": config.segments or 1,
        "tie_word_embeddings": not config.untie_weights_roberta,
        **(ids if name == "roberta" else {"pad_token_id": dictionary.pad()}),
    }


def _remote(hub: Any) -> Any:
    """Return the model as the class whose file travels with it."""
    from fairseq.export import modeling_fairseq_roberta as remote

    config, dictionary = hub.model.config, hub.task.source_dictionary
    classes = {
        "AutoConfig": "FairseqRobertaConfig",
        "AutoModel": "FairseqRobertaModel",
        "AutoModelForMaskedLM": "FairseqRobertaForMaskedLM",
    }
    their_config = remote.FairseqRobertaConfig(
        vocab_size=len(dictionary),
        hidden_size=config.encoder_embed_dim,
        num_hidden_layers=config.layers(),
        num_attention_heads=config.encoder_attention_heads,
        intermediate_size=config.encoder_ffn_embed_dim,
        activation_fn=config.activation_fn,
        max_positions=config.max_positions,
        normalize_before=config.encoder_normalize_before,
        untied=config.untie_weights_roberta,
        mask_id=hub._mask(),
        auto_map={auto: f"{REMOTE}.{name}" for auto, name in classes.items()},
        **{f"{r}_token_id": getattr(dictionary, r)() for r in ("bos", "pad", "eos", "unk")},
        **{
            name: getattr(config, name)
            for name in (
                "position", "position_offset", "head", "clap_normalize", "clap_normalize_hidden",
                "mask_embedding", "scale_embedding", "layernorm_embedding", "segments",
                "layer_norm_eps",
            )
        },
    )  # fmt: skip
    headless = config.head == "none"
    state = {}
    for key, value in hub.model.state_dict().items():
        name = key.replace(ENCODER, "" if headless else "encoder.").replace(".self_attn.", ".")
        name = name.replace(HEAD, "head_")
        tied = key == f"{HEAD}weight" and not config.untie_weights_roberta
        if not (tied or key.endswith(".version") or key.startswith("classification_heads.")):
            state[name] = value.clone()
    model: Any = (remote.FairseqRobertaModel if headless else remote.FairseqRobertaForMaskedLM)(
        their_config
    )
    model.load_state_dict(state)
    return model.eval()
