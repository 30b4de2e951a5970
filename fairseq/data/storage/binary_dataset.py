"""What the two binary formats share: file names, dtype codes, and the bases of readers and writers.

Shapes: ``tokens_N`` is the concatenation of ``sizes_M``, M items of a corpus.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fairseq.errors import DataError
from fairseq.files.io import PathLike, atomic_write, open_temporary, put_in_place, require_file

if TYPE_CHECKING:
    import torch

DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    # numpy's "float" when the original chose its codes, which is a double like 7
    6: np.dtype("<f8"),
    7: np.dtype("<f8"),
    8: np.dtype("<u2"),
    9: np.dtype("<u4"),
    10: np.dtype("<u8"),
}
INTEGER_CODES = {dtype: code for code, dtype in DTYPES.items() if dtype.kind in "iu"}

# Item sizes are checked and copied so many at a time, which bounds the memory for any corpus.
ITEMS_AT_ONCE = 1 << 18


def index_file_path(prefix_path: PathLike) -> str:
    """Return the name of the index of the dataset ``prefix_path``."""
    return os.fspath(prefix_path) + ".idx"


def data_file_path(prefix_path: PathLike) -> str:
    """Return the name of the token file of the dataset ``prefix_path``."""
    return os.fspath(prefix_path) + ".bin"


class MappedFile:
    """A file mapped into memory as bytes.

    Attributes:
        bytes_N: uint8 (N,), its content.

    Raises:
        MissingFileError: if it is absent or unreadable.
    """

    def __init__(self, name: str) -> None:
        path = require_file(name, "binarized data", "Run fairseq-preprocess to create it.")
        self._name, self._map = name, None
        self.bytes_N = np.empty(0, np.uint8)
        with open(path, "rb") as handle:
            if os.fstat(handle.fileno()).st_size:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                self.bytes_N = np.frombuffer(self._map, np.uint8)

    def require_whole(self) -> None:
        """Raise if the file is now shorter than it was: reading its end would kill the process.

        Raises:
            DataError: saying so.
        """
        if self._map is not None and self._map.size() < len(self.bytes_N):
            raise damaged(
                self._name,
                f"it had {len(self.bytes_N)} bytes when it was opened and was cut to "
                f"{self._map.size()} while it was in use",
            )


def integer_code(dtype: npt.DTypeLike) -> int:
    """Return the dtype code of an integer dtype.

    Raises:
        DataError: if it cannot be stored.
    """
    little = np.dtype(dtype).newbyteorder("<")
    if little not in INTEGER_CODES:
        raise DataError(f"token ids cannot be stored as {little}; use an integer dtype")
    return INTEGER_CODES[little]


# how the magic of an index begins -> the formats that --dataset-impl calls so
FORMATS = {b"MMIDID": "mmap", b"TNTIDX": "cached or lazy"}


def damaged(path: str, what: str) -> DataError:
    """Return the error for a file whose structure is wrong."""
    return DataError(
        f"{path} is damaged: {what}. Restore it, or run fairseq-preprocess again on the text."
    )


class BinaryDataset:
    """Random access to the items of a ``.bin``/``.idx`` pair; picklable, cheap to re-open.

    Args:
        path: prefix of the two files.

    Attributes:
        path: that prefix.
        sizes: (M,) tokens of each item.
        flat: (N,) all tokens as stored, mapped from the disk.

    Raises:
        DataError: if the files contradict themselves or each other.
        MissingFileError: if one is absent.
    """

    sizes: np.ndarray
    flat: np.ndarray
    _index: MappedFile
    _data: MappedFile
    supports_prefetch = False

    def __init__(self, path: PathLike) -> None:
        self.path = os.fspath(path)
        self._open(check=True)

    def _open(self, check: bool) -> None:
        """Set ``sizes``, ``flat`` and what the format needs; ``check`` them against each other."""
        raise NotImplementedError

    def _start(self, i: int) -> int:
        """Return the position of item ``i`` in ``flat``."""
        raise NotImplementedError

    def _map(self, header: struct.Struct, magic: bytes) -> tuple[np.ndarray, tuple[int, ...]]:
        """Map both files; return the index, uint8, and what its header says behind the version."""
        name = index_file_path(self.path)
        self._index, self._data = MappedFile(name), MappedFile(data_file_path(self.path))
        index = self._index.bytes_N
        if len(index) < header.size:
            raise damaged(name, f"it has only {len(index)} bytes")
        its_magic, version, *numbers = header.unpack(index[: header.size].tobytes())
        if its_magic != magic and its_magic[:6] in FORMATS and magic[:6] in FORMATS:
            raise DataError(
                f"{name} is a file of --dataset-impl {FORMATS[its_magic[:6]]}, not of "
                f"{FORMATS[magic[:6]]}: leave --dataset-impl out, and the format is recognised"
            )
        if its_magic != magic or version != 1:
            raise damaged(name, f"magic {its_magic!r} and version {version} are not this format's")
        return index, tuple(numbers)

    def _map_tokens(self, dtype: np.dtype[Any]) -> None:
        """Set ``flat``."""
        data = self._data.bytes_N
        if len(data) % dtype.itemsize:
            what = f"{len(data)} bytes are no whole number of tokens"
            raise damaged(data_file_path(self.path), what)
        self.flat = data.view(dtype)

    def _check_total(self, total: int) -> None:
        if total != len(self.flat):
            what = f"it holds {len(self.flat)} tokens, its index names {total}"
            raise damaged(data_file_path(self.path), what)

    def get_array(self, i: int) -> np.ndarray:
        """Return item ``i`` as a read-only view of the file, in the dtype it is stored in."""
        self._index.require_whole()
        start = self._start(i)
        return self.tokens(start, start + int(self.sizes[i]))

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Return a part of ``flat``.

        Raises:
            DataError: if the file was cut since it was opened.
        """
        self._data.require_whole()
        return self.flat[start:end]

    def __getitem__(self, i: int) -> torch.Tensor:
        """Return item ``i`` as an int64 tensor."""
        import torch

        return torch.from_numpy(self.get_array(i).astype(np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if not isinstance(v, (np.ndarray, MappedFile))}
        return {**kept, "total": len(self.flat)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        total = state.pop("total")
        self.__dict__.update(state)
        self._open(check=False)
        if len(self.flat) != total:
            what = f"it held {total} tokens when it was opened first and now holds {len(self.flat)}"
            raise damaged(data_file_path(self.path), what)

    def size(self, index: int) -> int:
        """Return the number of tokens of item ``index``."""
        return int(self.sizes[index])

    num_tokens = size

    @staticmethod
    def exists(path: PathLike) -> bool:
        """Tell whether both files of the dataset ``path`` exist."""
        return os.path.exists(index_file_path(path)) and os.path.exists(data_file_path(path))


def check_contiguous(path: str, starts_M: np.ndarray, sizes_M: np.ndarray, unit: int) -> int:
    """Check that items follow each other without a gap; return the sum of their sizes.

    Args:
        path: index file, for the message.
        starts_M: start of each item, in units of ``1 / unit`` tokens.
        sizes_M: tokens of each item.
        unit: what one token adds to a start.

    Raises:
        DataError: at the first item that does not fit.
    """
    total = 0
    for first in range(0, len(sizes_M), ITEMS_AT_ONCE):
        sizes = sizes_M[first : first + ITEMS_AT_ONCE].astype(np.int64)
        ends = total + np.cumsum(sizes)
        wrong = (sizes < 0) | (starts_M[first : first + ITEMS_AT_ONCE] != (ends - sizes) * unit)
        if wrong.any():
            raise damaged(path, f"item {first + int(wrong.argmax())} has a wrong size or start")
        total = int(ends[-1])
    return total


def _stored(tokens_N: np.ndarray, dtype: npt.DTypeLike, shift: int) -> bytes:
    """Return tokens as the bytes that a ``.bin`` file holds."""
    return (tokens_N.astype(np.int64) + shift if shift else tokens_N).astype(dtype).tobytes()


@dataclass(frozen=True)
class TokenRegion:
    """A part of a ``.bin`` file in the making, to be filled by any process."""

    path: str
    first_byte: int
    dtype: str
    shift: int

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[np.ndarray], int]]:
        """Give a function that writes the next tokens; in all as many as were reserved."""
        with open(self.path, "r+b") as handle:
            handle.seek(self.first_byte)
            yield lambda tokens_N: handle.write(_stored(tokens_N, self.dtype, self.shift))


class BinaryDatasetBuilder:
    """Writes a ``.bin`` file item by item and then its index; both appear whole, or not at all.

    Used as a context manager it removes its temporary file unless ``finalize`` was reached.
    Memory does not grow with the number of items.

    Args:
        out_file: the ``.bin`` file; its folder must exist.
        dtype: integer dtype of the stored tokens; that of the class if None.

    Attributes:
        num_items, num_tokens: what was added so far.
        max_id: greatest token id added by ``add_item`` and ``add_array``, -1 before the first.
    """

    reader: ClassVar[type[BinaryDataset]]
    default_dtype: ClassVar[type[np.integer[Any]]] = np.int64
    token_shift: ClassVar[int] = 0
    max_size: ClassVar[int] = np.iinfo(np.int64).max

    def __init__(self, out_file: PathLike, dtype: npt.DTypeLike | None = None) -> None:
        self.path = os.fspath(out_file)
        self.dtype_code = integer_code(self.default_dtype if dtype is None else dtype)
        self.dtype = DTYPES[self.dtype_code]
        self.num_items = 0
        self.num_tokens = 0
        self.max_id = -1
        folder = os.path.dirname(os.path.abspath(self.path))
        self._data: IO[bytes] = open_temporary(self.path)
        self._temporary = self._data.name
        self._sizes: IO[bytes] = tempfile.TemporaryFile(dir=folder)

    def add_item(self, tensor: torch.Tensor | np.ndarray) -> None:
        """Add one item, a one-dimensional integer tensor or array."""
        tokens = np.asarray(tensor)
        if tokens.ndim != 1:
            raise DataError(f"an item must have one dimension, not shape {tokens.shape}")
        self.add_array(tokens, np.array([len(tokens)]))

    def add_array(self, tokens_N: np.ndarray, sizes_M: np.ndarray) -> None:
        """Add M items at once.

        Args:
            tokens_N: their tokens, one item after the other.
            sizes_M: tokens of each, summing to N.

        Raises:
            DataError: if a token or a size does not fit in the format.
        """
        assert int(sizes_M.sum()) == len(tokens_N)
        if len(tokens_N):
            self._check_range(int(tokens_N.min()), int(tokens_N.max()), tokens_N.dtype)
            self._data.write(_stored(tokens_N, self.dtype, self.token_shift))
        self.add_sizes(sizes_M)

    def reserve(self, num_tokens: int, max_id: int) -> TokenRegion:
        """Leave room for tokens that any process may write; ``add_sizes`` is then called for them.

        Args:
            num_tokens: how many.
            max_id: the greatest id that is among them.

        Raises:
            DataError: if that id does not fit in the format.
        """
        self._check_range(0, max_id, np.dtype(np.int64))
        first_byte = self._data.tell()
        self._data.seek(num_tokens * self.dtype.itemsize, os.SEEK_CUR)
        return TokenRegion(self._temporary, first_byte, self.dtype.str, self.token_shift)

    def _check_range(self, low: int, high: int, dtype: np.dtype[Any]) -> None:
        limits = np.iinfo(self.dtype)
        fits = limits.min <= low + self.token_shift and high + self.token_shift <= limits.max
        if dtype.kind not in "iu" or not fits:
            raise DataError(
                f"{self.path}: token ids from {low} to {high} ({dtype}) do not fit in "
                f"{self.dtype}; the builder was given a smaller dictionary, or none of its own"
            )
        self.max_id = max(self.max_id, high)

    def add_sizes(self, sizes_M: np.ndarray) -> None:
        """Add the sizes of M items whose tokens are in a reserved region, in their order."""
        if len(sizes_M) and int(sizes_M.max()) > self.max_size:
            raise DataError(f"{self.path}: an item of {sizes_M.max()} tokens is too long to store")
        self._sizes.write(sizes_M.astype(np.int64).tobytes())
        self.num_items += len(sizes_M)
        self.num_tokens += int(sizes_M.sum())

    def merge_file_(self, another_file: PathLike) -> None:
        """Append the items of a dataset, given by its prefix, of the same format and dtype."""
        other = self.reader(another_file)
        if other.flat.dtype != self.dtype:
            raise DataError(f"{other.path} holds {other.flat.dtype}, {self.path} {self.dtype}")
        with open(data_file_path(other.path), "rb") as source:
            shutil.copyfileobj(source, self._data, 1 << 20)
        for first in range(0, len(other), ITEMS_AT_ONCE):
            self.add_sizes(other.sizes[first : first + ITEMS_AT_ONCE])

    def size_blocks(self) -> Iterator[np.ndarray]:
        """Yield the sizes of all items, some at a time, as int64."""
        self._sizes.seek(0)
        while block := self._sizes.read(8 * ITEMS_AT_ONCE):
            yield np.frombuffer(block, np.int64)

    def _write_index(self, index: IO[bytes]) -> None:
        """Write the index of the items added."""
        raise NotImplementedError

    def finalize(self, index_file: PathLike) -> None:
        """Put both files in place under their final names.

        An old index goes first, so that a crash in between never leaves a pair that does not match.
        """
        with atomic_write(index_file) as index:
            self._write_index(index)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(index_file)
            put_in_place(self._data, self.path)
        self._data.close()
        self._sizes.close()

    def discard(self) -> None:
        """Remove what was written; nothing appears under the final names."""
        self._data.close()
        self._sizes.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.discard()
