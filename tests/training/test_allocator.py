"""Freed memory stays with the process, unless somebody has chosen otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from fairseq.training.allocator import CHOICES

# the pages that a block of 64 MB costs the second time it is asked for
FAULTS = """
import ctypes, resource
from fairseq.training.allocator import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(1 << 26))
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def kept_and_faults(**more: str) -> tuple[str, int]:
    env = {key: value for key, value in os.environ.items() if key not in CHOICES}
    out = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**env, **more}, capture_output=True, check=True
    ).stdout.split()
    return out[0].decode(), int(out[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_second_request_finds_the_pages_of_the_first() -> None:
    kept, faults = kept_and_faults()
    assert kept == "True" and faults < 100
    kept, faults = kept_and_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False" and faults > 10_000
