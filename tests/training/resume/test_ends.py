"""What is saved at the end of a run, and what ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import Recorder, config, content, digest, train

from fairseq.errors import ConfigError
from tests.training.resume.cut_runs import EPOCH, LAST, events, records, signal_at, updates_of


def test_the_last_epoch_is_always_saved(data: Path, tmp_path: Path) -> None:
    flags = {"max_update": 0, "max_epoch": 3, "total_num_update": 99, "save_interval": 2}
    train(config(data, tmp_path, **flags))
    state = content(tmp_path / LAST)
    assert state["optimizer_history"][-1]["num_updates"] == 3 * EPOCH
    assert state["extra_state"]["train_iterator"]["epoch"] == 4
    assert (tmp_path / "checkpoint2.pt").exists()


def test_the_last_epoch_is_saved_where_no_name_is_due(data: Path, tmp_path: Path) -> None:
    flags = {"max_update": 0, "max_epoch": 3, "total_num_update": 99, "save_interval": 2}
    train(config(data, tmp_path, **flags, no_last_checkpoints=True, disable_validation=True))
    names = {"checkpoint2.pt", f"checkpoint_3_{3 * EPOCH}.pt"}
    assert {path.name for path in tmp_path.glob("*.pt")} == names


def test_the_end_by_learning_rate_is_saved(data: Path, tmp_path: Path) -> None:
    flags = {"stop_min_lr": 0.005, "save_interval": 9, "max_update": 50, "total_num_update": 30}
    train(config(data, tmp_path, **flags))
    assert updates_of(tmp_path) == 3 * EPOCH
    # an epoch that was to be saved, and had no name to be saved under, is not on the disk
    nameless = {"save_interval": 1, "no_epoch_checkpoints": True, "no_last_checkpoints": True}
    folder = tmp_path / "nameless"
    train(config(data, folder, **{**flags, **nameless}, disable_validation=True))
    assert [path.name for path in folder.glob("*.pt")] == [f"checkpoint_3_{3 * EPOCH}.pt"]


def test_the_time_limit_counts_restarts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, tmp_path, max_update=2))
    state = torch.load(tmp_path / LAST, weights_only=True)
    state["extra_state"]["previous_training_time"] = 7200.0
    torch.save(state, tmp_path / LAST)
    recorder = Recorder(monkeypatch)
    train(config(data, tmp_path, stop_time_hours=1.5))
    assert recorder.losses == {}
    train(config(data, tmp_path, stop_time_hours=2.00001))  # 36 milliseconds more
    assert 1 <= len(recorder.losses) <= 7
    assert "stop_time_hours" in events(tmp_path, "stop")[-1]["reason"]


def test_patience_counts_across_restarts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"lr": [0.0], "warmup_updates": 0, "patience": 3, "validate_interval_updates": 2}
    flags |= {"max_update": 40, "lr_scheduler": "fixed"}
    train(config(data, tmp_path / "whole", **flags))
    assert updates_of(tmp_path / "whole") == 8  # the first validation, then three like it
    Recorder(monkeypatch, signal_at(4))
    with pytest.raises(SystemExit):
        train(config(data, tmp_path / "cut", **flags))
    assert updates_of(tmp_path / "cut") == 5
    train(config(data, tmp_path / "cut", **flags))
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)
    assert "patience" in events(tmp_path / "cut", "stop")[-1]["reason"]
    recorder = Recorder(monkeypatch)
    train(config(data, tmp_path / "cut", **flags))  # it is complete
    assert recorder.losses == {}
    train(config(data, tmp_path / "cut", **{**flags, "patience": 4}))
    assert list(recorder.losses) == [9, 10]


def test_the_best_of_another_metric_says_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of 6 bits is a perplexity of 60: neither a goal of 30 nor a best value of it."""
    flags = {"validate_interval_updates": 2, "max_update": 4, "patience": 9}
    train(config(data, tmp_path, **flags))
    recorder = Recorder(monkeypatch)
    flags |= {"best_checkpoint_metric": "ppl", "stop_at_metric": 30.0, "max_update": 6}
    best = train(config(data, tmp_path, **flags))
    assert list(recorder.losses) == [5, 6]
    extra = content(tmp_path / LAST)["extra_state"]
    assert best == extra["best"] == extra["fairseq_lm"]["progress"]["best_for_patience"] > 30


def test_patience_does_not_count_the_validation_of_an_end(data: Path, tmp_path: Path) -> None:
    flags = {"lr": [0.0], "warmup_updates": 0, "patience": 3, "validate_interval_updates": 4}
    flags |= {"lr_scheduler": "fixed", "total_num_update": None, "validate_interval": 100}
    train(config(data, tmp_path / "whole", **flags, max_update=40))
    assert updates_of(tmp_path / "whole") == 16
    for stop in (5, 7, 10, 40):  # each one ends between two validations, with one of its own
        train(config(data, tmp_path / "prolonged", **flags, max_update=stop))
    assert updates_of(tmp_path / "prolonged") == 16
    assert "patience" in events(tmp_path / "prolonged", "stop")[-1]["reason"]


def test_best_is_the_best_checkpoint_saved(data: Path, tmp_path: Path) -> None:
    best = train(config(data, tmp_path, max_update=2 * EPOCH, validate_interval_updates=5))
    saved = content(tmp_path / "checkpoint_best.pt")["extra_state"]
    assert best == saved["best"] == saved["val_loss"]
    losses = {r["update"]: r["loss"] for r in records(tmp_path, "valid")}
    assert set(losses) == {5, EPOCH, 10, 2 * EPOCH}
    assert best == min(losses[EPOCH], losses[2 * EPOCH])


@pytest.mark.parametrize("maximize", [False, True])
def test_every_record_of_a_validation_says_the_best_so_far(
    maximize: bool, data: Path, tmp_path: Path
) -> None:
    flags = {"validate_interval_updates": 5, "maximize_best_checkpoint_metric": maximize}
    for end in (EPOCH, 2 * EPOCH):  # the second one resumes
        train(config(data, tmp_path, max_update=end, **flags))
    found = records(tmp_path, "valid")
    assert len(found) >= 3 and found[0]["best_loss"] == pytest.approx(found[0]["loss"], abs=1e-3)
    saved: list[float] = []  # what is best is the best checkpoint, and the validation at hand
    pick = max if maximize else min
    for record in found:
        assert record["best_loss"] == pytest.approx(pick([*saved, record["loss"]]), abs=1e-3)
        if record["update"] % EPOCH == 0:
            saved.append(record["loss"])


def test_an_epoch_without_a_whole_update_is_refused(data: Path, tmp_path: Path) -> None:
    flags = {"update_freq": [40], "skip_remainder_batch": True}
    with pytest.raises(ConfigError, match="--update-freq 40"):
        train(config(data, tmp_path, **flags))
