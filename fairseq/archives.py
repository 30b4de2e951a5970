"""Opening model archives without trusting them: files and folders only, inside the target only."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fairseq.errors import CheckpointError
from fairseq.file_io import PathLike

MAX_FILES = 10_000
MAX_BYTES = 64 * 1024**3
MAX_RATIO = 1_000
MAX_NAME = 1_024


def cache_folder() -> Path:
    """Return where downloaded models are kept: ``$PYTORCH_FAIRSEQ_CACHE`` or torch's cache."""
    named = os.environ.get("PYTORCH_FAIRSEQ_CACHE")
    if named:
        return Path(named)
    torch_home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "torch"
    )
    return Path(torch_home) / "pytorch_fairseq"


def cached_name(url: str, etag: str | None = None) -> str:
    """Return the file name a URL is cached under: SHA-256 of the URL, and of the ETag if known."""
    name = hashlib.sha256(url.encode()).hexdigest()
    return name if etag is None else f"{name}.{hashlib.sha256(etag.encode()).hexdigest()}"


def is_archive(path: PathLike) -> bool:
    """Tell whether ``path`` is a tar or zip file."""
    return os.path.isfile(path) and (tarfile.is_tarfile(path) or zipfile.is_zipfile(path))


def extract(archive: PathLike, target: PathLike) -> Path:
    """Unpack an archive into a new folder, all or nothing.

    Args:
        archive: a ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.zip`` file.
        target: the folder; if it exists the archive was unpacked before.

    Returns:
        the folder; if the archive holds a single folder, that one.

    Raises:
        CheckpointError: for links, devices, paths that leave the folder, and bombs.
    """
    target = Path(target)
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.part-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _unpack(archive, partial)
            os.replace(partial, target)
        except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise CheckpointError(f"archive {archive} is damaged: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _unpack(archive: PathLike, folder: Path) -> None:
    packed = max(1, os.path.getsize(archive))
    seen: set[str] = set()
    total = 0
    for name, size, handle in _members(archive):
        target = _inside(name, folder, archive)
        if handle is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        total += size
        key = str(target).casefold()
        if key in seen:
            raise CheckpointError(f"archive {archive} holds {name} twice")
        seen.add(key)
        if len(seen) > MAX_FILES or total > min(MAX_BYTES, packed * MAX_RATIO):
            raise CheckpointError(f"archive {archive} unpacks to too much; refused")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as writer:
            _copy(handle, writer, size, archive)


def _copy(reader: IO[bytes], writer: IO[bytes], size: int, archive: PathLike) -> None:
    """Copy at most the size the archive's index states."""
    left = size
    while block := reader.read(min(1 << 20, left + 1)):
        left -= len(block)
        if left < 0:
            raise CheckpointError(f"archive {archive} lies about the size of a file; refused")
        writer.write(block)


def _members(archive: PathLike) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yield ``(name, size, content or None for a folder)``; anything else is refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                kind = (entry.external_attr >> 16) & 0o170000
                if kind not in (0, 0o100000, 0o040000):
                    raise CheckpointError(f"archive {archive}: {entry.filename} is no plain file")
                if entry.is_dir():
                    yield entry.filename, 0, None
                else:
                    with packed.open(entry) as handle:
                        yield entry.filename, entry.file_size, handle
        return
    with tarfile.open(archive) as packed_tar:
        for member in packed_tar:
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg() and not member.issparse():
                yield member.name, member.size, packed_tar.extractfile(member)
            else:
                raise CheckpointError(f"archive {archive}: {member.name} is no plain file; refused")


def _inside(name: str, folder: Path, archive: PathLike) -> Path:
    """Return the place of a member, which must lie inside ``folder``."""
    parts = PurePosixPath(name.replace("\\", "/"))
    bad = (
        not name
        or len(name) > MAX_NAME
        or parts.is_absolute()
        or ".." in parts.parts
        or "\0" in name
        or ":" in parts.parts[0]
        if parts.parts
        else name not in (".", "./")
    )
    if bad:
        raise CheckpointError(f"archive {archive}: unsafe path {name[:80]!r}; refused")
    target = (folder / Path(*parts.parts)).resolve() if parts.parts else folder.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise CheckpointError(f"archive {archive}: {name[:80]!r} leaves the folder; refused")
    return target
