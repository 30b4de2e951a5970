"""Folders that appear under their final name only when all that belongs in them is there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from fairseq.errors import DataError
from fairseq.files.io import named_in_errors, try_lock

# one of them stands in every folder that the users of new_folder make, and in no other of ours
_MARKS = ("config.json", "meta.json", "model.pt", "revisions.json")


def refuse_existing(out: Path, force: bool, flag: str = "--force") -> None:
    """Raise if there is something that would be replaced, and ``force`` does not allow it.

    Raises:
        DataError: naming it, and the ``flag`` that allows it.
    """
    if out.exists() and not force:
        raise DataError(f"{out} exists; choose another name, or give {flag} to replace it")


@contextlib.contextmanager
def new_folder(
    out: Path, force: bool, source: Path | None = None, flag: str = "--force"
) -> Iterator[Path]:
    """Give a temporary folder that becomes ``out`` at the end, and vanishes after an error.

    Args:
        out: the folder to make.
        force: whether it may be replaced, if it is one of ours.
        source: what is read meanwhile.
        flag: by which the user allows it.

    Raises:
        DataError: if ``out`` exists and is not to be replaced, holds something else, or the
            source, or if another process is writing it.
    """
    _refuse(out, force, source, flag)
    temporary = out.with_name(f".{out.name}.unfinished")
    with _claimed(temporary, out), _system_errors(out):
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666  # safetensors makes files for their owner alone
            for file in filter(Path.is_file, temporary.rglob("*")):
                file.chmod(mode)
            _refuse(out, force, source, flag)  # what came meanwhile is not ours to delete
            if out.exists():
                shutil.rmtree(out)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def _system_errors(out: Path) -> Iterator[None]:
    """Raise what libraries in Rust say of the system, such as of a full disk, as ``OSError``."""
    try:
        with named_in_errors(out):
            yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, OSError):
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), os.fspath(out)) from error


def _refuse(out: Path, force: bool, source: Path | None, flag: str) -> None:
    refuse_existing(out, force, flag)
    if not out.exists():
        return
    if source is not None and source.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out} holds {source}, which is read: choose another name for the result")
    ours = any((out / name).is_file() for name in _MARKS)
    if not ours and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} holds something else than is to be written (data, a run?), so it is not "
            "replaced: choose another name, or remove it yourself"
        )


@contextlib.contextmanager
def _claimed(temporary: Path, out: Path) -> Iterator[None]:
    """Make a folder that no other process writes in, empty of what a killed one left."""
    temporary.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # which opens no folders
        yield
        return
    handle = os.open(temporary, os.O_RDONLY)
    try:
        # a lock on the folder itself follows it under its final name, and dies with its process
        if not try_lock(handle):
            raise DataError(
                f"another process is writing {out}: wait for it, or choose another name"
            )
        if not temporary.exists() or not os.path.samestat(os.fstat(handle), temporary.stat()):
            raise DataError(f"another process has just written {out}")
        for left in temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)
