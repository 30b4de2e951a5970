"""``manifest.json``: what a folder of binarized data holds, so that damage to it can be noticed.

The structure of the files is checked whenever they are opened; only the digests kept here can tell
that a token was changed. The file is a JSON object::

    {"format": 1, "version": "<of fairseq>",
     "files": {"train.bin": {"bytes": 12, "sha256": "..."}, ...},
     "datasets": {"train": {"impl": "mmap", "sentences": 1, "tokens": 6, "max_id": 9,
                            "dictionary": "dict.txt", "dictionary_sha256": "..."}, ...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from fairseq.errors import DataError
from fairseq.files.io import PathLike, atomic_write, require_file, sha256_of
from fairseq.version import __version__

MANIFEST_NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """Size and digest of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetEntry:
    """One binarized text.

    Attributes:
        impl: kind of its files.
        sentences: number of items.
        tokens: number of tokens, ends of sentences included.
        max_id: greatest token id.
        dictionary: name of the dictionary file it was made with.
        dictionary_sha256: digest of that file.
    """

    impl: str
    sentences: int
    tokens: int
    max_id: int
    dictionary: str
    dictionary_sha256: str = ""

    def file_names(self, name: str) -> list[str]:
        """Return the files of the dataset ``name``."""
        return [name] if self.impl == "raw" else [f"{name}.bin", f"{name}.idx"]


@dataclass(frozen=True)
class Manifest:
    """The content of a ``manifest.json``."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    version: str = __version__
    format: int = FORMAT


def write_manifest(
    folder: PathLike,
    file_names: Iterable[str],
    datasets: Mapping[str, DatasetEntry],
    num_workers: int = 1,
    described: Mapping[str, tuple[int, str]] | None = None,
) -> Manifest:
    """Describe files of a folder in its manifest, beside those that it describes already.

    Args:
        folder: the folder.
        file_names: names inside it, to be digested now.
        datasets: what the files hold, by prefix.
        num_workers: files that are digested at once.
        described: size and digest of paths that need not be read again, as
            :func:`fairseq.files.io.describe_writes` notes them.

    Returns:
        The manifest as written. Entries whose files are gone are dropped.
    """
    path = os.path.join(folder, MANIFEST_NAME)
    old = read_manifest(folder) if os.path.exists(path) else Manifest()
    names = list(file_names)
    paths = [os.path.join(folder, name) for name in names]
    known = {path: FileEntry(*entry) for path, entry in (described or {}).items()}
    with ThreadPoolExecutor(num_workers) as pool:
        # threads will do: digests are computed without the interpreter's lock
        entries = pool.map(
            lambda path: known.get(path) or FileEntry(os.path.getsize(path), sha256_of(path)), paths
        )
        new = dict(zip(names, entries, strict=True))
    files = {
        name: entry
        for name, entry in sorted({**old.files, **new}.items())
        if os.path.exists(os.path.join(folder, name))
    }
    merged = sorted({**old.datasets, **datasets}.items())
    # a dataset counts while all of its files are there
    kept = {name: entry for name, entry in merged if files.keys() >= {*entry.file_names(name)}}
    manifest = Manifest(files, kept)
    with atomic_write(path, "w") as handle:
        json.dump(asdict(manifest), handle, indent=1, sort_keys=True)
        handle.write("\n")
    return manifest


def read_manifest(folder: PathLike) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        DataError: if it is damaged.
        MissingFileError: if there is none.
    """
    path = require_file(
        os.path.join(folder, MANIFEST_NAME), "manifest", "Run fairseq-preprocess to create it."
    )
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} is not {FORMAT}")
        files = {_plain(name): _entry(FileEntry, row) for name, row in content["files"].items()}
        datasets = {
            _plain(name): _entry(DatasetEntry, row) for name, row in content["datasets"].items()
        }
        return Manifest(files, datasets, str(content["version"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: {error!r}. Delete it to go without, or run fairseq-preprocess "
            "again."
        ) from error


def _plain(name: str) -> str:
    # a manifest may come from elsewhere: it must not lead out of its folder
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in this folder")
    return name


def _entry(kind: type[Any], row: Mapping[str, Any]) -> Any:
    entry = kind(**row)
    # JSON knows no dataclasses: a text in the place of a number would fail far from here
    for name, type_name in kind.__annotations__.items():
        if type(getattr(entry, name)).__name__ != type_name:
            raise ValueError(f"{name} is {getattr(entry, name)!r}, not of type {type_name}")
    return entry


def verify_manifest(folder: PathLike, digests: bool = False) -> Manifest | None:
    """Compare the files of a folder with its manifest.

    Args:
        folder: the folder.
        digests: read every file in full; without, only the sizes are compared.

    Returns:
        The manifest, or None if the folder has none (data made by the original).

    Raises:
        DataError: naming the first file that is missing or differs, or the dataset that was made
            with another dictionary.
    """
    if not os.path.exists(os.path.join(folder, MANIFEST_NAME)):
        return None
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise _mismatch(path, "it is missing")
        if (size := os.path.getsize(path)) != entry.bytes:
            raise _mismatch(path, f"it has {size} bytes instead of {entry.bytes}")
        if digests and (digest := sha256_of(path)) != entry.sha256:
            raise _mismatch(path, f"its sha256 is {digest} instead of {entry.sha256}")
    for name, dataset in manifest.datasets.items():
        dictionary = manifest.files.get(dataset.dictionary)
        # sizes cannot tell a changed dictionary, which would give every id another meaning
        if dictionary is None or dictionary.sha256 != dataset.dictionary_sha256:
            raise _mismatch(
                os.path.join(folder, name), f"it was made with another {dataset.dictionary}"
            )
    return manifest


def _mismatch(path: str, what: str) -> DataError:
    return DataError(
        f"{path} does not match {MANIFEST_NAME}: {what}. Restore it, or run fairseq-preprocess "
        "again."
    )
