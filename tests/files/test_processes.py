"""Processes are not forked from one that runs threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from tiny_run import fork, wait

from fairseq.files import processes


@pytest.fixture(autouse=True)
def forks_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Python 3.12 and later, whatever this one is."""
    monkeypatch.setattr(processes, "FORKS_WARN", True)


@pytest.fixture
def thread() -> Iterator[None]:
    stop = threading.Event()
    running = threading.Thread(target=stop.wait)
    running.start()
    yield
    stop.set()
    running.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_a_process_with_threads_is_not_forked(thread: None) -> None:
    assert processes.start_method() == "forkserver"

    def alone() -> None:
        assert processes.start_method() == "fork"

    assert wait(fork(alone)) == 0


def test_other_systems_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert processes.start_method() == "spawn"


def test_what_can_be_sent() -> None:
    assert processes.can_be_sent([1, os.getpid]) and not processes.can_be_sent(lambda: None)
    assert not processes.can_be_sent(threading.Lock())


def state() -> tuple[int, int, bool]:
    """Return the process, its number of threads, and whether a stop ends it."""
    ends = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    return os.getpid(), len(os.listdir("/proc/self/task")), ends


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_workers_of_a_server_end_as_those_of_a_fork() -> None:
    """One that is asked to stop stops, and when the parent is killed, none is left behind."""
    reading, writing = os.pipe()

    def parent() -> None:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        context = processes.safe_context()
        assert context.get_start_method() == "forkserver"
        pool = ProcessPoolExecutor(1, context, processes.begin_worker)
        pid, threads, ends = pool.submit(state).result()
        os.write(writing, f"{pid} {threads} {int(ends)}\n".encode())
        time.sleep(60)

    pid = fork(parent)
    worker, threads, ends = map(int, os.read(reading, 100).split())
    assert ends and threads == 2  # with the one that waits for the parent
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)
