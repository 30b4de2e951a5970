"""Datasets older than the memory-mapped format: ``lazy``, ``cached`` and ``raw``.

``lazy`` and ``cached`` share one pair of files. The index holds, all little-endian: the magic, u64
version 1, u64 dtype code, u64 bytes per token, u64 M, u64 number of sizes; M+1 i64 dimension
offsets, M+1 i64 token offsets, then the sizes as i64. Tokens are stored plus one, which
``fix_lua_indexing`` undoes. ``raw`` is a text file that is encoded when it is opened.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np

from fairseq.data.storage.binary_dataset import (
    DTYPES,
    BinaryDataset,
    BinaryDatasetBuilder,
    check_contiguous,
    damaged,
    index_file_path,
)
from fairseq.errors import DataError
from fairseq.files.io import PathLike
from fairseq.files.text_blocks import Chunker

if TYPE_CHECKING:
    import torch

    from fairseq.data.storage.dictionary import Dictionary

LEGACY_MAGIC = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<8s5Q")
_OFFSET = np.dtype("<i8")


class IndexedDataset(BinaryDataset):
    """Reader of the old binary format; each item is read from the disk when it is asked for.

    Args:
        path: prefix of the two files.
        fix_lua_indexing: subtract the one that the writer added to every token.
    """

    def __init__(self, path: PathLike, fix_lua_indexing: bool = False) -> None:
        self.fix_lua_indexing = fix_lua_indexing
        super().__init__(path)

    def _open(self, check: bool) -> None:
        index, (code, width, count, num_sizes) = self._map(_HEADER, LEGACY_MAGIC)
        name = index_file_path(self.path)
        if code not in DTYPES or DTYPES[code].itemsize != width:
            raise damaged(name, f"dtype code {code} of {width} bytes is unknown")
        if num_sizes != count or len(index) != _HEADER.size + 8 * (2 * (count + 1) + count):
            raise damaged(name, f"{len(index)} bytes do not hold {count} items of one dimension")
        numbers = index[_HEADER.size :].view(_OFFSET)
        # count + 1 places in the list of dimensions, count + 1 places in the data, count sizes
        self._dims, self._starts = numbers[: count + 1], numbers[count + 1 : 2 * (count + 1)]
        self.sizes = numbers[2 * (count + 1) :]
        self._map_tokens(DTYPES[code])
        if check:
            self._check(name)

    def _check(self, name: str) -> None:
        total = check_contiguous(name, self._starts[:-1], self.sizes, unit=1)
        if self._starts[-1] != total or not np.array_equal(self._dims, np.arange(len(self) + 1)):
            raise damaged(name, "its offsets do not follow from its sizes")
        self._check_total(total)

    def _start(self, i: int) -> int:
        return int(self._starts[:-1][i])

    def get_array(self, i: int) -> np.ndarray:
        tokens = super().get_array(i)
        return tokens - 1 if self.fix_lua_indexing else tokens


class IndexedCachedDataset(IndexedDataset):
    """The same, under the name that promises a cache: the page cache of the system is one."""

    supports_prefetch = True

    def prefetch(self, indices: Sequence[int]) -> None:
        """Accept the items that will be asked for; nothing needs to be done."""


class IndexedDatasetBuilder(BinaryDatasetBuilder):
    """Writer of the old binary format, which stores tokens plus one."""

    reader = IndexedDataset
    default_dtype = np.int32
    # its first readers were written in Lua, which counts from one
    token_shift = 1

    def _write_index(self, index: IO[bytes]) -> None:
        header = (1, self.dtype_code, self.dtype.itemsize, self.num_items, self.num_items)
        index.write(_HEADER.pack(LEGACY_MAGIC, *header))
        # in pieces: indices can be as large as memory
        for first in range(0, self.num_items + 1, 1 << 18):
            last = min(first + (1 << 18), self.num_items + 1)
            index.write(np.arange(first, last, dtype=_OFFSET).tobytes())
        total = 0
        index.write(bytes(8))
        for sizes in self.size_blocks():
            index.write((total + np.cumsum(sizes)).astype(_OFFSET).tobytes())
            total += int(sizes.sum())
        for sizes in self.size_blocks():
            index.write(sizes.astype(_OFFSET).tobytes())


class IndexedRawTextDataset:
    """A text file, encoded and held in memory.

    Args:
        path: the text file.
        dictionary: gives the token ids; words it does not know become its unknown symbol.
        append_eos: end each line with the end-of-sentence symbol.
        reverse_order: turn the words of each line around.

    Attributes:
        lines: the text of each line, without its end.
        tokens_list: each line as an IntTensor.
        sizes: (M,) tokens of each line.
    """

    supports_prefetch = False

    def __init__(
        self,
        path: PathLike,
        dictionary: Dictionary,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> None:
        self.append_eos = append_eos
        self.reverse_order = reverse_order
        self.tokens_list: list[torch.Tensor] = []
        self.lines: list[str] = []
        self.read_data(path, dictionary)
        self.sizes = np.array([len(tokens) for tokens in self.tokens_list], dtype=np.int64)

    def read_data(self, path: PathLike, dictionary: Dictionary) -> None:
        """Read and encode the text file ``path``."""
        with Chunker(path) as lines:
            for line in lines:
                self.lines.append(line.strip("\n"))
                self.tokens_list.append(
                    dictionary.encode_line(
                        line,
                        add_if_not_exist=False,
                        append_eos=self.append_eos,
                        reverse_order=self.reverse_order,
                    ).long()
                )

    def __getitem__(self, i: int) -> torch.Tensor:
        """Return line ``i`` as an int64 tensor."""
        return self.tokens_list[i]

    def __len__(self) -> int:
        return len(self.lines)

    def get_array(self, i: int) -> np.ndarray:
        """Return line ``i`` as an int64 array."""
        return self.tokens_list[i].numpy()

    def get_original_text(self, i: int) -> str:
        """Return line ``i`` as it stands in the file."""
        return self.lines[i]

    def size(self, index: int) -> int:
        """Return the number of tokens of line ``index``."""
        return int(self.sizes[index])

    num_tokens = size

    @staticmethod
    def exists(path: PathLike) -> bool:
        """Tell whether the text file exists."""
        return os.path.isfile(path)


def require_dictionary(dictionary: Dictionary | None) -> Dictionary:
    """Return ``dictionary``.

    Raises:
        DataError: if there is none; raw text cannot be read without.
    """
    if dictionary is None:
        raise DataError("raw text needs a dictionary to be encoded; pass one")
    return dictionary
