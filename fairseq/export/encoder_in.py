"""Models of Hugging Face as checkpoints of ours, compared before the result gets its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import CheckpointError, UnsupportedError
from fairseq.export import decoder_in, encoder_out, encoder_tokenizer
from fairseq.export.decoder_names import CAUSAL
from fairseq.export.encoder_names import ENCODER, FAMILIES, HEAD, to_ours
from fairseq.export.model_files import read_weights, sound_folder, write_ours
from fairseq.export.plain_folder import plain_folder, read_json
from fairseq.files.io import require_file

_OUR_ACTS = {"gelu": "gelu", "gelu_new": "gelu_accurate", "relu": "relu"}


def from_huggingface(
    source: Path, out: Path, sentences: Sequence[str] | None = None, force: bool = False
) -> dict[str, Any]:
    """Import a model folder as ``model.pt``, ``dict.txt`` and the file of its text encoder.

    RoBERTa, BERT and DistilBERT become ``roberta``; GPT-2 and GPT-NeoX ``transformer_lm``.

    Args:
        source: the folder.
        out: the folder to make.
        sentences: on which both models are compared.
        force: replace ``out``.

    Returns:
        ``{"model_type", "head", "sentences", "max_abs_difference"}`` and, of causal language
        models, ``"tokenizer"`` and ``"added_rows"``.

    Raises:
        CheckpointError: if weights are missing, or the imported model differs.
        UnsupportedError: for other kinds of models.
    """
    transformers = encoder_out.require_transformers()
    with sound_folder(source):
        return _convert(transformers, source, out, sentences, force)


def _convert(
    transformers: Any, source: Path, out: Path, sentences: Sequence[str] | None, force: bool
) -> dict[str, Any]:
    """Do the work of :func:`from_huggingface`; a damaged folder may raise anything."""
    described = read_json(
        require_file(source / "config.json", "configuration", "Is this a model folder?")
    )
    kind = described.get("model_type")
    if kind not in (*FAMILIES, *CAUSAL):
        known = ", ".join([*FAMILIES, *CAUSAL])
        raise UnsupportedError(f"{source}: model_type {kind!r} cannot be imported; {known} can")
    sentences = list(sentences or encoder_out.default_sentences())
    if kind in CAUSAL:
        with encoder_out.new_folder(out, force) as folder, plain_folder(source) as clean:
            found = read_weights(source)
            result = decoder_in.convert(transformers, source, clean, folder, out, sentences, found)
            encoder_out.check_difference(result["max_abs_difference"], result["greatest_logit"])
        return result
    state = to_ours(read_weights(source), FAMILIES[kind])
    with encoder_out.new_folder(out, force) as folder:
        settings = encoder_settings(described, kind, state)
        dictionary, encoder = _import_tokenizer(source, folder, out, described, kind)
        dictionary.save(folder / "dict.txt")
        rows = len(state[f"{ENCODER}embed_tokens.weight"])
        if rows < len(dictionary):
            raise CheckpointError(
                f"{source}: the tokenizer has {len(dictionary)} symbols, the table {rows} rows"
            )
        state = {f"{ENCODER}version": torch.tensor([3.0]), **state}
        write_ours(folder, out, state, {**settings, **encoder})
        with plain_folder(source) as clean:
            worst = _compare(transformers, clean, folder, sentences)
        encoder_out.check_difference(worst)
    return {
        "model_type": kind,
        "head": settings["head"],
        "sentences": len(sentences),
        "max_abs_difference": worst,
    }


def _compare(transformers: Any, source: Path, folder: Path, sentences: Sequence[str]) -> float:
    """Return the largest difference of an encoder from what was made of it.

    Raises:
        CheckpointError: if the tokenizers differ.
    """
    hub = encoder_out.load_ours(folder / "model.pt", folder)
    theirs = _load_theirs(transformers, source, hub)
    tokens = encoder_out.our_tokens(hub, sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source))
    for text, row in zip(sentences, tokens, strict=True):
        ids = tokenizer(text)["input_ids"][: len(row)]
        if ids != row.tolist():
            raise CheckpointError(
                f"the imported tokenizer splits {text!r} into {row.tolist()}, the folder's "
                f"into {ids}; nothing was written"
            )
    return encoder_out.largest_difference(hub, theirs, tokens, tokens)


def encoder_settings(described: Mapping[str, Any], kind: str, state: Mapping[str, Tensor]) -> Any:
    """Return our settings of one of their models."""
    act = described.get("hidden_act", described.get("activation", "gelu"))
    if act not in _OUR_ACTS:
        raise UnsupportedError(f"the activation {act!r} is not supported")
    get = described.get
    dropout = get("hidden_dropout_prob", get("dropout", 0.1))
    length = len(state[f"{ENCODER}embed_positions.weight"]) - (2 if kind == "roberta" else 0)
    headless = f"{HEAD}dense.weight" not in state
    return {
        "arch": "roberta",
        "task": "masked_lm",
        "criterion": "sentence_prediction" if headless else "masked_lm",
        "tokens_per_sample": length,
        "encoder_layers": get("num_hidden_layers", get("n_layers")),
        "encoder_embed_dim": get("hidden_size", get("dim")),
        "encoder_ffn_embed_dim": get("intermediate_size", get("hidden_dim")),
        "encoder_attention_heads": get("num_attention_heads", get("n_heads")),
        "activation_fn": _OUR_ACTS[act],
        "dropout": dropout,
        "attention_dropout": get("attention_probs_dropout_prob", get("attention_dropout", 0.1)),
        "layer_norm_eps": get("layer_norm_eps", 1e-12),
        "segments": len(state.get(f"{ENCODER}embed_segments.weight", ())),
        "position_offset": None if kind == "roberta" else 0,
        "max_positions": length,
        "head": "none" if headless else "roberta",
        "untie_weights_roberta": not get("tie_word_embeddings", True),
    }


def _import_tokenizer(
    source: Path, folder: Path, out: Path, described: Mapping[str, Any], kind: str
) -> tuple[Any, dict[str, Any]]:
    """Write the encoder's file; return the dictionary and the encoder's settings, as of ``out``."""
    if kind == "roberta":
        roles = {"bos": 0, "pad": 1, "eos": 2}
        special = {r: described.get(f"{r}_token_id", default) for r, default in roles.items()}
        dictionary, content = encoder_tokenizer.read_byte_level(source, {**special, "unk": 3})
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return dictionary, {"bpe": "byte_level", "byte_level_tokenizer": str(out / path.name)}
    dictionary = encoder_tokenizer.read_wordpiece(source)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{symbol}\n" for symbol in dictionary.symbols), encoding="utf-8")
    settings = source / "tokenizer_config.json"
    told = read_json(settings) if settings.is_file() else {}
    cased = not told.get("do_lower_case", True)
    vocabulary = str(out / path.name)
    return dictionary, {
        "bpe": "wordpiece", "wordpiece_vocab": vocabulary, "wordpiece_cased": cased,
    }  # fmt: skip


def _load_theirs(transformers: Any, source: Path, hub: Any) -> Any:
    """Load their model with or without head, as ours."""
    headless = hub.model.encoder.lm_head is None
    auto = transformers.AutoModel if headless else transformers.AutoModelForMaskedLM
    return auto.from_pretrained(str(source)).eval()
