"""Files: atomic writes, digests, and the ``PathManager`` name that plug-ins import.

A file appears under its final name only after its bytes are on disk: write to a temporary file in
the same folder, ``fsync``, rename, ``fsync`` the folder. A crash leaves the old file or the new
one, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from fairseq.errors import DataError, MissingFileError, UnsupportedError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

OWN_LOCKS: set[str] = set()
"""Real paths of files that this process locked; to open one again and close it would unlock it."""

BYTE_ORDER_MARK = "\ufeff"
"""What some editors put at the head of UTF-8 text; every reader of text drops it there."""


def fsync_directory(path: PathLike) -> None:
    """Make renames inside the folder ``path`` durable (a no-op where folders cannot be opened)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:  # Windows refuses to open folders; the rename is still atomic there
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_name(path: PathLike) -> str:
    """Return the hidden sibling of ``path`` that an unfinished write of this process uses."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.join(folder, f".{name}.tmp-{os.getpid()}")


def try_lock(handle: IO[Any] | int, per_process: bool = False) -> bool:
    """Lock an open file until it is closed, or whoever holds it dies.

    Args:
        handle: open for writing, or the number of an open folder.
        per_process: children do not hold the lock, too, and outlive their parent with it; but it
            is lost when this process closes the file after opening it a second time.

    Returns:
        False if somebody else holds it; a file system without locks always says True.
    """
    try:
        if fcntl is not None:
            # lockf belongs to a process, flock to an open file, which children inherit
            lock = fcntl.lockf if per_process else fcntl.flock
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # these two say that somebody has the lock; all others that there are no locks here
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def open_temporary(path: PathLike, mode: str = "wb", **open_kwargs: Any) -> IO[Any]:
    """Open and lock the hidden sibling of ``path``; what killed writers of ``path`` left goes.

    Folders that are missing are made.

    The lock tells a file that is being written from one that its writer left behind.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    _remove_leftovers_of(path)
    while True:
        handle = open(temporary_name(path), mode, **open_kwargs)
        try_lock(handle)
        if os.path.exists(handle.name):  # nobody took it for a leftover before it was locked
            return handle
        handle.close()


def _remove_leftovers_of(path: PathLike) -> None:
    folder, name = os.path.split(os.path.abspath(path))
    leftover = re.compile(re.escape(f".{name}.tmp-") + r"[0-9]+")
    with contextlib.suppress(OSError):
        for other in filter(leftover.fullmatch, os.listdir(folder)):
            # a lock needs a file that is open for writing, but its content must stay
            with open(os.path.join(folder, other), "rb+") as handle:
                if fcntl is not None and try_lock(handle):
                    os.unlink(handle.name)


def put_in_place(handle: IO[Any], path: PathLike) -> None:
    """Give a file of :func:`open_temporary` its final name, once its bytes are on the disk."""
    handle.flush()
    # a rename can reach the disk before the content does: a power cut would leave an empty file
    os.fsync(handle.fileno())
    if os.name == "nt":  # which renames no open file; elsewhere the lock holds until the rename
        handle.close()
    described = _described.get()
    if described is not None:
        # before the rename: whoever changes the file afterwards is found out by the digest
        described[os.fspath(path)] = os.path.getsize(handle.name), sha256_of(handle.name)
    os.replace(handle.name, path)


_described: ContextVar[dict[str, tuple[int, str]] | None] = ContextVar("described", default=None)


@contextlib.contextmanager
def describe_writes() -> Iterator[dict[str, tuple[int, str]]]:
    """Note size and SHA-256 of every file put in place meanwhile, from before others can see it."""
    described: dict[str, tuple[int, str]] = {}
    token = _described.set(described)
    try:
        yield described
    finally:
        _described.reset(token)


@contextlib.contextmanager
def named_in_errors(path: PathLike) -> Iterator[None]:
    """Name ``path`` in the system's errors of a write, which name no file or the temporary one."""
    try:
        yield
    except OSError as error:
        # ours have no number
        if error.errno and error.filename in (None, temporary_name(path)):
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "wb", **open_kwargs: object) -> Iterator[IO[Any]]:
    """Open a temporary file that becomes ``path`` when the block ends without an exception.

    Args:
        path: final name; folders that are missing are made.
        mode: ``"wb"`` or ``"w"``; text is UTF-8 unless ``encoding`` says otherwise.
        **open_kwargs: passed to ``open``.

    Raises:
        OSError: as raised by the file system; ``path`` is then as it was before.
    """
    assert mode in ("wb", "w"), mode
    if mode == "w":
        open_kwargs.setdefault("encoding", "utf-8")
    try:
        with named_in_errors(path), open_temporary(path, mode, **open_kwargs) as handle:
            yield handle
            put_in_place(handle, path)
    # also for KeyboardInterrupt, which is no Exception
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary_name(path))
        raise
    fsync_directory(os.path.dirname(os.path.abspath(path)))


def sha256_of(path: PathLike, block_size: int = 1 << 20) -> str:
    """Return the hexadecimal SHA-256 digest of the file ``path``."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(block_size):
            digest.update(block)
    return digest.hexdigest()


def require_file(path: PathLike, what: str, remedy: str) -> Path:
    """Return ``path`` as a ``Path`` if it is a readable file.

    Args:
        path: the file the user named.
        what: the role of the file, for the message ("dictionary", "checkpoint").
        remedy: what the user can do when it is missing.

    Raises:
        MissingFileError: if there is no such file, or it cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"{what} not found: {file}. {remedy}")
    if not os.access(file, os.R_OK):
        raise MissingFileError(f"{what} is not readable: {file}. Check its permissions.")
    return file


def require_text(path: PathLike, what: str, remedy: str) -> str:
    """Return the text of a file that the user named, without a byte-order mark.

    Raises:
        DataError: naming the byte, if it is not UTF-8.
        MissingFileError: see :func:`require_file`.
    """
    try:
        # utf-8-sig: editors of Windows put a mark in front, which would spoil the first line
        return require_file(path, what, remedy).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Convert it, for "
            "instance with `iconv -f LATIN1 -t UTF-8`."
        ) from error


def require_checkpoint(path: PathLike, remedy: str = "Check the path.") -> Path:
    """Return ``path`` as a ``Path`` if it is a file; otherwise say which checkpoints are there.

    Raises:
        MissingFileError: see :func:`require_file`.
    """
    return require_file(path, "checkpoint", f"{checkpoints_there(path)}{remedy}")


def checkpoints_there(path: PathLike) -> str:
    """Return a sentence that names the checkpoints beside a missing file, or in a folder.

    Empty if there are none.
    """
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    with contextlib.suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if name.endswith(".pt"))
        # those that every run has come first
        names.sort(key=lambda name: name not in ("checkpoint_best.pt", "checkpoint_last.pt"))
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            place = "this folder" if folder == Path() else folder
            return f"{place} holds {', '.join(names[:4])}{more}. "
    return ""


class PathManager:
    """Local file operations under the names that plug-ins of the original fairseq use."""

    exists = staticmethod(os.path.exists)
    isdir = staticmethod(os.path.isdir)
    isfile = staticmethod(os.path.isfile)
    islink = staticmethod(os.path.islink)
    ls = staticmethod(os.listdir)
    glob = staticmethod(glob.glob)
    rm = staticmethod(os.remove)
    rename = staticmethod(os.replace)
    chmod = staticmethod(os.chmod)

    @staticmethod
    def open(path: PathLike, mode: str = "r", **kwargs: Any) -> IO[Any]:
        """Open ``path`` like the built-in ``open``, in UTF-8 unless told otherwise."""
        if "b" not in mode:
            kwargs.setdefault("encoding", "utf-8")
        return open(path, mode, **kwargs)

    opena = open  # the original may write in the background; here everything is written at once

    @staticmethod
    def async_close() -> bool:
        """Return True: nothing is still being written."""
        return True

    @staticmethod
    def supports_rename(path: PathLike) -> bool:
        """Return True: files can be renamed."""
        return True

    @staticmethod
    def register_handler(handler: object) -> None:
        """Refuse other file systems.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"PathManager reads and writes local files only; {type(handler).__name__} cannot be "
            "registered: mount the remote folder"
        )

    @staticmethod
    def mkdirs(path: PathLike) -> None:
        """Create the folder ``path`` and its parents; existing ones are fine."""
        os.makedirs(path, exist_ok=True)

    @staticmethod
    def copy(source: PathLike, target: PathLike, overwrite: bool = False) -> bool:
        """Copy a file; return False if ``target`` exists and ``overwrite`` is off."""
        if os.path.exists(target) and not overwrite:
            return False
        shutil.copyfile(source, target)
        return True

    copy_from_local = copy  # every file is local here

    @staticmethod
    def get_local_path(path: str, **_: object) -> str:
        """Return ``path``: every path is local here."""
        return path

    @staticmethod
    def path_requires_pathmanager(path: PathLike) -> bool:
        """Return False: no remote file system is supported."""
        return False
