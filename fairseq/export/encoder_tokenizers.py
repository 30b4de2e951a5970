"""Tokenizers of encoders of Hugging Face as dictionaries and text encoders of ours.

What a tokenizer does to text is kept, or named in an error; nothing of it is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.data.encoders.byte_level import PLAIN_MODEL, PLAIN_WORDS
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export.encoder_tokenizer import MASK, plain_content
from fairseq.export.loaded import TheirTokenizer

Content = Mapping[str, Any]
WORDPIECE_ROLES = {
    "bos": "[CLS]", "pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]",
}  # fmt: skip
_NAMES = ("cls_token", "pad_token", "eos_token", "unk_token", "mask_token")


def content_of(tokenizer: object, source: Path) -> dict[str, Any]:
    """Return what a loaded tokenizer does, as the content of a ``tokenizer.json``.

    Returns:
        the content, with its added tokens apart: ``special`` are those that have a role.

    Raises:
        UnsupportedError: if it is written in Python.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(f"{source}: {type(tokenizer).__name__} has no tokenizer.json")
    content: dict[str, Any] = json.loads(backend.to_str())
    roles = {str(getattr(tokenizer, name)) for name in (*_NAMES, "bos_token", "sep_token")}
    added = content.get("added_tokens") or []
    content["special"] = {t["content"]: t for t in added if t["content"] in roles}
    content["added"] = [t for t in added if t["content"] not in roles]
    return content


def _ids(tokenizer: TheirTokenizer, source: Path) -> list[str]:
    """Return the token of each id.

    Raises:
        UnsupportedError: if the special symbols do not come first, as fairseq's do.
    """
    vocabulary = tokenizer.get_vocab()
    names = {index: token for token, index in vocabulary.items()}
    first = [names.get(index) for index in range(4)]
    eos = tokenizer.sep_token or tokenizer.eos_token
    expected = [tokenizer.cls_token or tokenizer.bos_token, tokenizer.pad_token, eos,
                tokenizer.unk_token]  # fmt: skip
    if first != expected:
        raise UnsupportedError(
            f"{source}: the first ids are {first}; those of fairseq's dictionaries are "
            f"{expected}, and other orders cannot be imported"
        )
    return [names.get(index, f"madeupword{index}") for index in range(max(names) + 1)]


def read_byte_level(
    content: Content, tokenizer: TheirTokenizer, source: Path
) -> tuple[Dictionary, dict[str, Any]]:
    """Return the dictionary, and the ``tokenizer.json`` of ``--bpe byte_level``.

    The numbers of the pieces are the ids themselves.

    Raises:
        UnsupportedError: naming what ``byte_level`` does not do.
    """
    model, words = content["model"], content.get("pre_tokenizer") or {}
    for part, stated, known in (
        ("model", model, PLAIN_MODEL),
        ("pre_tokenizer", words, PLAIN_WORDS),
    ):
        for name, values in known.items():
            if stated.get(name) not in values:
                raise UnsupportedError(
                    f"{source}: the tokenizer's {part}.{name} is {stated.get(name)!r}; byte_level "
                    f"has {values[-1]!r}"
                )
    names = _ids(tokenizer, source)
    dictionary = Dictionary()
    for index in range(4, len(names)):
        dictionary.add_symbol(MASK if names[index] == tokenizer.mask_token else str(index), n=0)
    merges = [m.split(" ") if isinstance(m, str) else list(m) for m in model.get("merges", [])]
    kept = {"normalizer": content.get("normalizer"), "added_tokens": content["added"]}
    vocabulary = {name: index for index, name in enumerate(names)}
    return dictionary, plain_content(vocabulary, merges, kept, list(content["special"]))


def read_wordpiece(
    content: Content, tokenizer: TheirTokenizer, source: Path
) -> tuple[Dictionary, dict[str, Any]]:
    """Return the dictionary of a BERT, with its ids, and the settings of ``--bpe wordpiece``.

    Raises:
        UnsupportedError: naming what ``wordpiece`` does not do.
    """
    model, normalizer = content["model"], content.get("normalizer") or {"type": None}
    words = (content.get("pre_tokenizer") or {}).get("type")
    expected = {
        "model.type": (model.get("type"), "WordPiece"),
        "model.unk_token": (model.get("unk_token"), "[UNK]"),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix"), "##"),
        "model.max_input_chars_per_word": (model.get("max_input_chars_per_word"), 100),
        "normalizer.type": (normalizer["type"], "BertNormalizer"),
        "normalizer.clean_text": (normalizer.get("clean_text"), True),
        "pre_tokenizer.type": (words, "BertPreTokenizer"),
    }
    for name, (stated, known) in expected.items():
        if stated != known:
            raise UnsupportedError(
                f"{source}: the tokenizer's {name} is {stated!r}; wordpiece has {known!r}"
            )
    if content["added"]:
        raise UnsupportedError(
            f"{source}: the tokenizer finds {content['added'][0]['content']!r} in text before it "
            f"cuts it ({len(content['added'])} added tokens); wordpiece cannot"
        )
    vocabulary = tokenizer.get_vocab()
    symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    if absent := sorted(set(WORDPIECE_ROLES.values()) - set(symbols)):
        raise UnsupportedError(f"{source}: the vocabulary lacks {', '.join(absent)}")
    accents = {None: "auto", False: "keep", True: "strip"}[normalizer.get("strip_accents")]
    return Dictionary.foreign(symbols, **WORDPIECE_ROLES), {
        "wordpiece_cased": not normalizer.get("lowercase"),
        "wordpiece_accents": accents,
        "wordpiece_chinese": bool(normalizer.get("handle_chinese_chars")),
    }


def read_unigram(content: Content, tokenizer: TheirTokenizer, source: Path) -> Dictionary:
    """Return the dictionary of an encoder with a unigram model of SentencePiece.

    Raises:
        UnsupportedError: naming what ``sentencepiece`` does not do.
    """
    if content["added"]:
        added = ", ".join(repr(token["content"]) for token in content["added"][:3])
        raise UnsupportedError(
            f"{source}: the tokenizer finds {added} in text before it cuts it; sentencepiece cannot"
        )
    names = _ids(tokenizer, source)
    dictionary = Dictionary()
    for name in names[4:]:
        dictionary.add_symbol(MASK if name == tokenizer.mask_token else name, n=0)
    if len(dictionary) != len(names):
        raise UnsupportedError(f"{source}: the tokenizer names two ids alike")
    return dictionary
