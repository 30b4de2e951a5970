"""Whether a run is alive, has finished or was stopped: what its lock and its last event say."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.files.io import OWN_LOCKS

ALIVE, FINISHED, STOPPED = "alive", "finished", "stopped"

# struct flock by platform: its layout, the place of its type; start and length 0 are the whole file
_FLOCK = {"linux": ("hhqqi", 0), "darwin": ("qqihh", 3)}
_RECENT = 600  # seconds; without locks, a run that wrote within them counts as alive


class State(NamedTuple):
    """How a run stands.

    Attributes:
        kind: ``alive``, ``finished`` or ``stopped``; empty if the folder does not tell.
        reason: why it ended, in the words of its last event.
    """

    kind: str
    reason: str = ""


def state_of(folder: Path, events: Sequence[Mapping[str, Any]]) -> State:
    """Return how the run in a folder stands.

    Args:
        folder: the run folder.
        events: what its ``events.jsonl`` holds.
    """
    ends = [event for event in events if event.get("event") in ("start", "stop")]
    if _at_work(folder):
        return State(ALIVE)
    if not ends:
        return State("")
    if ends[-1]["event"] == "start":
        return State(STOPPED, "no reason left: killed, or the machine went down")
    reason = str(ends[-1].get("reason"))
    return State(STOPPED if reason.startswith(("SIG", "error: ")) else FINISHED, reason)


def _at_work(folder: Path) -> bool:
    """Tell whether a process holds the lock of a run folder, without touching the lock."""
    lock = folder / ".lock"
    if os.path.realpath(lock) in OWN_LOCKS:
        return True  # to open and close it here would give it up
    if not lock.is_file():
        return False
    try:
        return _is_held(lock)
    except (ImportError, OSError, KeyError):  # no such locks here
        metrics = folder / "metrics.jsonl"
        return metrics.is_file() and time.time() - metrics.stat().st_mtime < _RECENT


def _is_held(path: Path) -> bool:
    """Ask the system who would be in the way of a lock on a file; POSIX fcntl(2), F_GETLK."""
    import fcntl

    layout, place = _FLOCK[sys.platform]
    fields = [0] * len(layout)
    fields[place] = fcntl.F_WRLCK
    with open(path, "rb") as handle:
        answer = fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *fields))
    return bool(struct.unpack(layout, answer[: struct.calcsize(layout)])[place] != fcntl.F_UNLCK)
