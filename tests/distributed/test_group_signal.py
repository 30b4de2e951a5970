"""A scheduler's signal reaches trainer and data workers alike; the update still ends in a save."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests import tiny_run


@pytest.mark.parametrize(("workers", "attempts", "threads"), [(1, 3, 0), (2, 3, 0), (1, 1, 1)])
def test_sigterm_to_the_whole_group_saves(
    tmp_path: Path, workers: int, attempts: int, threads: int
) -> None:
    """With a thread beside the trainer, workers come from a server of forks that hears it, too."""
    data = tiny_run.make_corpus(tmp_path / "bin")
    for attempt in range(attempts):
        folder = tmp_path / f"run{attempt}"

        def work(folder: Path = folder) -> None:
            os.setpgid(0, 0)
            for _ in range(threads):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            flags = {"max_update": 100_000, "total_num_update": 100_000, "lr": [1e-6]}
            flags |= {"num_workers": workers, "disable_validation": True}
            tiny_run.train(tiny_run.config(data, folder, **flags))

        pid = tiny_run.fork(work)
        deadline = time.monotonic() + 40
        while not (folder / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(pid, signal.SIGTERM)
        assert tiny_run.wait(pid, 30) == 128 + signal.SIGTERM
        assert tiny_run.content(folder / "checkpoint_last.pt")["model"]
