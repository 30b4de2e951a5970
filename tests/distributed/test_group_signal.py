"""A scheduler's signal reaches trainer and data workers alike; the update still ends in a save."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import tiny_run


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_to_the_whole_group_saves(tmp_path: Path, workers: int) -> None:
    data = tiny_run.make_corpus(tmp_path / "bin")
    for attempt in range(3):
        folder = tmp_path / f"run{attempt}"

        def work(folder: Path = folder) -> None:
            os.setpgid(0, 0)
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
