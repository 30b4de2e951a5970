"""Runs that were cut anywhere end with the same bits as runs that were not."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, content, digest, train

from fairseq.errors import CheckpointError
from fairseq.tasks.base import FairseqTask
from fairseq.training.trainer import Trainer
from tests.training.resume.cut_runs import (
    BY_EPOCH,
    EPOCH,
    EVERY_3,
    LAST,
    PLATEAU,
    SHORT,
    Killed,
    Outcome,
    events,
    kill_at,
    records,
    signal_at,
    updates_of,
)

# flags of the run, updates after which it is cut
CUTS: dict[str, tuple[dict[str, Any], int]] = {
    "in the first epoch": (EVERY_3, 4),
    "before anything was saved": (EVERY_3, 2),
    "before the last update of an epoch": (EVERY_3, EPOCH - 1),
    "after the last update of an epoch": (EVERY_3, EPOCH),
    "in the second epoch": (EVERY_3, 8),
    "with accumulation": ({**EVERY_3, "update_freq": [4], "max_update": 5}, 4),
    "with accumulation that changes": ({**EVERY_3, "update_freq": [2, 4], "max_update": 8}, 7),
    "with accumulation, at an epoch's end": ({**EVERY_3, "update_freq": [2]}, 4),
    "with workers": ({**EVERY_3, "num_workers": 2, "max_update": 8}, 4),
    "with tokens as the limit": ({**EVERY_3, "batch_size": None, "max_tokens": 70}, 4),
    "in bf16": ({**EVERY_3, "bf16": True}, 4),
    "in bf16 without fp32 weights": ({**EVERY_3, "memory_efficient_bf16": True}, 4),
    "in fp16": ({**EVERY_3, "fp16": True, "fp16_scale_window": 4}, 5),
    "with autocast": ({**EVERY_3, "amp": True}, 4),
    "with layer drop": ({**EVERY_3, "encoder_layerdrop": 0.4}, 4),
    "with an average of the weights": (
        {**EVERY_3, "bf16": True, "store_ema": True, "ema_decay": 0.7, "ema_update_freq": 2}
        | {"ema_fp32": True},
        4,
    ),
    "with masks that repeat": ({**EVERY_3, **SHORT, "static_masks": 2}, 5),
    "with counted masks": ({**EVERY_3, "mask_count": 1}, 8),
    "with documents apart": ({**EVERY_3, "document_mask": True, "sample_break_mode": "none"}, 4),
    "with a frozen layer": ({**EVERY_3, "freeze_layers": "0", "freeze_embeddings": True}, 4),
    "in the way of the original": (
        {**EVERY_3, "data_rng": "fairseq-main", "required_batch_size_multiple": 1},
        4,
    ),
    "in the way of release 0.12": ({**EVERY_3, "data_rng": "fairseq-0.12"}, 8),
    "when the loss drives the schedule": (PLATEAU, 2),
    "when the loss drives the schedule, later": (PLATEAU, 5),
    "when epochs drive the schedule": ({**BY_EPOCH, "max_update": 7}, 4),
    "with muon, groups and a decay": (
        {**EVERY_3, "optimizer": "muon", "param_groups": "embed=lr*0.1,norm=wd0", "clip_norm": 1.0}
        | {"weight_decay": 0.1, "lr_scheduler": "wsd", "decay_updates": 4},
        7,
    ),
    "with muon in fp16": (
        {**EVERY_3, "optimizer": "muon", "fp16": True, "fp16_scale_window": 4, "lr": [1e-3]},
        5,
    ),
    "with muon in bf16 without fp32 weights": (
        {**EVERY_3, "optimizer": "muon", "memory_efficient_bf16": True, "weight_decay": 0.1},
        4,
    ),
    "when the schedule is annealed": ({**EVERY_3, **SHORT, "force_anneal": 1}, 4),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_killed_run_ends_with_the_same_bits(
    case: str,
    data: Path,
    tmp_path: Path,
    reference: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags, update = CUTS[case]
    expected = reference(**flags)
    recorder = Recorder(monkeypatch, kill_at(update))
    with pytest.raises(Killed):
        train(config(data, tmp_path, **flags))
    train(config(data, tmp_path, **flags))
    assert recorder.losses == expected.losses
    assert digest(tmp_path / LAST) == expected.digest


def test_a_prolonged_run_judges_the_losses_that_one_run_would_have_judged(
    data: Path, tmp_path: Path, reference: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation at the end of an epoch that is due for none says nothing to the schedule."""
    flags = {**PLATEAU, "validate_interval": 2, "max_update": 0}
    expected = reference(**flags, max_epoch=4)
    recorder = Recorder(monkeypatch)
    for max_epoch in (1, 2, 4):
        train(config(data, tmp_path, **flags, max_epoch=max_epoch))
    assert recorder.losses == expected.losses


def test_a_decay_branch_equals_a_run_that_had_this_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any checkpoint of the stable part, here that of a run without an end."""
    recorder = Recorder(monkeypatch)

    def end_of(name: str, **flags: Any) -> tuple[dict[int, str], dict[str, Any]]:
        recorder.losses.clear()
        wsd = {"lr_scheduler": "wsd", "decay_updates": 2, "decay_shape": "1-sqrt", "max_update": 8}
        train(config(data, tmp_path / name, **{**wsd, "total_num_update": 8, **flags}))
        return dict(recorder.losses), content(tmp_path / name / LAST)

    losses, whole = end_of("whole")
    end_of("stable", decay_updates=0, save_interval_updates=2)
    for update in (2, 4):
        source = str(tmp_path / f"stable/checkpoint_1_{update}.pt")
        found, branch = end_of(f"from {update}", restore_file=source)
        assert found == {n: losses[n] for n in range(update + 1, 9)}
        for part in ("model", "last_optimizer_state"):
            torch.testing.assert_close(branch[part], whole[part], rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("update", [2, EPOCH - 1])
def test_a_signal_saves_after_the_update_and_the_run_goes_on(
    update: int,
    number: int,
    data: Path,
    tmp_path: Path,
    reference: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = reference()
    recorder = Recorder(monkeypatch, signal_at(update, number))
    with pytest.raises(SystemExit) as end:
        train(config(data, tmp_path))
    assert end.value.code == 128 + number
    assert updates_of(tmp_path) == update + 1
    assert events(tmp_path, "stop")[-1]["reason"] == signal.Signals(number).name
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    assert signal.getsignal(number) == default
    said = f"stopped by {signal.Signals(number).name}: saved at update {update + 1}; the same"
    assert said in caplog.text
    train(config(data, tmp_path))
    assert recorder.losses == expected.losses
    assert digest(tmp_path / LAST) == expected.digest
    epochs = Counter(record["update"] for record in records(tmp_path, "valid"))
    assert epochs == {EPOCH: 1, 9: 1}
    assert [e["update"] for e in events(tmp_path, "start")] == [0, update + 1]


@pytest.mark.parametrize(
    "flags",
    [{}, {"max_update": EPOCH}, {"validate_interval_updates": 4, "patience": 9}, PLATEAU],
    ids=["epoch end", "end of the run", "interval", "plateau"],
)
def test_a_signal_during_validation_postpones_it(
    flags: dict[str, Any],
    data: Path,
    tmp_path: Path,
    reference: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = reference(**flags)
    epoch = 2 if flags is PLATEAU else EPOCH
    at = 4 if "validate_interval_updates" in flags else epoch
    valid_step, sent = Trainer.valid_step, []

    def interrupted(trainer: Trainer, sample: Any, raise_oom: bool = False) -> Any:
        if trainer.get_num_updates() == at and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return valid_step(trainer, sample, raise_oom)

    monkeypatch.setattr(Trainer, "valid_step", interrupted)
    with pytest.raises(SystemExit):
        train(config(data, tmp_path, **flags))
    state = content(tmp_path / LAST)["extra_state"]
    assert state["val_loss"] is None
    assert state["fairseq_lm"]["progress"]["validation_due"] == ("update" if at == 4 else "epoch")
    assert not records(tmp_path, "valid")
    train(config(data, tmp_path, **flags))
    assert digest(tmp_path / LAST) == expected.digest
    counts = Counter(record["update"] for record in records(tmp_path, "valid"))
    assert counts[at] == 1 and set(counts.values()) == {1}
    assert (tmp_path / "checkpoint_best.pt").exists()


def test_the_last_epoch_is_caught_up_on_too(
    data: Path, tmp_path: Path, reference: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"max_epoch": 1, "max_update": 0, "save_interval": 5}
    expected = reference(**flags)
    Recorder(monkeypatch, signal_at(EPOCH - 1))
    with pytest.raises(SystemExit):
        train(config(data, tmp_path, **flags))
    train(config(data, tmp_path, **flags))
    assert digest(tmp_path / LAST) == expected.digest
    assert [record["update"] for record in records(tmp_path, "valid")] == [EPOCH]


def test_a_milestone_of_tokens_is_caught_up_on_too(
    data: Path, tmp_path: Path, reference: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which update reached it is known before the restart alone."""
    flags = {"save_at_tokens": [1], "max_update": 3}
    expected = reference(**flags)
    Recorder(monkeypatch, signal_at(0))
    with pytest.raises(SystemExit):
        train(config(data, tmp_path, **flags))
    train(config(data, tmp_path, **flags))
    assert digest(tmp_path / LAST) == expected.digest
    assert [record["update"] for record in records(tmp_path, "valid")] == [1, 3]


def test_meters_go_on(
    data: Path, tmp_path: Path, reference: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averages over an epoch and over a log interval are those of the uninterrupted run."""
    flags = {"log_interval": 4}
    whole = tmp_path / "whole"
    train(config(data, whole, **flags))
    Recorder(monkeypatch, signal_at(2))
    with pytest.raises(SystemExit):
        train(config(data, tmp_path / "cut", **flags))
    train(config(data, tmp_path / "cut", **flags))
    for tag, at in (("train", EPOCH), ("train_inner", 4)):
        left, right = (
            next(r for r in records(folder, tag) if r["update"] == at)
            for folder in (whole, tmp_path / "cut")
        )
        for key in ("loss", "ppl", "gnorm", "wpb", "bsz", "lr"):
            assert left[key] == right[key], (tag, key)


def test_the_average_of_the_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It follows its formula, and a run without one begins it with the weights it has."""
    flags = {"store_ema": True, "ema_decay": 0.7, "ema_start_update": 2}
    name = "encoder.lm_head.dense.weight"
    expected: dict[int, torch.Tensor] = {}

    def follow(trainer: Trainer, calls: int) -> None:
        weight, done = trainer.get_model().state_dict()[name], trainer.get_num_updates()
        if calls and done >= 2 and done - 1 in expected:
            expected[done] = 0.7 * expected[done - 1] + 0.3 * weight
        else:
            expected[done] = weight.clone()

    Recorder(monkeypatch, follow)
    train(config(data, tmp_path, max_update=4))
    expected.clear()
    caplog.clear()
    train(config(data, tmp_path, max_update=8, **flags))
    assert any("no moving average" in r.getMessage() for r in caplog.records)
    state = content(tmp_path / LAST)
    last = 0.7 * expected[7] + 0.3 * state["model"][name]
    torch.testing.assert_close(state["extra_state"]["ema"][name], last, rtol=0, atol=1e-6)
    assert records(tmp_path, "train_inner")[-1]["ema_decay"] == 0.7
    seed = {"ema_seed_model": str(tmp_path / LAST), "ema_start_update": 0, "ema_decay": 1.0}
    train(config(data, tmp_path / "new", max_update=1, **{**flags, **seed}))
    kept = content(tmp_path / "new" / LAST)["extra_state"]["ema"][name]
    assert torch.equal(kept, state["model"][name])
    with pytest.raises(CheckpointError, match=r"(?s)last\.pt; .*average does not fit the model"):
        narrow = {"encoder_embed_dim": 16, "max_update": 1}
        train(config(data, tmp_path / "narrow", **{**flags, **seed, **narrow}))


def test_plug_ins_that_draw_from_global_generators_are_reproduced(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    drawn: dict[int, tuple[float, float, float]] = {}
    original = FairseqTask.train_step

    def drawing(task: Any, sample: Any, model: Any, *rest: Any) -> Any:
        drawn[rest[2]] = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return original(task, sample, model, *rest)

    monkeypatch.setattr(FairseqTask, "train_step", drawing)
    train(config(data, tmp_path / "whole"))
    whole = dict(drawn)
    drawn.clear()
    Recorder(monkeypatch, signal_at(5))
    for _ in range(2):
        try:
            train(config(data, tmp_path / "cut"))
        except SystemExit:
            random.seed(time.time())
            np.random.seed(1)
    assert drawn == whole
    assert len(set(whole.values())) == len(whole)
