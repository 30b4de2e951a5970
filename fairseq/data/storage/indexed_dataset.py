"""Binarized corpora: the memory-mapped format, and the choice between it and the older ones.

A ``.idx`` file holds, all little-endian: the magic, u64 version 1, u8 dtype code, u64 M; the M item
sizes in tokens as i32, and the M starts in bytes as i64. The ``.bin`` file holds the tokens of all
items, one after the other, without anything in between.
"""

from __future__ import annotations

import struct
from typing import IO, Any

import numpy as np

from fairseq.data.storage.binary_dataset import (
    DTYPES,
    BinaryDataset,
    BinaryDatasetBuilder,
    check_contiguous,
    damaged,
    data_file_path,
    index_file_path,
)
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.old_formats import (
    LEGACY_MAGIC,
    IndexedCachedDataset,
    IndexedDataset,
    IndexedDatasetBuilder,
    IndexedRawTextDataset,
    require_dictionary,
)
from fairseq.errors import UnsupportedError, check_choice
from fairseq.files.io import PathLike

__all__ = [
    "IndexedCachedDataset",
    "IndexedDataset",
    "IndexedDatasetBuilder",
    "IndexedRawTextDataset",
    "MMapIndexedDataset",
    "MMapIndexedDatasetBuilder",
    "best_fitting_int_dtype",
    "data_file_path",
    "dataset_exists",
    "get_available_dataset_impl",
    "index_file_path",
    "infer_dataset_impl",
    "make_builder",
    "make_dataset",
]

AnyDataset = BinaryDataset | IndexedRawTextDataset

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQ")
_SIZE = np.dtype("<i4")
_START = np.dtype("<i8")
_IMPLS = ["raw", "lazy", "cached", "mmap"]
_REFUSED_IMPLS = ["fasta", "huffman"]


class MMapIndexedDataset(BinaryDataset):
    """Reader of the memory-mapped format.

    Args:
        path: prefix of the two files.
    """

    def _open(self, check: bool) -> None:
        index, (code, count) = self._map(_HEADER, MAGIC)
        name = index_file_path(self.path)
        if code not in DTYPES:
            raise damaged(name, f"dtype code {code} is unknown")
        if len(index) != _HEADER.size + (_SIZE.itemsize + _START.itemsize) * count:
            raise damaged(name, f"{len(index)} bytes do not hold {count} items")
        starts_at = _HEADER.size + _SIZE.itemsize * count
        self.sizes = index[_HEADER.size : starts_at].view(_SIZE)
        self._starts = index[starts_at:].view(_START)
        self._map_tokens(DTYPES[code])
        if check:
            itemsize = self.flat.itemsize
            self._check_total(check_contiguous(name, self._starts, self.sizes, itemsize))

    def _start(self, i: int) -> int:
        return int(self._starts[i]) // self.flat.itemsize


class MMapIndexedDatasetBuilder(BinaryDatasetBuilder):
    """Writer of the memory-mapped format."""

    reader = MMapIndexedDataset
    max_size = int(np.iinfo(_SIZE).max)

    def _write_index(self, index: IO[bytes]) -> None:
        index.write(_HEADER.pack(MAGIC, 1, self.dtype_code, self.num_items))
        for sizes in self.size_blocks():
            index.write(sizes.astype(_SIZE).tobytes())
        total = 0
        for sizes in self.size_blocks():
            starts = total + np.cumsum(sizes) - sizes
            index.write((starts * self.dtype.itemsize).astype(_START).tobytes())
            total += int(sizes.sum())


def best_fitting_int_dtype(max_int_to_represent: int | None) -> type[np.integer[Any]]:
    """Return the dtype in which ids below a dictionary size are stored; uint32 if it is unknown."""
    if max_int_to_represent is None:
        return np.uint32
    # the original's bounds: with others the same text would give other files
    if max_int_to_represent < 65500:
        return np.uint16
    if max_int_to_represent < 4294967295:
        return np.uint32
    return np.int64


def get_available_dataset_impl() -> list[str]:
    """Return the names that ``--dataset-impl`` takes."""
    return list(_IMPLS)


def check_dataset_impl(impl: str) -> None:
    """Raise unless ``impl`` is a known kind of dataset.

    Raises:
        UnsupportedError: for the kinds that only the original has.
        ConfigError: for any other name.
    """
    if impl in _REFUSED_IMPLS:
        raise UnsupportedError(f"--dataset-impl {impl} is not supported; use {', '.join(_IMPLS)}")
    check_choice("--dataset-impl", impl, _IMPLS)


def make_builder(
    out_file: PathLike, impl: str, vocab_size: int | None = None
) -> MMapIndexedDatasetBuilder | IndexedDatasetBuilder:
    """Return a builder that writes the ``.bin`` file ``out_file``.

    Args:
        out_file: its name.
        impl: ``mmap``, ``lazy`` or ``cached``.
        vocab_size: size of the dictionary, which decides the dtype of the ``mmap`` format.
    """
    check_dataset_impl(impl)
    if impl == "mmap":
        return MMapIndexedDatasetBuilder(out_file, dtype=best_fitting_int_dtype(vocab_size))
    return IndexedDatasetBuilder(out_file)


def infer_dataset_impl(path: PathLike) -> str | None:
    """Return the kind of the dataset ``path`` from its files, or None if they are unknown."""
    if IndexedRawTextDataset.exists(path):
        return "raw"
    if not IndexedDataset.exists(path):
        return None
    with open(index_file_path(path), "rb") as handle:
        magic = handle.read(len(MAGIC))
    if magic == MAGIC:
        return "mmap"
    return "cached" if magic.startswith(LEGACY_MAGIC) else None


def make_dataset(
    path: PathLike,
    impl: str,
    fix_lua_indexing: bool = False,
    dictionary: Dictionary | None = None,
) -> AnyDataset | None:
    """Open the dataset ``path``, or return None if it does not exist.

    Args:
        path: prefix of the binary files, or the raw text file.
        impl: its kind, for instance from :func:`infer_dataset_impl`.
        fix_lua_indexing: undo the one that ``lazy`` and ``cached`` files add to each token.
        dictionary: needed for ``raw``.
    """
    if not dataset_exists(path, impl):
        return None
    if impl == "raw":
        return IndexedRawTextDataset(path, require_dictionary(dictionary))
    if impl == "mmap":
        return MMapIndexedDataset(path)
    kind = IndexedCachedDataset if impl == "cached" else IndexedDataset
    return kind(path, fix_lua_indexing=fix_lua_indexing)


def shift_of(lines: object) -> int:
    """Return how much larger the numbers in ``lines.flat`` are than ids: 1 in the old formats."""
    return int(getattr(lines, "fix_lua_indexing", False))


def dataset_exists(path: PathLike, impl: str) -> bool:
    """Tell whether the files of a dataset of the kind ``impl`` are there."""
    check_dataset_impl(impl)
    if impl == "raw":
        return IndexedRawTextDataset.exists(path)
    return BinaryDataset.exists(path)
