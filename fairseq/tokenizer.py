"""Lines to words at white space, and blocks of lines to running word numbers.

``tokenize_line`` is the public line tokenizer. :class:`WordNumbers` splits a whole block of lines
at once and numbers the words in the order in which they are first seen, so that a text can be read
once, before its dictionary is known; :class:`TextNumbers` does so with several processes.

Shapes: ``numbers_N`` holds the N words and line ends of a block, ``counts_W`` one figure a word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import numpy as np

from fairseq.file_chunker_utils import map_blocks, text_lines
from fairseq.file_io import PathLike

Tokenize = Callable[[str], list[str]]

LINE_END = 0  # the number that stands for the end of a line
_LINE_END_WORD = b"\xff"  # a byte that no UTF-8 text holds
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")
_TO_BLANK = bytes(
    ord(" ") if code < 128 and chr(code).isspace() and chr(code) != "\n" else code
    for code in range(256)
)


def tokenize_line(line: str) -> list[str]:
    """Split a line at runs of Unicode white space (``\\s``, the same that ``str.split`` knows)."""
    return line.split()


def _split_block(block: bytes) -> list[bytes]:
    """Return the words of all lines of a block, ``_LINE_END_WORD`` after those of each line."""
    if not block.isascii():
        block = _WIDE_SPACE.sub(" ", block.decode("utf-8")).encode("utf-8")
    block = block.translate(_TO_BLANK)
    return block.replace(b"\n", b" " + _LINE_END_WORD + b" ").split()


def _tokenize_block(block: bytes, tokenize: Tokenize) -> list[bytes]:
    """Like :func:`_split_block`, with a line tokenizer of the user."""
    words = []
    for line in text_lines(block):
        words += [word.encode("utf-8") for word in tokenize(line)]
        words.append(_LINE_END_WORD)
    return words


class _Numbering(dict[bytes, int]):
    """Gives every new key the next number."""

    def __missing__(self, word: bytes) -> int:
        number = self[word] = len(self)
        return number


class WordNumbers:
    """Numbers the words of one process; the end of a line is number ``LINE_END``.

    Args:
        tokenize: splits a line into words; the default is done for a whole block at once.
    """

    def __init__(self, tokenize: Tokenize = tokenize_line) -> None:
        self._tokenize = tokenize
        self._numbers = _Numbering({_LINE_END_WORD: LINE_END})

    def encode(self, block: bytes) -> tuple[np.ndarray, list[str]]:
        """Return ``numbers_N`` (int32) of a block, and the words it brought, in number order."""
        known = len(self._numbers)
        if self._tokenize is tokenize_line:
            words = _split_block(block)
        else:
            words = _tokenize_block(block, self._tokenize)
        numbers_N = np.fromiter(map(self._numbers.__getitem__, words), np.int32, len(words))
        new = len(self._numbers) - known
        brought = [word for word, _ in zip(reversed(self._numbers), range(new), strict=False)]
        return numbers_N, [word.decode("utf-8") for word in reversed(brought)]

    def encode_for_parent(self, block: bytes) -> tuple[int, np.ndarray, list[str]]:
        """Return the process id, then what :meth:`encode` returns."""
        return os.getpid(), *self.encode(block)


class TextNumbers:
    """The words of texts that several processes read, in one numbering, and their counts.

    Args:
        tokenize: splits a line into words.
        num_workers: processes that read.

    Attributes:
        words: word of each number; that of ``LINE_END`` is empty.
        counts_W: (W,) int64, how often each was seen.
    """

    def __init__(self, tokenize: Tokenize = tokenize_line, num_workers: int = 1) -> None:
        self._tokenize = tokenize
        self._num_workers = num_workers
        self._number_of: dict[str, int] = {}
        self.words: list[str] = [""]
        self.counts_W = np.zeros(1, np.int64)

    def read(
        self, path: PathLike, on_bytes: Callable[[int], None] = lambda count: None
    ) -> Iterator[np.ndarray]:
        """Yield ``numbers_N`` (int32) for the blocks of a text, in the order of the file.

        Args:
            path: the text file.
            on_bytes: told the size of every block that is done.

        Raises:
            DataError: if the file is not UTF-8 text.
            MissingFileError: if it cannot be read.
        """
        encode = WordNumbers(self._tokenize).encode_for_parent
        to_shared: dict[int, np.ndarray] = {}
        for worker, numbers_N, new in map_blocks(path, encode, self._num_workers, on_bytes):
            known_W = to_shared.get(worker, np.full(1, LINE_END, np.int32))
            if new:
                added = np.fromiter(map(self._share, new), np.int32, len(new))
                known_W = np.concatenate([known_W, added])
            to_shared[worker] = known_W
            shared_N = known_W[numbers_N]
            counts_W = np.bincount(shared_N, minlength=len(self.words))
            counts_W[: len(self.counts_W)] += self.counts_W
            self.counts_W = counts_W
            yield shared_N

    def _share(self, word: str) -> int:
        number = self._number_of.setdefault(word, len(self.words))
        if number == len(self.words):
            self.words.append(word)
        return number
