"""What a launch does with the checkpoints that are there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, content, digest, train

from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.tasks.base import FairseqTask
from fairseq.training.trainer import Trainer
from tests.training.resume.cut_runs import (
    EPOCH,
    EVERY_3,
    LAST,
    Killed,
    Outcome,
    events,
    kill_at,
    signal_at,
)


@pytest.fixture
def finished(data: Path, tmp_path: Path) -> Path:
    """A run that has reached its last update."""
    train(config(data, tmp_path / "run", **EVERY_3))
    return tmp_path / "run"


def test_launching_a_finished_run_again_changes_nothing(
    finished: Path, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stamps() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in finished.glob("checkpoint*")}

    before, lines = stamps(), (finished / "metrics.jsonl").read_bytes()
    caplog.set_level(logging.INFO)
    recorder = Recorder(monkeypatch)
    train(config(data, finished, **EVERY_3))
    train(config(data, finished, **{**EVERY_3, "max_update": 0, "max_epoch": 1}))
    assert recorder.losses == {}
    assert stamps() == before and (finished / "metrics.jsonl").read_bytes() == lines
    said = [r.getMessage() for r in caplog.records if "nothing to do" in r.getMessage()]
    assert len(said) == 2 and "max_update: 9" in said[0] and "max_epoch: 1" in said[1]


def test_a_finished_run_can_be_prolonged(
    finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    train(config(data, finished, max_update=12))
    assert list(recorder.losses) == [10, 11, 12]


def test_a_damaged_last_checkpoint_costs_one_interval(
    data: Path, tmp_path: Path, reference: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"save_interval_updates": 3}
    expected = reference(**flags)
    recorder = Recorder(monkeypatch, kill_at(8))
    with pytest.raises(Killed):
        train(config(data, tmp_path, **flags))
    last = tmp_path / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    recorder.losses.clear()
    train(config(data, tmp_path, **flags))
    assert min(recorder.losses) == 4
    assert events(tmp_path, "start")[-1]["update"] == 3
    assert digest(last) == expected.digest
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="No other readable checkpoint"):
        train(config(data, tmp_path, **flags))


def test_a_folder_with_checkpoints_but_no_last_one_is_mentioned(
    finished: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (finished / LAST).unlink()
    train(config(data, finished, max_update=1))
    assert any(
        "begins from scratch" in r.getMessage() and "checkpoint1.pt" in r.getMessage()
        for r in caplog.records
    )


def test_fine_tuning_takes_the_weights_and_nothing_else(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = finished / LAST
    flags = {"finetune_from_model": str(model), "max_update": 3, "save_interval_updates": 2}
    seen: dict[str, Any] = {}

    def copy(trainer: Trainer, calls: int) -> None:
        if calls == 0:
            seen["model"] = {k: v.clone() for k, v in trainer.get_model().state_dict().items()}
            seen["updates"], seen["best"] = trainer.get_num_updates(), trainer.best
            seen["momenta"] = len(trainer.optimizer.state_dict()["state"])

    recorder = Recorder(monkeypatch, copy)
    train(config(data, tmp_path / "fine", **flags))
    source = content(model)["model"]
    assert all(torch.equal(source[name], seen["model"][name]) for name in source)
    assert (seen["updates"], seen["best"], seen["momenta"]) == (0, None, 0)
    assert content(tmp_path / "fine" / LAST)["extra_state"]["train_iterator"]["epoch"] == 1
    recorder.losses.clear()
    train(config(data, tmp_path / "fine", **{**flags, "max_update": 4}))
    assert list(recorder.losses) == [4]  # its own checkpoint now, not the model again
    with pytest.raises(ConfigError, match="finetune-from-model"):
        train(config(data, tmp_path / "x", finetune_from_model=str(model), reset_meters=True))


# flags, (updates, epoch, position in it, whether there is a best) at the first update
RESETS: dict[str, tuple[dict[str, Any], tuple[int, int, int, bool]]] = {
    "nothing": ({}, (9, 2, 3, True)),
    "optimizer": ({"reset_optimizer": True}, (0, 2, 3, False)),
    "meters": ({"reset_meters": True}, (9, 2, 3, False)),
    "data": ({"reset_dataloader": True}, (9, 1, 0, True)),
    "schedule": ({"reset_lr_scheduler": True}, (9, 2, 3, True)),
}


@pytest.mark.parametrize("which", RESETS)
def test_what_reset_flags_reset(
    which: str, finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, expected = RESETS[which]
    seen: list[Any] = []
    original = Trainer.begin_epoch

    def look(trainer: Trainer, epoch: int) -> None:
        if not seen:
            seen.extend([trainer.get_num_updates(), epoch, trainer.best is not None])
        original(trainer, epoch)

    monkeypatch.setattr(Trainer, "begin_epoch", look)
    recorder = Recorder(monkeypatch)
    restore = {"restore_file": str(finished / LAST), "max_update": expected[0] + 30}
    train(config(data, tmp_path / "new", **restore, **flags, max_epoch=expected[1]))
    updates, epoch, position, has_best = expected
    assert seen == [updates, epoch, has_best]
    assert len(recorder.losses) == EPOCH - position


def test_overrides_win_over_the_saved_optimizer(finished: Path, data: Path) -> None:
    train(config(data, finished, max_update=10, weight_decay=0.3))
    groups = content(finished / LAST)["last_optimizer_state"]["param_groups"]
    assert groups[0]["weight_decay"] == 0.0  # the checkpoint's
    flags = {"max_update": 11, "optimizer_overrides": "{'weight_decay': 0.3}"}
    train(config(data, finished, **flags))
    groups = content(finished / LAST)["last_optimizer_state"]["param_groups"]
    assert groups[0]["weight_decay"] == 0.3
    with pytest.raises(ConfigError, match="no setting 'weight'"):
        train(config(data, finished, max_update=12, optimizer_overrides="{'weight': 1}"))
    for name, value in (("lr", [0.1]), ("betas", 0.9), ("weight_decay", "a")):
        with pytest.raises(ConfigError, match=f"{name} is like .*, not "):
            train(
                config(
                    data, finished, max_update=12, optimizer_overrides=f"{{{name!r}: {value!r}}}"
                )
            )


def test_a_missing_file_is_an_error_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    for flag in ("restore_file", "finetune_from_model", "continue_once"):
        with pytest.raises(MissingFileError, match=flag.replace("_", "-")):
            train(config(data, tmp_path / "run", **{flag: str(tmp_path / "missing.pt")}))
    assert not list((tmp_path / "run").glob("[!.]*"))


def test_another_optimizer_or_model_is_explained(finished: Path, data: Path) -> None:
    with pytest.raises(CheckpointError, match="optimizer FairseqAdam.*--reset-optimizer"):
        train(config(data, finished, optimizer="sgd", max_update=20))
    with pytest.raises(CheckpointError, match="(?s)architectures match.*layers.2"):
        train(config(data, finished, encoder_layers=3, max_update=20))


OTHER_SETTINGS = {
    "batch size": {"batch_size": 7, "required_batch_size_multiple": 1},
    "seed": {"seed": 4},
    "order": {"update_ordered_indices_seed": True},
    "seed and order": {"seed": 4, "update_ordered_indices_seed": True},
}


@pytest.mark.parametrize("others", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_another_batch_size_or_seed_reads_every_sample_once(
    others: dict[str, Any],
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    read: dict[int, Counter[int]] = {1: Counter(), 2: Counter()}
    original = FairseqTask.train_step

    def noting(task: Any, sample: Any, *rest: Any) -> Any:
        read[task.datasets["train"].epoch].update(sample["id"].tolist())
        return original(task, sample, *rest)

    monkeypatch.setattr(FairseqTask, "train_step", noting)
    Recorder(monkeypatch, signal_at(2))
    flags = {"max_update": 0, "max_epoch": 2, "total_num_update": 30}
    with pytest.raises(SystemExit):
        train(config(data, tmp_path, **flags))
    assert sum(read[1].values()) == 12
    train(config(data, tmp_path, **{**flags, **others}))
    assert set(read[1].values()) == set(read[2].values()) == {1}
    assert read[1].keys() == read[2].keys()
    assert any("12 samples were read with other settings" in r.getMessage() for r in caplog.records)


def test_a_longer_limit_reads_what_was_too_long_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first run left out follows with what it had not come to."""
    read: Counter[int] = Counter()
    original = FairseqTask.train_step

    def noting(task: Any, sample: Any, *rest: Any) -> Any:
        read.update(sample["id"].tolist())
        return original(task, sample, *rest)

    monkeypatch.setattr(FairseqTask, "train_step", noting)
    Recorder(monkeypatch, signal_at(2))
    flags = {"max_update": 0, "max_epoch": 1, "total_num_update": 30, "disable_validation": True}
    flags["sample_break_mode"] = "eos"
    with pytest.raises(SystemExit):
        train(config(data, tmp_path, **flags, max_tokens=8))
    before = len(read)
    train(config(data, tmp_path, **flags, max_tokens=64))
    assert 0 < before < len(read) == 40 and set(read.values()) == {1}


@pytest.mark.parametrize("every", [0, 4])
def test_validation_on_the_training_split_leaves_training_alone(
    every: int, data: Path, tmp_path: Path
) -> None:
    flags = {"max_update": 0, "max_epoch": 3, "total_num_update": 99}
    flags["save_interval_updates"] = every
    names = []
    for subsets in ("valid", "valid,train"):
        folder = tmp_path / subsets
        train(config(data, folder, **flags, valid_subset=subsets))
        names.append({path.name for path in folder.glob("*.pt")})
    assert names[0] == names[1] and "checkpoint3.pt" in names[0]
    assert digest(tmp_path / "valid" / LAST) == digest(tmp_path / "valid,train" / LAST)
