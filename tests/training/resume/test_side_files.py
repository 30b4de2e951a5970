"""Records beside the checkpoints that are torn or cannot be written; a full disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, train

from fairseq.errors import CheckpointError
from tests.training.resume.cut_runs import EPOCH, Killed, events, kill_at, records, updates_of


def test_torn_and_unwritable_side_files_do_not_stop_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Recorder(monkeypatch, kill_at(EPOCH + 1))
    with pytest.raises(Killed):
        train(config(data, tmp_path))
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(tmp_path / name, "ab") as handle:
            handle.write(b'{"tag": "train_inner", "lo')
    train(config(data, tmp_path))
    assert [r["update"] for r in records(tmp_path, "train_inner")].count(8) == 1
    assert len(events(tmp_path, "start")) == 2

    other = tmp_path / "other"
    for name in ("metrics.jsonl", "events.jsonl", "command.txt"):
        (other / name).mkdir(parents=True)
    train(config(data, other, max_update=2))
    assert updates_of(other) == 2
    warned = " ".join(r.getMessage() for r in caplog.records)
    assert "metrics.jsonl" in warned and "command.txt" in warned


def test_a_full_disk_ends_the_run_with_a_message(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    original = torch.save

    def fail(state: Any, handle: Any, *args: Any, **kwargs: Any) -> None:
        if state["optimizer_history"][-1]["num_updates"] == 6:
            handle.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(state, handle, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="No space left on device.*disk full"):
        train(config(data, tmp_path, save_interval_updates=3))
    assert updates_of(tmp_path) == 3
    monkeypatch.setattr(torch, "save", original)
    train(config(data, tmp_path, save_interval_updates=3))
    assert updates_of(tmp_path) == 9
