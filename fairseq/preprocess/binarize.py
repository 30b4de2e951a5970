"""Text files to binary datasets: block by block, in parallel, in the order of the file.

:class:`FileBinarizer` turns a text into a dataset with a binarizer that knows its dictionary.
:class:`NumberedText` reads a text whose dictionary is still to be made from it: the words go to
disk as running numbers, which one table look-up later turns into ids, so that text is split once.

Shapes: ``tokens_N`` is the concatenation of ``sizes_M``, M lines of text; ``numbers_N`` are word
numbers of :mod:`fairseq.files.text_blocks`, ``ids_W`` the id of each of W words.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fairseq.data.storage.binary_dataset import (
    BinaryDatasetBuilder,
    TokenRegion,
    data_file_path,
    index_file_path,
)
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.files.io import PathLike
from fairseq.files.text_blocks import (
    Tokenize,
    map_blocks,
    map_tasks,
    progress,
    text_lines,
    tokenize_line,
)
from fairseq.files.word_table import LINE_END, NumberedChunk, TextNumbers, WordNumbers, numbers_file

if TYPE_CHECKING:
    import torch

    from fairseq.data.storage.dictionary import Dictionary


@dataclass
class BinarizeSummary:
    """What happened to a text.

    Attributes:
        replaced: how often each unknown word was replaced; None if that was not looked at.
        num_seq: lines.
        num_tok: tokens, ends of sentences included.
    """

    replaced: Counter[str] | None = None
    num_seq: int = 0
    num_tok: int = 0

    @property
    def num_replaced(self) -> int:
        """Number of tokens that were replaced by the unknown symbol."""
        return 0 if self.replaced is None else self.replaced.total()

    @property
    def replaced_percent(self) -> float:
        """Share of replaced tokens, in percent."""
        return 100 * self.num_replaced / self.num_tok if self.num_tok else 0.0

    def merge(self, other: BinarizeSummary) -> None:
        """Add the figures of another part of the text."""
        self.num_seq += other.num_seq
        self.num_tok += other.num_tok
        if other.replaced is not None:
            if self.replaced is None:
                self.replaced = Counter()
            self.replaced.update(other.replaced)

    def __str__(self) -> str:
        base = f"{self.num_seq} sents, {self.num_tok} tokens"
        return base if self.replaced is None else f"{base}, {self.replaced_percent:.3}% replaced"


Binarized = tuple[np.ndarray, np.ndarray, BinarizeSummary]


class Binarizer:
    """Base: turns lines into tokens. Subclasses define ``binarize_line``."""

    def binarize_line(self, line: str, summary: BinarizeSummary) -> torch.Tensor:
        """Return the tokens of a line as an IntTensor, and count them in ``summary``."""
        raise NotImplementedError

    def block_function(self) -> Callable[[bytes], Binarized]:
        """Return what each process does with a block: ``(tokens_N, sizes_M, summary)``."""
        return self._binarize_lines

    def _binarize_lines(self, block: bytes) -> Binarized:
        summary = BinarizeSummary()
        items = [np.asarray(self.binarize_line(line, summary)) for line in text_lines(block)]
        sizes_M = np.array([len(item) for item in items], np.int64)
        return np.concatenate(items), sizes_M, summary


class VocabularyDatasetBinarizer(Binarizer):
    """Encodes words with a dictionary.

    Args:
        dict: the dictionary; words it does not know become its unknown symbol.
        tokenize: splits a line into words.
        append_eos: end each line with the end-of-sentence symbol.
        reverse_order: turn the words of each line around.
        already_numberized: the text consists of ids instead of words.
    """

    def __init__(
        self,
        dict: Dictionary,
        tokenize: Tokenize = tokenize_line,
        append_eos: bool = True,
        reverse_order: bool = False,
        already_numberized: bool = False,
    ) -> None:
        self.dict = dict
        self.tokenize = tokenize
        self.append_eos = append_eos
        self.reverse_order = reverse_order
        self.already_numberized = already_numberized

    def binarize_line(self, line: str, summary: BinarizeSummary) -> torch.Tensor:
        import torch

        words = self.tokenize(line)
        if self.reverse_order:
            words = list(reversed(words))
        if self.already_numberized:
            ids = [int(word) for word in words]
        else:
            ids = [self.dict.index(word) for word in words]
            replaced = Counter(
                word
                for word, index in zip(words, ids, strict=True)
                if index == self.dict.unk_index and word != self.dict.unk_word
            )
            summary.merge(BinarizeSummary(replaced))
        ids += [self.dict.eos_index] * self.append_eos
        summary.merge(BinarizeSummary(None, 1, len(ids)))
        return torch.tensor(ids, dtype=torch.int32)

    def block_function(self) -> Callable[[bytes], Binarized]:
        """Return what each process does with a block; vectorised for words in their own order."""
        if self.reverse_order or self.already_numberized:
            return self._binarize_lines
        return _BlockEncoder(self.dict, self.tokenize, self.append_eos)


class _BlockEncoder:
    """Encodes blocks of lines with a dictionary, looking each distinct word up once."""

    def __init__(self, dictionary: Dictionary, tokenize: Tokenize, append_eos: bool) -> None:
        self._dictionary = dictionary
        self._numbers = WordNumbers(tokenize)
        self._append_eos = append_eos
        self._words = [dictionary.eos_word]
        self._ids_W = np.array([dictionary.eos_index], np.int32)

    def __call__(self, block: bytes) -> Binarized:
        numbers_N, new = self._numbers.encode(block)
        if new:
            self._words += new
            self._ids_W = np.concatenate([self._ids_W, ids_of(new, self._dictionary)])
        tokens_N, sizes_M = _to_tokens(numbers_N, self._ids_W, self._append_eos)
        unknown = numbers_N[self._ids_W[numbers_N] == self._dictionary.unk_index]
        replaced: Counter[str] = Counter()
        for number, count in zip(*np.unique(unknown, return_counts=True), strict=True):
            if self._words[number] != self._dictionary.unk_word:
                replaced[self._words[number]] = int(count)
        return tokens_N, sizes_M, BinarizeSummary(replaced, len(sizes_M), len(tokens_N))


def ids_of(words: list[str], dictionary: Dictionary) -> np.ndarray:
    """Return the dictionary ids of words as int32."""
    ids = map(dictionary.indices.get, words, itertools.repeat(dictionary.unk_index))
    return np.fromiter(ids, np.int32, len(words))


def _to_tokens(
    numbers_N: np.ndarray, ids_W: np.ndarray, append_eos: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Turn word numbers into ``(tokens_N, sizes_M)``; ``ids_W[LINE_END]`` ends each line."""
    is_end_N = numbers_N == LINE_END
    sizes_M = np.diff(np.flatnonzero(is_end_N), prepend=-1)
    tokens_N = ids_W[numbers_N]
    return (tokens_N, sizes_M) if append_eos else (tokens_N[~is_end_N], sizes_M - 1)


@dataclass(frozen=True)
class _WriteChunk:
    """Turns a chunk of word numbers into tokens, in the process that runs it.

    Attributes:
        folder: holds the numbers of each process, and the token id of each of its words.
    """

    folder: str

    def __call__(self, task: tuple[NumberedChunk, TokenRegion]) -> np.ndarray:
        """Write the tokens of a chunk into its region; return ``sizes_M`` of its lines."""
        (worker, first, block_sizes), region = task
        ids_W = np.load(_ids_file(self.folder, worker))
        sizes = []
        with open(numbers_file(self.folder, worker), "rb") as numbers, region.open() as write:
            numbers.seek(4 * first)
            for size in block_sizes:
                numbers_N = np.frombuffer(numbers.read(4 * size), np.int32)
                tokens_N, sizes_M = _to_tokens(numbers_N, ids_W, append_eos=True)
                write(tokens_N)
                sizes.append(sizes_M.astype(np.int32))
        return np.concatenate(sizes)


def _ids_file(folder: str, worker: int) -> str:
    return os.path.join(folder, f"ids-{worker}.npy")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def scratch_folder(folder: PathLike) -> tempfile.TemporaryDirectory[str]:
    """Make a folder that is removed at the end, and remove those that killed runs left behind."""
    prefix = f".numbers-{platform.node()}-"
    for name in os.listdir(folder):
        process = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{prefix}{os.getpid()}-")


class NumberedText:
    """A text on its way to a dataset: split into words, its dictionary not yet known.

    Args:
        path: the UTF-8 text.
        folder: where a temporary folder with four bytes a word is kept until the end; None to
            count the words and keep nothing.
        num_workers: processes that read and write.

    Attributes:
        words: its words and their counts.
    """

    def __init__(self, path: PathLike, folder: PathLike | None, num_workers: int = 1) -> None:
        self._path = path
        self._num_workers = num_workers
        self._folder = None if folder is None else scratch_folder(folder)
        kept = None if self._folder is None else self._folder.name
        try:
            self.words = TextNumbers(path, num_workers=num_workers, folder=kept)
        except BaseException:
            self.close()
            raise

    def write(self, dictionary: Dictionary, builder: BinaryDatasetBuilder) -> BinarizeSummary:
        """Encode the text with ``dictionary``, each line ended, and add it to ``builder``."""
        assert self._folder is not None
        words = self.words.words
        ids_W = ids_of(words, dictionary)
        ids_W[LINE_END] = dictionary.eos_index
        for worker, worker_ids_W in self.words.per_worker(ids_W).items():
            np.save(_ids_file(self._folder.name, worker), worker_ids_W)
        max_id = int(ids_W.max())
        chunks = self.words.chunks
        tasks = ((chunk, builder.reserve(sum(chunk.block_sizes), max_id)) for chunk in chunks)
        label = f"writing {os.fspath(self._path)}"
        num_workers = min(self._num_workers, len(chunks) // 8 + 1)
        with progress(label, int(self.words.counts_W.sum())) as show:
            for sizes_M in map_tasks(_WriteChunk(self._folder.name), tasks, num_workers, label):
                builder.add_sizes(sizes_M)
                show(builder.num_tokens)
        replaced = {
            words[number]: int(self.words.counts_W[number])
            for number in np.flatnonzero(ids_W == dictionary.unk_index)
            if words[number] != dictionary.unk_word
        }
        return BinarizeSummary(Counter(replaced), builder.num_items, builder.num_tokens)

    def close(self) -> None:
        """Remove the temporary files."""
        if self._folder is not None:
            self._folder.cleanup()


class FileBinarizer:
    """Binarizes a whole text file."""

    @classmethod
    def multiprocess_dataset(
        cls,
        input_file: PathLike,
        dataset_impl: str,
        binarizer: Binarizer,
        output_prefix: PathLike,
        vocab_size: int | None = None,
        num_workers: int = 1,
    ) -> BinarizeSummary:
        """Write the dataset of a text; its bytes do not depend on the number of workers.

        Args:
            input_file: the UTF-8 text.
            dataset_impl: kind of dataset.
            binarizer: turns its lines into tokens.
            output_prefix: name of the dataset.
            vocab_size: size of the dictionary, which decides the stored dtype.
            num_workers: processes.

        Raises:
            DataError: if the file is not UTF-8 text.
            MissingFileError: if it cannot be read.
        """
        with make_builder(data_file_path(output_prefix), dataset_impl, vocab_size) as builder:
            summary = cls.binarize(input_file, binarizer, builder, num_workers)
            builder.finalize(index_file_path(output_prefix))
        return summary

    @staticmethod
    def binarize(
        input_file: PathLike,
        binarizer: Binarizer,
        builder: BinaryDatasetBuilder,
        num_workers: int = 1,
    ) -> BinarizeSummary:
        """Add the lines of a text to a dataset that is being built."""
        summary = BinarizeSummary()
        function = binarizer.block_function()
        for tokens_N, sizes_M, part in map_blocks(input_file, function, num_workers, "binarizing"):
            builder.add_array(tokens_N, sizes_M)
            summary.merge(part)
        return summary
