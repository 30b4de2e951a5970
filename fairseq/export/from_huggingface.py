"""Encoders of Hugging Face as checkpoints of ours, compared before the result gets its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq import options
from fairseq.checkpoint_files import write_checkpoint
from fairseq.checkpoint_state import OURS, original_cfg, our_record
from fairseq.errors import CheckpointError, UnsupportedError
from fairseq.export import huggingface, tokenizer_files
from fairseq.export.weight_names import ENCODER, FAMILIES, HEAD, to_ours
from fairseq.file_io import require_file
from fairseq.safe_load import safe_load

_OUR_ACTS = {"gelu": "gelu", "gelu_new": "gelu_accurate", "relu": "relu"}


def from_huggingface(
    source: Path, out: Path, sentences: Sequence[str] | None = None, force: bool = False
) -> dict[str, Any]:
    """Import a RoBERTa, BERT or DistilBERT folder as ``model.pt``, ``dict.txt`` and its encoder.

    Args:
        source: the folder.
        out: the folder to make.
        sentences: on which both models are compared.
        force: replace ``out``.

    Returns:
        ``{"model_type", "head", "sentences", "max_abs_difference"}``.

    Raises:
        CheckpointError: if weights are missing, or the imported model differs.
        UnsupportedError: for other kinds of models.
    """
    transformers = huggingface.require_transformers()
    described = json.loads(
        require_file(source / "config.json", "configuration", "Is this a model folder?").read_text()
    )
    kind = described.get("model_type")
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"{source}: model_type {kind!r} cannot be imported; {', '.join(FAMILIES)} can"
        )
    state = to_ours(read_weights(source), FAMILIES[kind])
    sentences = list(sentences or huggingface.default_sentences())
    with huggingface.new_folder(out, force) as folder:
        settings = _our_settings(described, kind, state)
        dictionary, encoder = _import_tokenizer(source, folder, described, kind)
        dictionary.save(folder / "dict.txt")
        rows = len(state[f"{ENCODER}embed_tokens.weight"])
        if rows < len(dictionary):
            raise CheckpointError(
                f"{source}: the tokenizer has {len(dictionary)} symbols, the table {rows} rows"
            )
        _write_ours(folder, state, {**settings, **encoder})
        hub = huggingface.load_ours(folder / "model.pt", folder)
        theirs = _load_theirs(transformers, source, hub)
        tokens = huggingface.our_tokens(hub, sentences)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(source))
        for text, row in zip(sentences, tokens, strict=True):
            ids = tokenizer(text)["input_ids"][: len(row)]
            if ids != row.tolist():
                raise CheckpointError(
                    f"the imported tokenizer splits {text!r} into {row.tolist()}, the folder's "
                    f"into {ids}; nothing was written"
                )
        worst = huggingface.largest_difference(hub, theirs, tokens, tokens)
        huggingface.check_difference(worst)
    return {
        "model_type": kind,
        "head": settings["head"],
        "sentences": len(sentences),
        "max_abs_difference": worst,
    }


def read_weights(source: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors`` or, with the safe loader, ``pytorch_model.bin``, as fp32."""
    if (source / "model.safetensors").is_file():
        from safetensors.torch import load_file

        found = load_file(str(source / "model.safetensors"))
    else:
        remedy = "Expected model.safetensors or pytorch_model.bin."
        found = safe_load(require_file(source / "pytorch_model.bin", "weights", remedy))
    return {k: v.float() for k, v in found.items() if torch.is_tensor(v)}


def _our_settings(described: Mapping[str, Any], kind: str, state: Mapping[str, Tensor]) -> Any:
    """Return our settings of one of their models."""
    act = described.get("hidden_act", described.get("activation", "gelu"))
    if act not in _OUR_ACTS:
        raise UnsupportedError(f"the activation {act!r} is not supported")
    get = described.get
    dropout = get("hidden_dropout_prob", get("dropout", 0.1))
    return {
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
        "max_positions": len(state[f"{ENCODER}embed_positions.weight"])
        - (2 if kind == "roberta" else 0),
        "head": "roberta" if f"{HEAD}dense.weight" in state else "none",
        "untie_weights_roberta": not get("tie_word_embeddings", True),
    }


def _import_tokenizer(
    source: Path, folder: Path, described: Mapping[str, Any], kind: str
) -> tuple[Any, dict[str, Any]]:
    """Write the encoder's file; return the dictionary and the settings of the encoder."""
    if kind == "roberta":
        roles = {"bos": 0, "pad": 1, "eos": 2}
        special = {r: described.get(f"{r}_token_id", default) for r, default in roles.items()}
        dictionary, content = tokenizer_files.read_byte_level(source, {**special, "unk": 3})
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return dictionary, {"bpe": "byte_level", "byte_level_tokenizer": str(path)}
    dictionary = tokenizer_files.read_wordpiece(source)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{symbol}\n" for symbol in dictionary.symbols), encoding="utf-8")
    settings = source / "tokenizer_config.json"
    told = json.loads(settings.read_text()) if settings.is_file() else {}
    cased = not told.get("do_lower_case", True)
    return dictionary, {
        "bpe": "wordpiece", "wordpiece_vocab": str(path), "wordpiece_cased": cased,
    }  # fmt: skip


def _write_ours(folder: Path, state: Mapping[str, Tensor], settings: dict[str, Any]) -> None:
    """Write ``model.pt`` of a model without a training history."""
    length = settings["max_positions"]
    config = options.make_config(
        {
            "arch": "roberta", "task": "masked_lm", "criterion": "masked_lm", "data": str(folder),
            "tokens_per_sample": length, **settings,
            **({"criterion": "sentence_prediction"} if settings["head"] == "none" else {}),
        }
    )  # fmt: skip
    checkpoint: dict[str, Any] = {
        "args": None,
        "cfg": original_cfg(config),
        "model": {f"{ENCODER}version": torch.tensor([3.0]), **state},
        "criterion": None,
        "optimizer_history": [],
        "task_state": {},
        "extra_state": {OURS: our_record(config, {})},
        "last_optimizer_state": None,
    }
    write_checkpoint(checkpoint, str(folder / "model.pt"), {"imported": True})


def _load_theirs(transformers: Any, source: Path, hub: Any) -> Any:
    """Load their model with or without head, as ours."""
    headless = hub.model.encoder.lm_head is None
    auto = transformers.AutoModel if headless else transformers.AutoModelForMaskedLM
    return auto.from_pretrained(str(source)).eval()
