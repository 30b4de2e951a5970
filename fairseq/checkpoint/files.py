"""Checkpoint files on disk: safe writes, hard links, leftovers, the newest good one.

A file is written under a temporary name, synced, read back against its checksums and renamed;
``checkpoint_last.pt`` and ``checkpoint_best.pt`` are hard links renamed into place. Whenever the
process dies, every name holds either its old or its new content. The side file ``NAME.pt.json``
(digest, size, step, versions) is advisory: where it is missing or stale, the checkpoint itself is
asked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq.errors import CheckpointError
from fairseq.files.io import (
    atomic_write,
    fsync_directory,
    open_temporary,
    sha256_of,
    temporary_name,
)
from fairseq.files.safe_load import safe_load, storable, verify_zip
from fairseq.version import __version__

logger = logging.getLogger("fairseq.checkpoint_files")

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# -- writing ---------------------------------------------------------------------------------------


def write_checkpoint(state: Mapping[str, object], path: str, facts: Mapping[str, object]) -> None:
    """Write ``state`` as ``path`` and ``facts`` about it as ``path + ".json"``.

    Args:
        state: what is saved; plain types and tensors, on any device.
        path: final name.
        facts: step, epoch and the like; digest, size and versions are added.

    Raises:
        CheckpointError: if the file cannot be written, does not read back or holds something that
            could not be loaded; the file that had the name is untouched, and nothing half-written
            remains.
    """
    temporary = temporary_name(path)
    try:
        with open_temporary(path) as handle:
            torch.save(storable(dict(state)), handle)
            handle.flush()
            os.fsync(handle.fileno())
        # before it takes the name: the checkpoint that it replaces may be the only good one
        verify_zip(temporary)
        facts = {**facts, "sha256": sha256_of(temporary), "size": os.path.getsize(temporary)}
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C, too, must leave no half-written file
        _remove(temporary)
        if isinstance(error, Exception):
            kept = "The checkpoints from before are untouched"
            raise _explain(error, path, kept) from error
        raise
    _sync_folder(path)
    _write_facts(path, facts)


def _sync_folder(path: str) -> None:
    """Make the new name of a file last; a disk that refuses gets a warning.

    The file is there all the same: only a loss of power could still undo its name.
    """
    try:
        fsync_directory(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        logger.warning("%s is written, but its folder cannot be synced: %s", path, error)


def _explain(error: Exception, path: str, kept: str) -> CheckpointError:
    """Return the error to show; torch hides the file system's behind one of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    hint = " (is the disk full?)" if getattr(cause, "errno", None) in _DISK_IS_FULL else ""
    return CheckpointError(f"could not write {path}: {cause or error}{hint}. {kept}")


def _write_facts(path: str, facts: Mapping[str, object]) -> None:
    """Write the side file; it is advisory, so a failure only warns."""
    record = {**facts, "fairseq": __version__, "torch": torch.__version__, "time": time.time()}
    try:
        with atomic_write(path + ".json", "w") as handle:
            json.dump(record, handle, indent=1, sort_keys=True)
    except OSError as error:
        logger.warning("could not write %s.json: %s", path, error)


def link_checkpoint(source: str, target: str) -> None:
    """Make ``target`` the same file as ``source``, atomically; a copy where links fail.

    Raises:
        CheckpointError: if neither is possible; ``target`` is then as it was.
    """
    try:
        _link(source, target)
    except OSError as error:
        kept = f"It is as it was; {source} holds the new state"
        raise _explain(error, target, kept) from error
    try:
        _link(source + ".json", target + ".json")
    except OSError as error:
        logger.warning("could not write %s.json: %s", target, error)
        # no side file rather than one that describes the file before
        _remove(target + ".json")
    _sync_folder(target)


def _link(source: str, target: str) -> None:
    temporary = temporary_name(target)
    _remove(temporary)
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
        _remove(temporary)  # it is still there if both names were the same file already
    except OSError:
        _remove(temporary)
        with open(source, "rb") as reader, atomic_write(target) as writer:
            while block := reader.read(1 << 20):
                writer.write(block)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("could not delete %s: %s", path, error)


def delete_checkpoint(path: str) -> None:
    """Delete a checkpoint and its side file."""
    _remove(path)
    _remove(path + ".json")


def remove_leftovers(folder: str) -> None:
    """Delete the temporary files of runs that were killed; the caller holds the folder's lock."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if re.fullmatch(r"\..+\.tmp-\d+", name):
                logger.info("deleted the unfinished file %s", os.path.join(folder, name))
                _remove(os.path.join(folder, name))


# -- finding ---------------------------------------------------------------------------------------


def checkpoint_paths(
    path: str, pattern: str = r"checkpoint(\d+)\.pt", keep_match: bool = False
) -> list[Any]:
    """List the checkpoints in ``path`` whose names match, largest first group first.

    Args:
        path: the folder.
        pattern: for the whole name; its first group is a number.
        keep_match: return ``(path, text of the group)`` pairs.
    """
    if not os.path.isdir(path):
        return []
    numbered = []
    for position, name in enumerate(sorted(os.listdir(path))):
        match = re.fullmatch(pattern, name)
        if match is not None:
            number = float(match[1]) if match.groups() else position
            numbered.append((number, name, match[1] if match.groups() else ""))
    numbered.sort(reverse=True)
    full = [(os.path.join(path, name), group) for _, name, group in numbered]
    return full if keep_match else [name for name, _ in full]


def names_of_run(suffix: str) -> str:
    """Return the pattern of the names that a run with this ``--checkpoint-suffix`` gives.

    Checkpoints of other runs, averages and copies may lie in the folder, too.
    """
    kinds = r"\d+", r"_\d+_\d+", "_best", "_last", r"_(?:update|tokens)\d+", r"\.best_.+_-?\d+\.\d+"
    return rf"checkpoint(?:{'|'.join(kinds)}){re.escape(suffix)}\.pt"


def load_or_newest_good(path: str) -> tuple[str, dict[str, Any]]:
    """Load a checkpoint; for a damaged ``checkpoint_last``, the run's newest good one beside it.

    Returns:
        ``(path of the file that was loaded, its content)``.

    Raises:
        CheckpointError: if the file is damaged and nothing can replace it.
    """
    try:
        return path, safe_load(path)
    except CheckpointError as error:
        name = re.fullmatch(r"checkpoint_last(.*)\.pt", os.path.basename(path))
        if name is None:
            raise
        first_error = error
    folder = Path(path).absolute().parent
    others = [Path(p) for p in checkpoint_paths(str(folder), names_of_run(name[1]))]
    # equal steps: the larger number in the name, so that the choice does not depend on the disk
    candidates = sorted(
        ((step_of(p), p.name, p) for p in others if p.name != name[0]), reverse=True
    )
    found: tuple[int, Path, dict[str, Any]] | None = None
    for step, _, other in candidates:
        try:
            state = safe_load(other)
        except CheckpointError as error:
            logger.warning("skipped another damaged checkpoint: %s", error)
            continue
        whole = state.get("last_optimizer_state") is not None
        # from weights alone a run begins anew: only where nothing else can be read
        if whole or found is None:
            found = step, other, state
        if whole:
            break
    if found is None:
        raise CheckpointError(
            f"{first_error}. No other readable checkpoint of this run is in {folder}; delete the "
            "file to start from scratch"
        ) from first_error
    step, other, state = found
    logger.warning("%s. Going on from %s, of update %s", first_error, other, step)
    return str(other), state


def step_of(path: Path) -> int:
    """Return the number of updates of a checkpoint, -1 if it cannot be read.

    A side file that does not describe the file beside it does not count.
    """
    try:
        facts = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
        if facts["size"] == path.stat().st_size and facts["sha256"] == sha256_of(path):
            return int(facts["num_updates"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        content = safe_load(path)
        step = int(content["optimizer_history"][-1]["num_updates"])
    except (CheckpointError, LookupError, TypeError, ValueError):
        return -1
    logger.warning("%s.json is missing or stale; the checkpoint itself was read", path)
    return step
