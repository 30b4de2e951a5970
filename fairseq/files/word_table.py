"""Words to running numbers, a block of text at a time.

The words of a text are numbered in the order in which they are first seen, so that a text can be
read once, before its dictionary is known. Whole blocks are split and looked up with array
operations; Python only sees words that are new, or longer than ``_ShortWords.LONGEST`` bytes.

Shapes: ``numbers_N`` holds the N words and line ends of a block, ``counts_W`` one figure for each
of W words, ``low_N`` and ``high_N`` the first and second eight bytes of N keys.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from typing import NamedTuple, TypeVar

import numpy as np

from fairseq.files.io import PathLike
from fairseq.files.text_blocks import (
    Span,
    Tokenize,
    block_spans,
    chunk_spans,
    map_spans,
    read_block,
    text_lines,
    tokenize_line,
)

Word = TypeVar("Word", str, bytes)

LINE_END = 0  # the number that stands for the end of a line
_LINE_END_WORD = b"\n"
# The UTF-8 forms of all white space beyond ASCII (a test compares them with str.isspace).
_WIDE_SPACE = re.compile(
    rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)|\xe3\x80\x80"
)
_TO_BLANK = bytes(
    ord(" ") if code < 128 and chr(code).isspace() and chr(code) != "\n" else code
    for code in range(256)
)


def _words_apart(block: bytes) -> bytes:
    """Turn white space into blanks, with one before and after each line end and at both ends."""
    if not block.isascii():
        block = _WIDE_SPACE.sub(b" ", block)
    return b" " + block.translate(_TO_BLANK).replace(b"\n", b" \n ")


def _tokenized(block: bytes, tokenize: Tokenize) -> list[bytes]:
    """Return the words of all lines, and their ends, as a line tokenizer of the user sees them."""
    words = []
    for line in text_lines(block):
        # A word that is a line end and nothing else could not be told from the end of the line.
        words += [word.encode("utf-8") for word in tokenize(line) if word != "\n"]
        words.append(_LINE_END_WORD)
    return words


class _Numbering(dict[Word, int]):
    """Gives every new key the next number."""

    def __missing__(self, word: Word) -> int:
        number = self[word] = len(self)
        return number

    def look_up(self, words: list[Word]) -> np.ndarray:
        """Return the numbers of words as int32."""
        return np.fromiter(map(self.__getitem__, words), np.int32, len(words))


class _ShortWords:
    """The numbers of short words, looked up for a whole array of words at once.

    A hash table with open addressing and linear probing. The key of a word is its bytes, filled up
    with zeros, and its length in the last of 16 bytes, so that equal keys mean equal words. A slot
    is a row of four words of eight bytes (one cache miss): key, key, number + 1, nothing.
    """

    LONGEST = 15
    _KEEP_LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(16)], np.uint64)
    _KEEP_HIGH = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], np.uint64)
    _LENGTH = np.array([n << 56 for n in range(16)], np.uint64)
    # odd factors spread keys over the high bits; the first is 2**64 over the golden ratio (Knuth
    # 1973, section 6.4, multiplicative hashing)
    _MIX = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64)

    def __init__(self, bits: int = 12) -> None:
        self._bits = bits
        self._used = 0
        self._rows = np.zeros((1 << bits, 4), np.uint64)

    @classmethod
    def keys(
        cls, text: bytes, starts_N: np.ndarray, lengths_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(low_N, high_N)`` of words of ``text``, which ends 16 bytes after the last."""
        # a window of 16 bytes at every byte of the text, without copying it
        windows = np.ndarray((len(text) - 15,), "V16", text, 0, (1,))
        low_N, high_N = windows[starts_N].view("<u8").reshape(-1, 2).T
        high_N = (high_N & cls._KEEP_HIGH[lengths_N]) | cls._LENGTH[lengths_N]
        return low_N & cls._KEEP_LOW[lengths_N], high_N

    def _slots(self, low_N: np.ndarray, high_N: np.ndarray) -> np.ndarray:
        mixed_N = (low_N * self._MIX[0]) ^ (high_N * self._MIX[1])
        return (mixed_N >> np.uint64(64 - self._bits)).astype(np.intp)

    def find(self, low_N: np.ndarray, high_N: np.ndarray) -> np.ndarray:
        """Return the numbers of the words with these keys as int64, -1 for unknown ones."""
        result_N = np.full(len(low_N), -1, np.int64)
        pending = np.arange(len(low_N))
        slots = self._slots(low_N, high_N)
        while len(pending):
            rows = self._rows.take(slots, axis=0)
            equal = (rows[:, 0] == low_N) & (rows[:, 1] == high_N)
            result_N[pending] = np.where(equal, rows[:, 2].view(np.int64) - 1, -1)
            collided = np.flatnonzero(~equal & (rows[:, 2] != 0))
            pending, low_N, high_N = pending[collided], low_N[collided], high_N[collided]
            slots = (slots[collided] + 1) & (len(self._rows) - 1)
        return result_N

    def add(self, low_N: np.ndarray, high_N: np.ndarray, numbers_N: np.ndarray) -> None:
        """Add words that are not in the table yet, each once."""
        self._make_room(len(numbers_N))
        new_N4 = np.zeros((len(numbers_N), 4), np.uint64)
        new_N4[:, 0], new_N4[:, 1], new_N4[:, 2] = low_N, high_N, numbers_N + 1
        slots = self._slots(low_N, high_N)
        while len(slots):
            free = self._rows[slots, 2] == 0
            # Of several words that want a free slot, the last one written gets it.
            self._rows[slots[free]] = new_N4[free]
            left = np.flatnonzero(self._rows[slots, 2] != new_N4[:, 2])
            new_N4 = new_N4[left]
            slots = (slots[left] + 1) & (len(self._rows) - 1)

    def _make_room(self, count: int) -> None:
        """Keep the table at most half full when ``count`` words come."""
        self._used += count
        while 2 * self._used > 1 << self._bits:
            self._bits += 1
        if 1 << self._bits > len(self._rows):
            grown = _ShortWords(self._bits)
            held = self._rows[self._rows[:, 2] != 0]
            grown.add(held[:, 0], held[:, 1], held[:, 2].view(np.int64) - 1)
            self._rows = grown._rows


class WordNumbers:
    """Numbers the words that one process sees; the end of a line is number ``LINE_END``.

    Args:
        tokenize: splits a line into words; the default is done for a whole block at once.
    """

    def __init__(self, tokenize: Tokenize = tokenize_line) -> None:
        self._tokenize = tokenize
        self._number_of: _Numbering[bytes] = _Numbering({_LINE_END_WORD: LINE_END})
        self._short = _ShortWords()

    def encode(self, block: bytes) -> tuple[np.ndarray, list[str]]:
        """Number the words of a block of lines, each line followed by ``LINE_END``.

        Args:
            block: valid UTF-8 whose lines end in ``\\n`` (as from ``read_block``).

        Returns:
            ``numbers_N`` (int32), and the words that are new, in the order of their numbers.
        """
        known = len(self._number_of)
        if self._tokenize is tokenize_line:
            numbers_N = self._encode_at_once(_words_apart(block))
        else:
            numbers_N = self._number_of.look_up(_tokenized(block, self._tokenize))
        count = len(self._number_of) - known
        # a dictionary keeps the order of its keys: the new ones stand at its end
        newest_first = list(itertools.islice(reversed(self._number_of), count))
        return numbers_N, [word.decode("utf-8") for word in reversed(newest_first)]

    def _encode_at_once(self, text: bytes) -> np.ndarray:
        is_blank = np.frombuffer(text, np.uint8) == ord(" ")
        edges = np.flatnonzero(is_blank[1:] != is_blank[:-1]) + 1
        starts_N, ends_N = edges[0::2], edges[1::2]
        lengths_N = ends_N - starts_N
        is_short = lengths_N <= _ShortWords.LONGEST
        lengths_N = np.minimum(lengths_N, _ShortWords.LONGEST)
        low_N, high_N = _ShortWords.keys(text + bytes(16), starts_N, lengths_N)
        numbers_N = self._short.find(low_N, high_N).astype(np.int32)
        numbers_N[~is_short] = -1
        missed = np.flatnonzero(numbers_N < 0)
        bounds = zip(starts_N[missed].tolist(), ends_N[missed].tolist(), strict=True)
        numbers_N[missed] = self._number_of.look_up([text[start:end] for start, end in bounds])
        missed = missed[is_short[missed]]
        numbers, first = np.unique(numbers_N[missed], return_index=True)
        self._short.add(low_N[missed[first]], high_N[missed[first]], numbers)
        return numbers_N


class _Chunk(NamedTuple):
    """What is known of a part of a text whose words were numbered.

    Attributes:
        worker: the process that numbered it, by its own numbering.
        new: the words that process had not seen before, in the order of their numbers.
        counts_W: how often each of its words occurs.
        block_sizes: words and line ends of each block.
    """

    worker: int
    new: list[str]
    counts_W: np.ndarray
    block_sizes: list[int]


class _NumberChunks:
    """Numbers chunks of a text in one process, and appends the numbers to a file of its own.

    Args:
        path: the text.
        tokenize: splits a line into words.
        folder: where the file of each process goes (int32); None to keep nothing.
    """

    def __init__(self, path: PathLike, tokenize: Tokenize, folder: str | None) -> None:
        self._path = path
        self._words = WordNumbers(tokenize)
        self._folder = folder

    def __call__(self, chunk: Span) -> _Chunk:
        worker = os.getpid()
        known, all_new = np.zeros(1, np.int64), list[str]()
        block_sizes = []
        name = os.devnull if self._folder is None else numbers_file(self._folder, worker)
        with open(name, "ab") as kept:
            for span in block_spans(self._path, *chunk):
                numbers_N, new = self._words.encode(read_block(self._path, span))
                counts_W = np.bincount(numbers_N, minlength=len(known))
                counts_W[: len(known)] += known
                known = counts_W
                all_new += new
                block_sizes.append(len(numbers_N))
                kept.write(numbers_N.tobytes())
        return _Chunk(worker, all_new, known, block_sizes)


def numbers_file(folder: str, worker: int) -> str:
    """Return the name of the file that holds the numbers of the blocks of one process."""
    return os.path.join(folder, f"numbers-{worker}")


class NumberedChunk(NamedTuple):
    """Where the word numbers of a chunk are: its process, and its blocks in that file."""

    worker: int
    first: int
    block_sizes: list[int]


class TextNumbers:
    """The words of a text that several processes read, in one numbering, and their counts.

    Args:
        path: the text.
        tokenize: splits a line into words.
        num_workers: processes that read.
        folder: where the numbers of all words are kept, four bytes each; None to keep nothing.

    Attributes:
        counts_W: (W,) int64, how often each word was seen.
        chunks: the chunks of the text in their order.

    Raises:
        DataError: if the file is not UTF-8 text.
        MissingFileError: if it cannot be read.
    """

    def __init__(
        self,
        path: PathLike,
        tokenize: Tokenize = tokenize_line,
        num_workers: int = 1,
        folder: str | None = None,
    ) -> None:
        self._number_of: _Numbering[str] = _Numbering({_LINE_END_WORD.decode(): LINE_END})
        self._shared_of: dict[int, np.ndarray] = {}
        self.counts_W = np.zeros(1, np.int64)
        self.chunks: list[NumberedChunk] = []
        spans = chunk_spans(path, num_workers)
        number = _NumberChunks(path, tokenize, folder)
        written: Counter[int] = Counter()
        num_workers = min(num_workers, len(spans) // 8 + 1)
        for chunk in map_spans(path, number, spans, num_workers, f"reading {path}"):
            self._add(chunk)
            self.chunks.append(
                NumberedChunk(chunk.worker, written[chunk.worker], chunk.block_sizes)
            )
            written[chunk.worker] += sum(chunk.block_sizes)

    def _add(self, chunk: _Chunk) -> None:
        shared_W = self._shared_of.get(chunk.worker, np.full(1, LINE_END, np.int32))
        shared_W = np.concatenate([shared_W, self._number_of.look_up(chunk.new)])
        self._shared_of[chunk.worker] = shared_W
        counts_W = np.zeros(len(self._number_of), np.int64)
        counts_W[: len(self.counts_W)] = self.counts_W
        counts_W[shared_W[: len(chunk.counts_W)]] += chunk.counts_W
        self.counts_W = counts_W

    @property
    def words(self) -> list[str]:
        """The word of each number; that of ``LINE_END`` is a line end."""
        return list(self._number_of)

    def per_worker(self, values_W: np.ndarray) -> dict[int, np.ndarray]:
        """Return a value for each word, ordered as each process numbered them."""
        return {worker: values_W[shared_W] for worker, shared_W in self._shared_of.items()}
