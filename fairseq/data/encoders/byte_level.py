"""A byte-level BPE of one's own, as trained by ``fairseq-bpe train``.

Pieces are written as decimal ids, like those of the GPT-2 encoding. The pieces themselves hold
spaces, line breaks and parts of characters, which neither a text file of words nor a dictionary
file with ``piece count`` on a line can carry; numbers survive both, and no piece can be taken for
``<mask>`` or another special symbol.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.config.schema import FairseqDataclass, option
from fairseq.data.encoders import register_bpe
from fairseq.data.encoders.byte_pair import BytePairEncoder, read_json
from fairseq.errors import ConfigError, DataError, UnsupportedError
from fairseq.files.io import require_file
from fairseq.lazy import require_library

# What a tokenizer.json may say about the parts that would change the pieces.
PLAIN_MODEL = {
    "type": ("BPE",),
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
PLAIN_WORDS = {
    "type": ("ByteLevel",),
    "add_prefix_space": (False,),
    "use_regex": (None, True),
}


@dataclasses.dataclass
class ByteLevelBPEConfig(FairseqDataclass):
    """File of the encoding."""

    byte_level_tokenizer: str | None = option(
        None, help="tokenizer.json written by fairseq-bpe train", path=True
    )


# kind of model -> what reads it here
OTHER_KINDS = {
    "WordPiece": "word pieces are read from their vocab.txt: --bpe wordpiece --wordpiece-vocab "
    "FILE, with --wordpiece-cased or --wordpiece-accents for what it does to text",
    "Unigram": "unigrams are read from their .model file: --bpe sentencepiece "
    "--sentencepiece-model FILE",
}


def _check_plain(
    path: Path, part: str, content: object, accepted: Mapping[str, tuple[Any, ...]], kind: object
) -> None:
    """Raise unless a part of the file is as accepted, naming the way to use such a tokenizer."""
    for key, values in accepted.items():
        value = content.get(key) if isinstance(content, dict) else None
        if value not in values:
            way = OTHER_KINDS.get(str(kind))
            raise UnsupportedError(
                f"{path}: {part}.{key} is {value!r}, expected {values[-1]!r}; only byte-level BPE "
                f"with the words of GPT-2 is read. {f'Instead, {way}. Or' if way else 'Instead,'} "
                f"make one with fairseq-bpe train, or train on pieces that the library makes, "
                f"which no command here can turn back into text: {_by_the_library(path)}"
            )


def _by_the_library(path: Path) -> str:
    """Return a command that encodes a text line by line as its tokenizer does."""
    code = (
        f"import sys; from tokenizers import Tokenizer; t = Tokenizer.from_file({str(path)!r}); "
        "t.no_truncation(); t.no_padding(); [print(*t.encode(line.strip(), "
        "add_special_tokens=False).ids) for line in sys.stdin]"
    )
    return f"python -c {shlex.quote(code)} < train.txt > train.bpe"


def read_tokenizer(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read the vocabulary and the merges of a plain byte-level ``tokenizer.json``.

    Raises:
        DataError: if the file is damaged.
        UnsupportedError: if it describes an encoding of another kind.
    """
    content = read_json(path, "tokenizer")
    if not isinstance(content, dict) or not isinstance(model := content.get("model"), dict):
        raise DataError(f"{path} is no tokenizer.json: it has no 'model'")
    kind = model.get("type")
    _check_plain(path, "model", model, PLAIN_MODEL, kind)
    _check_plain(path, "pre_tokenizer", content.get("pre_tokenizer"), PLAIN_WORDS, kind)
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise DataError(f"{path}: its vocabulary or its merges are missing")
    pairs = []
    for merge in merges:
        # files of before 2024 write a merge as one string
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise DataError(f"{path}: the merge {merge!r} is not a pair of tokens")
        pairs.append((str(pair[0]), str(pair[1])))
    return vocabulary, pairs


def added_tokens(path: Path) -> dict[str, int]:
    """Return the tokens that a ``tokenizer.json`` finds in text before it cuts it, with ids."""
    added = read_json(path, "tokenizer").get("added_tokens") or ()
    return {str(token["content"]): int(token["id"]) for token in added}


@register_bpe("byte_level", dataclass=ByteLevelBPEConfig)
class ByteLevelBPE(BytePairEncoder):
    """The encoding of a ``tokenizer.json``; every string decodes to itself, but for a normalizer.

    Text that holds added tokens, and all text where there is a normalizer, is cut by the library
    ``tokenizers`` itself.

    Attributes:
        added: tokens found in text before it is cut, and their ids.
        normalizes: whether there is a normalizer.

    Raises:
        ConfigError: if no file is named.
        MissingFileError: if the file does not exist.
        DataError: if it is damaged.
        UnsupportedError: if it is not plain byte-level BPE.
    """

    def __init__(self, cfg: ByteLevelBPEConfig) -> None:
        if not cfg.byte_level_tokenizer:
            raise ConfigError(
                "--bpe byte_level needs --byte-level-tokenizer FILE, the tokenizer.json written by "
                "fairseq-bpe train"
            )
        path = require_file(cfg.byte_level_tokenizer, "tokenizer", "Check --byte-level-tokenizer.")
        ids, merges = read_tokenizer(path)
        self.added = added_tokens(path)
        self.normalizes = read_json(path, "tokenizer").get("normalizer") is not None
        super().__init__(cfg, {**ids, **self.added}, merges, str(path))
        self._path, self._whole = path, None
        self._finds = re.compile("|".join(map(re.escape, self.added)) or r"(?!)")

    def whole(self) -> Any:
        """Return the tokenizer of the library ``tokenizers``."""
        if self._whole is None:
            library = require_library("tokenizers", f"what {self._path} does to text")
            whole = library.Tokenizer.from_file(str(self._path))
            whole.no_truncation()  # a file may ask for both, as some of the hub do
            whole.no_padding()
            self._whole = whole
        return self._whole

    def encode(self, x: str) -> str:
        """Return the ids of the pieces of ``x``, in decimal, joined by spaces."""
        if not (self.normalizes or self._finds.search(x)):
            return super().encode(x)
        x = x.encode(errors="replace").decode()
        return " ".join(map(str, self.whole().encode(x, add_special_tokens=False).ids))
