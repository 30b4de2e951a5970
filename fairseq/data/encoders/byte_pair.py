"""Byte-level byte-pair encoding: the engine of the ``gpt2`` and ``byte_level`` encoders.

Text is UTF-8 bytes; a regular expression cuts it into words, each with the space before it; inside
a word the neighbours whose merge was learned first are joined until no learned pair is left. Every
byte is a piece, so every text has an encoding, and the pieces' bytes in a row are the text again.

Source: Sennrich et al. 2016, algorithm 1 (merging); Radford et al. 2019, section 2.2 (bytes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairseq.errors import DataError
from fairseq.files.io import PathLike
from fairseq.lazy import require_library

# GPT-2's cut into words. Contractions, then runs of letters, digits or other signs with at most one
# space before them; the last space of a run of white space belongs to the word that follows.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Bounds of the memory of encoded words: about 30 MB when full.
MAX_CACHED_WORDS = 1 << 17
MAX_CACHED_LENGTH = 32


def byte_alphabet() -> dict[str, int]:
    """Return the visible characters by which vocabulary files write the 256 bytes.

    Printable Latin-1 characters stand for their own code; the other bytes take, in order, the
    characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in sorted(visible)} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


def read_json(path: PathLike, what: str) -> Any:
    """Return the content of the JSON file ``path``.

    Raises:
        DataError: if it is not JSON in UTF-8; ``what`` names its role.
    """
    with open(path, "rb") as handle:
        try:
            return json.loads(handle.read().decode("utf-8-sig"))
        except ValueError as error:  # covers JSONDecodeError and UnicodeDecodeError
            raise DataError(f"{what} {path} is not valid JSON in UTF-8: {error}") from error


class _WordCache(dict[str, str]):
    """Pieces of ``" " + word`` by word, filled on demand and bounded."""

    def __init__(self, encode: Callable[..., Any]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> str:
        pieces = self._encode(" " + word)
        if len(word) <= MAX_CACHED_LENGTH:
            if len(self) >= MAX_CACHED_WORDS:
                # starting anew is simpler than telling old words from new ones, and common words
                # are soon back
                self.clear()
            self[word] = pieces
        return pieces


class BytePairEncoder:
    """Encoder whose pieces are decimal ids of a vocabulary of byte strings.

    Args:
        config: what the subclass was built from; pickling stores only this, so that a worker
            process rebuilds the encoder from its files.
        ids: vocabulary, token in the :func:`byte_alphabet` spelling -> id.
        merges: pairs of tokens, the first learned first.
        where: the files they come from, for messages.

    Raises:
        DataError: if a byte or the product of a merge has no id.
        ConfigError: if the package ``tiktoken`` is missing.
    """

    def __init__(
        self,
        config: Any,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        where: str,
    ) -> None:
        self.config = config
        alphabet = byte_alphabet()
        learned = dict.fromkeys([*alphabet, *map("".join, merges)])
        if missing := next((token for token in learned if token not in ids), None):
            raise DataError(
                f"{where}: the token {missing!r} has no id. Are the vocabulary and the merges of "
                "one and the same tokenizer?"
            )
        # spelled with characters; as Latin-1 code points are the bytes themselves, they turn back
        # at once
        to_latin = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
        spelled = {token: token.translate(to_latin).encode("latin-1") for token in learned}
        self._bytes_of = {
            str(number): spelled.get(token) or token.encode() for token, number in ids.items()
        }
        self._names = [str(ids[token]) for token in learned]
        tiktoken = require_library("tiktoken", f"byte-pair encoding with {where}")
        self._engine = tiktoken.Encoding(
            name=where,
            pat_str=WORDS,
            # tiktoken merges by rank; the bytes come first, then merges in the order they were
            # learned
            mergeable_ranks={piece: rank for rank, piece in enumerate(spelled.values())},
            # none: a text that spells a special symbol is text
            special_tokens={},
        )
        self._cache = _WordCache(self._encode_any)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config,)

    def _encode_any(self, x: str) -> str:
        names = self._names
        return " ".join([names[rank] for rank in self._engine.encode_ordinary(x)])

    def encode(self, x: str) -> str:
        """Return the ids of the pieces of ``x``, in decimal, joined by spaces.

        Every string is accepted; lone surrogates, which UTF-8 cannot hold, become U+FFFD.
        """
        words = x.split()
        # A single space between two words always starts a word of its own, so each " word" can be
        # looked up; other white space takes the full pattern.
        if not words or " ".join(words) != x:
            return self._encode_any(x)
        return " ".join([self._encode_any(words[0]), *map(self._cache.__getitem__, words[1:])])

    def decode(self, x: str) -> str:
        """Return the text of the ids in ``x``.

        A piece that is no id of the vocabulary (``<mask>``, ``<unk>``, ``madeupword0000``) stands
        for itself. Bytes that are not UTF-8, from a cut sequence, become U+FFFD.
        """
        get = self._bytes_of.get
        pieces = [get(piece) or piece.encode(errors="replace") for piece in x.split()]
        # joined first: a character of several bytes may lie in several pieces
        return b"".join(pieces).decode("utf-8", errors="replace")

    def is_beginning_of_word(self, x: str) -> bool:
        """Tell whether the piece ``x`` starts a word; one outside the vocabulary always does."""
        return self._bytes_of.get(x, b" ").startswith(b" ")
