"""Opening model archives without trusting them: files and folders only, inside the target only.

Links, devices and paths that leave the target are refused; so is what unpacks to more than it could
reasonably hold. An archive is unpacked whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fairseq.errors import CheckpointError
from fairseq.files.io import PathLike

MAX_FILES = 10_000
MAX_BYTES = 64 * 1024**3
MAX_RATIO = 1_000
"""How many times its own size an archive may unpack to; 100 kB of headroom for tiny ones."""
MAX_NAME = 1_024
_HEADROOM = 100_000
_MAX_PADDING = 16  # blocks of a megabyte
_NAME_RECORDS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


# name, size, and content in blocks (None for a folder)
Member = tuple[str, int, Iterator[bytes] | None]


class _Unsafe(Exception):
    """What is wrong with an archive."""


def cache_folder() -> Path:
    """Return where downloads are kept: ``$PYTORCH_FAIRSEQ_CACHE`` or a part of torch's cache."""
    if named := os.environ.get("PYTORCH_FAIRSEQ_CACHE"):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch_home = os.environ.get("TORCH_HOME") or os.path.join(caches, "torch")
    return Path(torch_home).expanduser() / "pytorch_fairseq"


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
        archive: a ``.tar``, ``.tar.gz``, ``.tar.bz2``, ``.tar.xz`` or ``.zip`` file.
        target: the folder; if it exists the archive was unpacked before.

    Returns:
        the folder; if the archive holds a single folder, that one.

    Raises:
        CheckpointError: for links, devices, paths that leave the folder, bombs and damage, and if
            the folder cannot be written.
    """
    target = Path(target)
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.part-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _unpack(archive, partial)
            if not target.is_dir():  # another process may have been faster
                os.replace(partial, target)
        except _Unsafe as error:
            raise CheckpointError(f"archive {archive} was refused: {error}") from error
        except OSError as error:
            raise CheckpointError(f"cannot unpack {archive} as {target}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _unpack(archive: PathLike, folder: Path) -> None:
    allowed = min(MAX_BYTES, os.path.getsize(archive) * MAX_RATIO + _HEADROOM)
    seen: set[str] = set()
    total = members = 0
    for name, size, content in _guarded(_members(archive)):
        target = _inside(name, folder)
        total, members = total + size, members + 1
        if members > MAX_FILES or total > allowed:
            raise _Unsafe("it unpacks to too much")
        if content is None:
            _make_folder(target)
            continue
        # two names that differ in case are one file on some systems
        key = str(target).casefold()
        if key in seen or target.exists():
            raise _Unsafe(f"it holds {name!r} twice")
        seen.add(key)
        _make_folder(target.parent)
        with open(target, "xb") as writer:
            _copy(content, writer, size)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _Unsafe(f"{path.name!r} is both a file and a folder") from error


def _copy(content: Iterator[bytes], writer: IO[bytes], size: int) -> None:
    """Write exactly the size that the archive's index states."""
    left = size
    for block in _guarded(content):
        left -= len(block)
        if left < 0:
            break
        writer.write(block)
    if left:
        raise _Unsafe("a file has not the size that is stated")


def _blocks(reader: Any) -> Iterator[bytes]:
    while block := reader.read(1 << 20):
        yield block


def _guarded(source: Iterator[object]) -> Iterator[Any]:
    """Yield from something that reads an archive; whatever damaged bytes raise is one error."""
    while True:
        try:
            item = next(source)
        except StopIteration:
            return
        except _Unsafe:
            raise
        except Exception as error:
            raise _Unsafe(f"it is damaged ({type(error).__name__}: {error})") from error
        yield item


def _members(archive: PathLike) -> Iterator[Member]:
    """Yield the files and folders of an archive; anything else is refused."""
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
        return
    with tarfile.open(archive, tarinfo=_CheckedTarInfo) as packed:
        for member in packed:
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg() and not member.issparse():
                content = packed.extractfile(member)
                assert content is not None
                yield member.name, member.size, _blocks(content)
            else:
                raise _Unsafe(f"{member.name!r} is no plain file")
        _check_end(packed)


def _check_end(packed: tarfile.TarFile) -> None:
    """Refuse an archive that goes on: ``tarfile`` takes a damaged header for its end."""
    assert packed.fileobj is not None
    packed.fileobj.seek(packed.offset)
    for number, block in enumerate(_blocks(packed.fileobj)):
        if number >= _MAX_PADDING or block.strip(b"\0"):
            raise _Unsafe("it is damaged: there is more behind its end")


def _zip_members(archive: PathLike) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            kind = (entry.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise _Unsafe(f"{entry.filename!r} is no plain file")
            if entry.is_dir():
                yield entry.filename, 0, None
            else:
                with packed.open(entry) as handle:
                    yield entry.filename, entry.file_size, _blocks(handle)


class _CheckedTarInfo(tarfile.TarInfo):
    """Refuses names and attributes that would fill the memory: ``tarfile`` reads them whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedTarInfo:
        """Read a header."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in _NAME_RECORDS and info.size > 64 * MAX_NAME:
            raise _Unsafe("it has a path that is too long")
        return info


def _inside(name: str, folder: Path) -> Path:
    """Return the place of a member, which must lie inside ``folder``."""
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    unsafe = (
        not name
        or len(name) > MAX_NAME
        or path.is_absolute()
        or ".." in parts
        or any(character < " " for character in name)
        or any(len(os.fsencode(part)) > 255 for part in parts)
        or (len(parts) > 0 and ":" in parts[0])
    )
    if unsafe:
        raise _Unsafe(f"the path {name[:80]!r} is unsafe")
    target = folder.joinpath(*parts).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise _Unsafe(f"the path {name[:80]!r} leaves the folder")
    return target
