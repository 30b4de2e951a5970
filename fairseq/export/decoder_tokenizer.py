"""Tokenizers and dictionaries of causal language models, to Hugging Face and from it.

GPT-2 and GPT-NeoX have no symbols for padding and for the unknown, which a dictionary needs. They
get ids that the table has but the tokenizer does not use or, where there are none, ids after the
last one; so every other id is the same on both sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.data.encoders import TextEncoder
from fairseq.data.encoders.byte_level import (
    PLAIN_MODEL,
    PLAIN_WORDS,
    ByteLevelBPE,
    ByteLevelBPEConfig,
)
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, FairseqError
from fairseq.export.encoder_tokenizer import ROLES, plain_content, plain_tokenizer, read_pieces

# Symbols that an import adds after the vocabulary; an export leaves them out.
_ADDED = re.compile(r"<fairseq:(?:bos|pad|eos|unk)>")
_NATIVE = ["<s>", "<pad>", "</s>", "<unk>"]


class FoundTokenizer(NamedTuple):
    """What a folder says of text.

    Attributes:
        kind: ``byte_level``, ``words``, or why there is no encoder for it here.
        vocabulary: token -> id.
        merges: pairs of tokens.
        unknown: the token that stands for unknown ones.
        kept: more of its ``tokenizer.json``: the normalizer, and tokens found before text is cut.
    """

    kind: str
    vocabulary: dict[str, int]
    merges: list[list[str]]
    unknown: str | None = None
    kept: Mapping[str, Any] = {}


def rows_kept(dictionary: Dictionary) -> int:
    """Return how many of the symbols an export keeps: all but those that an import added."""
    rows = len(dictionary)
    while rows and _ADDED.fullmatch(dictionary.symbols[rows - 1]):
        rows -= 1
    return rows


# -- reading -------------------------------------------------------------------------------------


def find_tokenizer(folder: Path) -> FoundTokenizer:
    """Read the tokenizer of a folder; one that cannot be had here is named, not refused."""
    pair = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not (folder / "tokenizer.json").is_file():
        if not pair:
            return FoundTokenizer("none: the folder has no tokenizer.json", {}, [])
        return FoundTokenizer("byte_level", *read_pieces(folder), unknown=_unknown(folder))
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, words = content["model"], content.get("pre_tokenizer") or {}
    vocabulary, merges = read_pieces(folder)
    unknown = model.get("unk_token") or _unknown(folder)
    if model.get("type") == "WordLevel" and words.get("type") == "WhitespaceSplit":
        return FoundTokenizer("words", vocabulary, merges, unknown)
    known_model = all(model.get(key) in values for key, values in PLAIN_MODEL.items())
    if not known_model or not all(words.get(key) in values for key, values in PLAIN_WORDS.items()):
        reason = f"none: {model.get('type')} with {words.get('type')} is not known here"
        return FoundTokenizer(reason, vocabulary, merges, unknown)
    kept = {name: content.get(name) for name in ("normalizer", "added_tokens")}
    return FoundTokenizer("byte_level", vocabulary, merges, unknown, kept)


def _unknown(folder: Path) -> str | None:
    """Return the unknown token that the settings of a tokenizer name."""
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    token = told.get("unk_token")
    return token.get("content") if isinstance(token, Mapping) else token


def make_dictionary(
    tokenizer: FoundTokenizer, described: Mapping[str, object], rows: int
) -> Dictionary:
    """Return the dictionary of a model of theirs; its first ids are theirs.

    Args:
        tokenizer: its tokenizer.
        described: its ``config.json``.
        rows: rows of its embedding table; the dictionary may have more.

    Raises:
        CheckpointError: if the tokenizer has ids that the table has not.
    """
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    if names and max(names) >= rows:
        raise CheckpointError(f"the tokenizer has the id {max(names)}, the table {rows} rows")
    ids = _roles(tokenizer, described, rows)
    symbols = [
        names.get(index, f"madeupword{index:04d}") if tokenizer.kind == "words" else str(index)
        for index in range(rows)
    ]
    new = {index: role for role, index in ids.items() if index >= rows}
    symbols += [f"<fairseq:{new[index]}>" for index in sorted(new)]
    for role, index in ids.items():
        if index < rows:
            free = f"<{role}>" if f"<{role}>" not in tokenizer.vocabulary else f"<{role}:{index}>"
            symbols[index] = names.get(index, free)
    words = {role: symbols[index] for role, index in ids.items()}
    native = [ids[role] for role in ("pad", "eos", "unk")] == [1, 2, 3] and ids["bos"] in (0, 2)
    if native and [names.get(index) for index in range(4)] == _NATIVE:
        # their bos is what texts begin with, which may be </s>
        dictionary = Dictionary()
        for symbol in symbols[4:]:
            dictionary.add_symbol(symbol, n=0)
    else:
        dictionary = Dictionary.foreign(symbols, **words)
    if len(dictionary) != len(symbols):
        raise CheckpointError("the tokenizer names two ids alike, which a dictionary cannot")
    return dictionary


def _roles(tokenizer: FoundTokenizer, described: Mapping[str, object], rows: int) -> dict[str, int]:
    """Return the ids of the special symbols: named by a folder, spare or new."""
    ids: dict[str, int] = {}
    for role in ("bos", "eos", "pad"):
        told = described.get(f"{role}_token_id")
        index = told[0] if isinstance(told, list) and told else told
        if isinstance(index, int) and 0 <= index < rows:
            ids[role] = index
    ends = {ids.get("bos"), ids.get("eos")}
    if ids.get("pad") in ends:  # what ends a text cannot stand for nothing as well
        ids.pop("pad", None)
    if tokenizer.unknown in tokenizer.vocabulary:
        unknown = tokenizer.vocabulary[tokenizer.unknown]
        if unknown not in {*ends, ids.get("pad")}:
            ids["unk"] = unknown
    if (
        "unk" not in ids and tokenizer.vocabulary.get(_NATIVE[3]) == 3
    ):  # OPT has it, but does not say so
        ids["unk"] = 3
    free = max(tokenizer.vocabulary.values(), default=rows) + 1
    spare = [index for index in range(free, rows) if index not in ids.values()]
    ids.setdefault("eos", ids.get("bos", rows))
    ids.setdefault("bos", ids["eos"])
    new = max(rows, ids["eos"] + 1)
    for role in ("pad", "unk"):
        if role not in ids:
            ids[role] = spare.pop() if spare else new
            new += ids[role] == new
    return ids


def save_encoder(
    folder: Path, out: Path, tokenizer: FoundTokenizer, dictionary: Dictionary
) -> dict[str, Any]:
    """Write the file of our encoder; return its settings and, as ``tokenizer``, how text is split.

    A tokenizer that our encoder cannot be made of is left out, and the reason returned.

    Args:
        folder: where.
        out: what the folder will be called; the settings name the file there.
        tokenizer: the tokenizer.
        dictionary: the ids.
    """
    if tokenizer.kind != "byte_level":
        return {"tokenizer": tokenizer.kind}
    roles = {getattr(dictionary, f"{role}_word") for role in ROLES}
    path = folder / "tokenizer.json"
    content = plain_content(tokenizer.vocabulary, tokenizer.merges, tokenizer.kept, roles)
    text = json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    try:
        ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(path)))
    except FairseqError as error:
        path.unlink()
        return {"tokenizer": f"none: {error}"}
    settings = {"bpe": "byte_level", "byte_level_tokenizer": str(out / path.name)}
    return {**settings, "tokenizer": tokenizer.kind}


# -- writing -------------------------------------------------------------------------------------


def save_tokenizer(
    folder: Path,
    bpe: TextEncoder | None,
    dictionary: Dictionary,
    first: str | None,
    longest: int,
    after: int,
) -> None:
    """Write the tokenizer of a causal language model into a folder.

    Args:
        folder: where.
        bpe: the encoder; None if words are separated by blanks.
        dictionary: the ids.
        first: symbol that texts begin with, None for none; it is their ``bos_token``.
        longest: longest input.
        after: the id of the first piece that the dictionary lacks.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    kept = rows_kept(dictionary)
    symbols = {symbol: index for index, symbol in enumerate(dictionary.symbols[:kept])}
    tokenizer = plain_tokenizer(bpe, symbols, dictionary, after)
    front = f"{first} " if first else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{front}$A",
        pair=f"{front}$A $B",
        special_tokens=[(first, dictionary.index(first))] if first else [],
    )
    words = {their_role: getattr(dictionary, f"{role}_word") for role, their_role in ROLES.items()}
    special = {word for word in words.values() if word in symbols}
    tokenizer.add_special_tokens(sorted(special, key=symbols.__getitem__))
    if first is not None:
        words["bos_token"] = first
    names = {their_role: word for their_role, word in words.items() if word in symbols}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, **names)
    fast.save_pretrained(str(folder))
