"""How to start processes: a fork of a process with threads copies one of them and all their locks.

Python warns of it since 3.12; a lock that another thread held stays locked in the child.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from multiprocessing.context import BaseContext

FORKS_WARN = sys.version_info >= (3, 12)


def start_method() -> str:
    """Return how processes are started now.

    "fork" starts at once, where this process has no other thread to lose; else "forkserver", whose
    children are forks of a process without threads, and "spawn" on systems other than Linux.
    Before Python 3.12, which warns of it, threads are no reason: a server of forks costs the import
    of torch, which is seconds, and no lock held by another thread was ever seen to matter.
    """
    threads = "/proc/self/task"
    if not os.path.isdir(threads):
        return "spawn"
    if not FORKS_WARN or len(os.listdir(threads)) == 1:
        return "fork"
    return "forkserver"


def safe_context() -> BaseContext:
    """Return the context of :func:`start_method`.

    The server of forks imports once what this process has and what takes long to import.
    """
    context = multiprocessing.get_context(start_method())
    if context.get_start_method() == "forkserver":
        slow = [name for name in ("numpy", "torch") if name in sys.modules]
        context.set_forkserver_preload(["fairseq.files.fork_server", *slow])
    return context


def can_be_sent(value: object) -> bool:
    """Tell whether a value can reach a process that is no fork of this one."""
    try:
        # what is large costs no memory: nothing is kept
        pickle.Pickler(_Nowhere()).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError):
        return False
    return True


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> int:
        return len(data)


def begin_worker() -> None:
    """Prepare a process of a pool: its parent alone hears Ctrl-C, and it does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the server of forks ignores
    exit_with_parent()


def exit_with_parent() -> None:
    """End this process when the one that asked for it ends, however that ends."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # returns when the parent is gone, even if it was killed
    parent.join()
    # not sys.exit, which would end this thread only
    os._exit(1)
