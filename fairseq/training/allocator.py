"""Memory that a training process has freed is kept for its next step.

glibc returns large blocks to the system when they are freed, and the system clears their pages when
the next step asks for them again: a tenth of a small step on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30  # bytes: smaller blocks come from the heap, and so much of it may lie idle
# Who sets one of these has decided already; other allocators are loaded by the second.
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed; return whether it does."""
    if sys.platform != "linux" or any(os.environ.get(name) for name in CHOICES):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018 - other libraries of this name lack it
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, KEPT) == 1 for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
