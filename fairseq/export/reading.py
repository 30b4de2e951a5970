"""Models of Hugging Face read from their folders, without the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fairseq.data.encoders.byte_pair import read_json
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export import decoder_in, decoder_names
from fairseq.export.encoder_in import encoder_settings
from fairseq.export.encoder_names import FAMILIES, to_ours
from fairseq.export.encoder_tokenizer import MASK, read_pieces
from fairseq.export.encoder_tokenizers import WORDPIECE_ROLES
from fairseq.export.model_files import read_weights, sound_folder
from fairseq.export.plain_folder import read_json as read_object
from fairseq.files.io import checkpoints_there, require_file, require_text

# What files leave out, as the families define it.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
    "gpt_neox": {
        "hidden_act": "gelu", "max_position_embeddings": 2048, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "layer_norm_eps": 1e-5, "use_parallel_residual": True,
        "tie_word_embeddings": False, "add_cross_attention": False,
    },
    "opt": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "activation_function": "relu", "dropout": 0.1,
        "attention_dropout": 0.0, "tie_word_embeddings": True,
    },
}  # fmt: skip


class ReadModel(NamedTuple):
    """A model of theirs in our terms.

    Attributes:
        state: its weights under our names.
        settings: ours, flat.
        dictionary: what its ids stand for; None if the folder does not tell.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]
    dictionary: Dictionary | None


def read_huggingface(source: Path) -> ReadModel:
    """Read a folder of RoBERTa, BERT, DistilBERT, GPT-2, GPT-NeoX or OPT.

    Raises:
        CheckpointError: if weights are missing or not known, or the folder is damaged.
        MissingFileError: if the folder holds no model.
        UnsupportedError: for other kinds of models.
    """
    with sound_folder(source):
        return _read(source)


def _read(source: Path) -> ReadModel:
    remedy = f"{checkpoints_there(source)}Is this a model folder?"
    path = require_file(source / "config.json", "configuration", remedy)
    described = read_object(path)
    kind = described.get("model_type")
    if kind in FAMILIES:
        tied = bool(described.get("tie_word_embeddings", True))
        state = to_ours(read_weights(source), FAMILIES[kind], tied)
        settings = encoder_settings(described, kind, state)
        return ReadModel(state, settings, _dictionary(source, described, kind))
    if kind not in decoder_names.CAUSAL:
        known = ", ".join([*FAMILIES, *decoder_names.CAUSAL])
        raise UnsupportedError(f"{source}: model_type {kind!r} cannot be read; {known} can")
    described = {**_DEFAULTS[kind], **described}
    if described["tie_word_embeddings"]:  # files need not hold a tied head
        described.setdefault("architectures", [decoder_names.CAUSAL[kind].classes[0]])
    state, settings, tokenizer, dictionary, _ = decoder_in.read(
        source, described, read_weights(source)
    )
    return ReadModel(state, settings, dictionary if tokenizer.vocabulary else None)


def _dictionary(source: Path, described: dict[str, Any], kind: str) -> Dictionary | None:
    """Return the dictionary of an encoder, None without the files of its tokenizer."""
    if kind != "roberta":
        files = ("vocab.txt", "tokenizer.json")
    else:
        files = ("tokenizer.json", "vocab.json")
    if not any((source / name).is_file() for name in files):
        return None
    return _byte_level(source, described) if kind == "roberta" else _word_pieces(source)


def _byte_level(source: Path, described: dict[str, Any]) -> Dictionary:
    """Return the dictionary of a RoBERTa: its ids in decimal.

    Raises:
        UnsupportedError: if the special symbols do not come first, as fairseq's do.
    """
    vocabulary, _ = read_pieces(source)
    roles = {"bos": 0, "pad": 1, "eos": 2}
    special = {role: described.get(f"{role}_token_id", index) for role, index in roles.items()}
    if special != roles:
        raise UnsupportedError(
            f"{source}: the special symbols have the ids {special}; RoBERTa's are 0 to 3"
        )
    dictionary, mask = Dictionary(), vocabulary.get(MASK)
    for index in range(4, max(vocabulary.values()) + 1):
        dictionary.add_symbol(MASK if index == mask else str(index), n=0)
    return dictionary


def _word_pieces(source: Path) -> Dictionary:
    """Return the dictionary of a BERT, with its ids.

    Raises:
        UnsupportedError: if special symbols are missing.
    """
    if (source / "vocab.txt").is_file():
        symbols = require_text(source / "vocab.txt", "vocabulary", "").rstrip("\n").split("\n")
    else:
        vocabulary = read_json(source / "tokenizer.json", "tokenizer")["model"]["vocab"]
        symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    if absent := sorted(set(WORDPIECE_ROLES.values()) - set(symbols)):
        raise UnsupportedError(f"{source}: the vocabulary lacks {', '.join(absent)}")
    return Dictionary.foreign(symbols, **WORDPIECE_ROLES)
