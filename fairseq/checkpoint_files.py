"""Checkpoint files on disk: names, safe writes, hard links, retention, the newest good one.

A file is written under a temporary name, synced, read back against its checksums and renamed;
``checkpoint_last.pt`` and ``checkpoint_best.pt`` are hard links renamed into place. Whenever the
process dies, every name holds either its old or its new content.
"""

from __future__ import annotations

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
from fairseq.file_io import atomic_write, fsync_directory, sha256_of, temporary_name
from fairseq.safe_load import safe_load, verify_zip
from fairseq.version import __version__

logger = logging.getLogger(__name__)

STALE_AFTER_SECONDS = 3600


def write_checkpoint(state: Mapping[str, Any], path: str, facts: Mapping[str, Any]) -> None:
    """Write ``state`` as ``path`` and ``facts`` about it as ``path + ".json"``.

    Args:
        state: what is saved; plain types and tensors.
        path: final name.
        facts: step, epoch and the like; digest, size and versions are added.

    Raises:
        CheckpointError: if the file cannot be written or does not read back; the previous file of
            that name is untouched and nothing half-written remains.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as handle:
            torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        verify_zip(temporary)
        digest, size = sha256_of(temporary), os.path.getsize(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, (OSError, RuntimeError, CheckpointError)):
            raise CheckpointError(
                f"could not write {path}: {error}; the previous checkpoints are untouched. "
                "Is the disk full?"
            ) from error
        raise
    fsync_directory(os.path.dirname(os.path.abspath(path)))
    _write_facts(path, {**facts, "sha256": digest, "size": size})


def _write_facts(path: str, facts: Mapping[str, Any]) -> None:
    """Write the side file; it is advisory, so a failure only warns."""
    record = {**facts, "fairseq": __version__, "torch": torch.__version__, "time": time.time()}
    try:
        with atomic_write(path + ".json", "w") as handle:
            json.dump(record, handle, indent=1, sort_keys=True)
    except OSError as error:
        logger.warning("could not write %s.json: %s", path, error)


def link_checkpoint(source: str, target: str) -> None:
    """Make ``target`` the same file as ``source``, atomically; a copy where links fail."""
    for suffix in ("", ".json"):
        if not os.path.exists(source + suffix):
            continue
        temporary = temporary_name(target + suffix)
        _remove(temporary)
        try:
            os.link(source + suffix, temporary)
            os.replace(temporary, target + suffix)
        except OSError:
            _remove(temporary)
            with open(source + suffix, "rb") as reader, atomic_write(target + suffix) as writer:
                while block := reader.read(1 << 20):
                    writer.write(block)
    fsync_directory(os.path.dirname(os.path.abspath(target)))


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
    """Delete temporary files of processes that no longer run, and old ones of unknown origin."""
    for entry in os.scandir(folder):
        match = re.fullmatch(r"\..+\.tmp-(\d+)", entry.name)
        if match and not _is_running(int(match[1])):
            logger.info("deleted the unfinished file %s", entry.path)
            _remove(entry.path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
    found = []
    for position, name in enumerate(sorted(os.listdir(path))):
        match = re.fullmatch(pattern, name)
        if match is not None:
            number = float(match[1]) if match.groups() else position
            found.append((number, name, match[1] if match.groups() else ""))
    found.sort(reverse=True)
    full = [(os.path.join(path, name), group) for _, name, group in found]
    return full if keep_match else [name for name, _ in full]


def load_or_newest_good(path: str) -> tuple[str, dict[str, Any]]:
    """Load a checkpoint; if it is damaged, the newest other one in its folder that is not.

    Returns:
        ``(path of the file that was loaded, its content)``.

    Raises:
        CheckpointError: if every checkpoint of the folder is damaged.
    """
    try:
        return path, safe_load(path)
    except CheckpointError as error:
        first_error = error
    folder = Path(path).resolve().parent
    others = sorted(
        (p for p in folder.glob("checkpoint*.pt") if p.name != os.path.basename(path)),
        key=lambda p: (-_step_of(p), -p.stat().st_mtime, p.name),
    )
    for other in others:
        try:
            state = safe_load(other)
        except CheckpointError as error:
            logger.warning("skipped a damaged checkpoint: %s", error)
            continue
        logger.warning("%s; continuing from %s", first_error, other)
        return str(other), state
    raise CheckpointError(
        f"{first_error}. No other readable checkpoint is in {folder}; delete the file to start "
        "from scratch"
    ) from first_error


def _step_of(path: Path) -> int:
    """Return the update number the side file states, -1 if there is none."""
    try:
        return int(json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["num_updates"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1
