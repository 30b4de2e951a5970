"""Columns of Parquet files and of what ``save_to_disk`` of the package ``datasets`` writes.

``pyarrow`` reads them a few rows at a time, so memory does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fairseq.errors import (
    ConfigError,
    DataError,
    FairseqError,
    MissingFileError,
    did_you_mean,
    install_hint,
)
from fairseq.files.io import require_file

ROWS_AT_ONCE = 64
PARQUET = ".parquet"
# files that ``save_to_disk`` leaves in the folder of one dataset, and in that of several splits
STATE, SPLITS = "state.json", "dataset_dict.json"
# how ``datasets`` and its hub name the Parquet files of a split
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
# a run of rows: how many, and what loads one of their columns in parts
Part = tuple[int, Callable[[str], Iterator[Any]]]


def holds_columns(name: str) -> bool:
    """Tell whether ``name`` is a folder or a Parquet file, whatever it is called."""
    if not os.path.isfile(name):
        return os.path.isdir(name) or name.endswith(PARQUET)
    with open(name, "rb") as handle:
        return handle.read(4) == b"PAR1"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The rows of files, one file after the other.

    Attributes:
        place: what the user named, for messages.
        files: Parquet files, or Arrow streams.

    Raises:
        ConfigError: if ``pyarrow`` is missing.
        DataError: if a file is damaged.
    """

    place: str
    files: tuple[str, ...]

    @functools.cached_property
    def column_names(self) -> list[str]:
        """The columns of the first file."""
        with _explained(self.files[0]):
            if self.files[0].endswith(".arrow"):
                schema = _stream(self.files[0]).schema
            else:
                schema = _parquet(self.files[0]).schema_arrow
        return list(schema.names)

    def __len__(self) -> int:
        return sum(rows for name in self.files for rows, _ in _parts(name))

    def values(self, column: str, first: int, end: int) -> Iterator[list[Any]]:
        """Yield a column's values in the rows from ``first`` to before ``end``, a few at a time."""
        at = 0
        for rows, load in (part for name in self.files for part in _parts(name)):
            low, high = max(first - at, 0), min(end - at, rows)
            at += rows
            for array in load(column) if low < high else ():
                stop = min(high, len(array))
                for place in range(low, stop, ROWS_AT_ONCE):
                    yield array.slice(place, min(ROWS_AT_ONCE, stop - place)).to_pylist()
                low, high = max(low - len(array), 0), high - len(array)
            if at >= end:
                return


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what ``pyarrow`` raises about a file into a DataError."""
    try:
        yield
    except FairseqError:
        raise
    # ArrowInvalid is a ValueError, ArrowKeyError a KeyError, damaged pages are OSErrors
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from error


def _library(part: str) -> Any:
    """Return a module of ``pyarrow``."""
    try:
        return importlib.import_module(part)
    except ImportError as error:
        raise ConfigError(
            f"Parquet files and datasets folders need pyarrow ({error}): {install_hint('arrow')}"
        ) from error


def _stream(name: str) -> Any:
    arrow = _library("pyarrow")
    return _library("pyarrow.ipc").open_stream(arrow.memory_map(name))


def _parquet(name: str) -> Any:
    return _library("pyarrow.parquet").ParquetFile(name, memory_map=True)


def _parts(name: str) -> Iterator[Part]:
    """Yield the row groups of a Parquet file or the record batches of an Arrow stream."""
    with _explained(name):
        if name.endswith(".arrow"):
            for batch in _stream(name):
                yield len(batch), functools.partial(_of_batch, batch)
            return
        file = _parquet(name)
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            yield rows, functools.partial(_of_group, name, file, group)


def _of_batch(batch: Any, column: str) -> Iterator[Any]:
    yield batch.column(column)


def _of_group(name: str, file: Any, group: int, column: str) -> Iterator[Any]:
    with _explained(name):  # one thread: worker processes may be forked meanwhile
        for batch in file.iter_batches(
            ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False
        ):
            yield batch.column(0)


# -- which files -----------------------------------------------------------------------------------


def open_columns(place: str, split: str = "") -> Columns:
    """Return the rows of a Parquet file, of a folder of them, or of a saved dataset.

    Args:
        place: the file or folder.
        split: which of several; ``train`` if not given.

    Raises:
        MissingFileError: if there is nothing of the kind.
        ConfigError: if there is no such split.
        DataError: if the folder is damaged.
    """
    if not os.path.isdir(place):
        if split:
            raise ConfigError(
                f"{place} is one file and has no split '{split}'; fractions of its rows are "
                "written without a name, such as '(0:0.99)'"
            )
        return Columns(place, (str(require_file(place, "Parquet file", "Check the name.")),))
    if os.path.isfile(os.path.join(place, SPLITS)):
        folder = os.path.join(place, _chosen(place, split, _json(place, SPLITS, "splits")))
        return Columns(place, _saved(folder, split))
    if os.path.isfile(os.path.join(place, STATE)):
        return Columns(place, _saved(place, split))
    return Columns(place, _folder_of_parquet(place, split))


def _chosen(place: str, split: str, names: Iterable[str]) -> str:
    """Return the split that was asked for, ``train`` if none was.

    Raises:
        ConfigError: if it is not there.
    """
    names, wanted = sorted(filter(None, names)), split or "train"
    if wanted not in names:
        raise ConfigError(
            f"{place} has no split '{wanted}'{did_you_mean(wanted, names)}, only "
            f"{', '.join(names)}: choose with --split"
        )
    return wanted


def _json(folder: str, file: str, key: str) -> Any:
    path = os.path.join(folder, file)
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)[key]
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: save the dataset again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error!r}); save the dataset again") from error


def _saved(folder: str, split: str) -> tuple[str, ...]:
    """Return the Arrow files of one saved dataset."""
    stored = _json(folder, STATE, "_split")
    if split and stored and split != stored:
        raise ConfigError(f"{folder} holds the split '{stored}', not '{split}'")
    files = _json(folder, STATE, "_data_files")
    try:  # names of files, not paths: what a folder says does not lead out of it
        names = [os.path.join(folder, os.path.basename(file["filename"])) for file in files]
    except (TypeError, KeyError) as error:
        raise DataError(f"{folder}/{STATE}: damaged ({error!r}); save the dataset again") from error
    if not names:
        raise DataError(f"{folder} holds no rows")
    return tuple(str(require_file(name, "Arrow file", "Save it again.")) for name in names)


def _folder_of_parquet(place: str, split: str) -> tuple[str, ...]:
    """Return the Parquet files of a folder, of one split if their names say which they belong to.

    Raises:
        MissingFileError: if there are none.
    """
    files = sorted(glob.glob(os.path.join(glob.escape(place), "*.parquet")))
    if not files:
        raise MissingFileError(
            f"{place} is a folder, but neither one that save_to_disk of the package datasets "
            "wrote nor one of Parquet files. Name files, or the folder of the dataset"
        )
    by_split: dict[str, list[str]] = {}
    for file in files:
        match = SHARD.fullmatch(os.path.basename(file))
        by_split.setdefault(match[1] if match else "", []).append(file)
    if by_split.keys() == {""}:
        if split:
            raise ConfigError(f"the names of the files in {place} tell no splits: drop '{split}'")
        return tuple(files)
    return tuple(by_split[_chosen(place, split, by_split)])
