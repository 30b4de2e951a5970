"""Runs that were cut anywhere end with the same bits as runs that were not."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    Recorder,
    config,
    content,
    digest,
    faults,
    fork,
    make_corpus,
    run,
    train,
    wait,
)

from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.distributed.signals import SAME_REQUEST_SECONDS
from fairseq.errors import CheckpointError, ConfigError, FairseqError, MissingFileError
from fairseq.logging.sinks import read_jsonl
from fairseq.tasks.base import FairseqTask
from fairseq.training.trainer import Trainer

EPOCH = 6  # updates of an epoch without accumulation
LAST = "checkpoint_last.pt"


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as its files are concerned."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@dataclasses.dataclass
class Outcome:
    """What a run computed."""

    losses: dict[int, str]
    digest: str


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Return the outcome of an uninterrupted run with some flags; each is run once."""
    known: dict[str, Outcome] = {}

    def outcome(**flags: Any) -> Outcome:
        key = repr(sorted(flags.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("reference")
            with pytest.MonkeyPatch.context() as patch:
                recorder = Recorder(patch)
                train(config(data, folder, **flags))
            known[key] = Outcome(recorder.losses, digest(folder / LAST))
        return known[key]

    return outcome


def kill_at(update: int) -> Callable[[Trainer, int], None]:
    """Return an action that ends the run before the given update, but not after a restart."""
    done = False

    def act(trainer: Trainer, calls: int) -> None:
        nonlocal done
        if trainer.get_num_updates() == update and not done:
            done = True
            raise Killed

    return act


def signal_at(update: int, number: int = signal.SIGTERM) -> Callable[[Trainer, int], None]:
    done = False

    def act(trainer: Trainer, calls: int) -> None:
        nonlocal done
        if trainer.get_num_updates() == update and not done:
            done = True
            os.kill(os.getpid(), number)

    return act


def records(folder: Path, tag: str) -> list[dict[str, Any]]:
    return [r for r in read_jsonl(folder / "metrics.jsonl") if r["tag"] == tag]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_jsonl(folder / "events.jsonl") if r["event"] == kind]


def updates_of(folder: Path, name: str = LAST) -> int:
    return int(content(folder / name)["optimizer_history"][-1]["num_updates"])


# -- bit by bit ------------------------------------------------------------------------------------

EVERY_3 = {"save_interval_updates": 3, "keep_interval_updates": 1}
SHORT = {"batch_size": 16}  # epochs of two updates
PLATEAU = {
    **SHORT,
    "lr_scheduler": "reduce_lr_on_plateau",
    "lr_threshold": 0.5,
    "lr_shrink": 0.5,
    "warmup_updates": 0,
    "max_update": 7,
}
BY_EPOCH = {"lr_scheduler": "fixed", "lr": [0.01, 0.001, 0.005], "force_anneal": 3, **SHORT}
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


# -- real processes --------------------------------------------------------------------------------


class Counted:
    """The number of updates that a forked run has begun, readable from outside."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def __call__(self, trainer: Trainer, calls: int) -> None:
        self._memory[:] = struct.pack("q", trainer.get_num_updates() + 1)

    @property
    def value(self) -> int:
        return int(struct.unpack("q", self._memory[:])[0])

    def wait_for(self, value: int) -> None:
        deadline = time.monotonic() + 30
        while self.value < value:
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.001)


def launch(
    data: Path, folder: Path, before: Callable[[Trainer, int], None] | None = None, **flags: Any
) -> int:
    """Start a run in a child."""

    def work() -> None:
        logging.disable(logging.ERROR)
        if before is not None:
            Recorder(pytest.MonkeyPatch(), before)
        train(config(data, folder, **flags))

    return fork(work)


@pytest.mark.parametrize("kills_wanted", faults(20, 200))
def test_sigkill_at_any_time_loses_nothing(
    kills_wanted: int,
    data: Path,
    tmp_path: Path,
    reference: Callable[..., Outcome],
    figure: Callable[[str, Any], None],
) -> None:
    flags = {"save_interval_updates": 2, "keep_interval_updates": 1, "update_freq": [2]}
    flags["max_update"] = 5
    expected = reference(**flags)
    seed = int(os.environ.get("FAIRSEQ_SEED", 1))
    rng = random.Random(seed)
    kills = runs = 0
    while kills < kills_wanted:
        folder = tmp_path / str(runs)
        while True:
            micro = rng.randrange(1, 12)
            by_clock = rng.random() < 0.4

            def die(trainer: Trainer, calls: int, micro: int = micro) -> None:
                """Die in the middle of an update, between two of its micro-batches."""
                original, seen = trainer.task.train_step, 0

                def step(*args: Any) -> Any:
                    nonlocal seen
                    seen += 1
                    if calls * 2 + seen == micro:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args)

                if "train_step" not in trainer.task.__dict__:
                    trainer.task.train_step = lambda *args: step(*args)

            pid = launch(data, folder, None if by_clock else die, **flags, num_workers=runs % 2 * 2)
            if by_clock:
                time.sleep(rng.uniform(0.02, 0.5))
                os.kill(pid, signal.SIGKILL)
            status = wait(pid)
            if status == 0:
                break
            assert status == -signal.SIGKILL, (seed, runs, kills)
            kills += 1
        runs += 1
        assert digest(folder / LAST) == expected.digest, (seed, runs)
        assert not [name for name in os.listdir(folder) if ".tmp-" in name]
    figure("SIGKILLs", kills)
    figure("SIGKILLs: runs ended bit-identical (half of them with 2 workers)", runs)


@pytest.mark.parametrize("signals", faults(3, 50))
def test_signals_at_any_time_save_within_one_update(
    signals: int,
    data: Path,
    tmp_path: Path,
    reference: Callable[..., Outcome],
    figure: Callable[[str, Any], None],
) -> None:
    flags: dict[str, Any] = {"max_update": 18, "total_num_update": 18}
    expected = reference(**flags)
    rng = random.Random(7)
    seconds = []
    for number in range(signals):
        folder = tmp_path / str(number)
        counted = Counted()
        pid = launch(data, folder, counted, **flags)
        counted.wait_for(rng.randrange(1, 12))
        time.sleep(rng.uniform(0, 0.02))
        which = rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
        began, started = counted.value, time.monotonic()
        os.kill(pid, which)
        assert wait(pid) == 128 + which
        seconds.append(time.monotonic() - started)
        assert began <= updates_of(folder) <= began + 1
        assert run(lambda folder=folder: train(config(data, folder, **flags))) == 0  # type: ignore[misc]
        assert digest(folder / LAST) == expected.digest
    seconds.sort()
    figure("SIGTERM, SIGUSR1 or SIGINT, all saved", signals)
    figure("signal to exit, p95 in s", round(seconds[int(0.95 * (signals - 1))], 2))


def test_a_second_signal_ends_at_once(data: Path, tmp_path: Path) -> None:
    counted = Counted()

    def slow(trainer: Trainer, calls: int) -> None:
        counted(trainer, calls)
        if calls == 1:
            time.sleep(60)

    pid = launch(data, tmp_path, slow)
    counted.wait_for(2)
    for _ in range(2):  # as a launcher does that forwards what the process got already
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    time.sleep(SAME_REQUEST_SECONDS)
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert wait(pid) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 20  # of the 60 that it sleeps
    assert not (tmp_path / LAST).exists()


def test_a_second_interrupt_ends_at_once_without_waiting(data: Path, tmp_path: Path) -> None:
    counted = Counted()

    def slow(trainer: Trainer, calls: int) -> None:
        counted(trainer, calls)
        if calls == 1:
            time.sleep(60)

    pid = launch(data, tmp_path, slow)
    counted.wait_for(2)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    assert wait(pid, 20) == 128 + signal.SIGINT
    assert not (tmp_path / LAST).exists()


def test_the_second_trainer_in_a_folder_is_refused(data: Path, tmp_path: Path) -> None:
    counted = Counted()

    def slow(trainer: Trainer, calls: int) -> None:
        counted(trainer, calls)
        if calls == 2:
            time.sleep(60)

    def second() -> None:
        try:
            train(config(data, tmp_path))
        except ConfigError as error:
            sys.exit(5 if f"process {pid} on" in str(error) else 6)

    pid = launch(data, tmp_path, slow, num_workers=2)
    counted.wait_for(3)
    assert run(second) == 5
    os.kill(pid, signal.SIGKILL)  # its workers live on for some seconds
    assert wait(pid) == -signal.SIGKILL
    assert run(lambda: train(config(data, tmp_path))) == 0


@pytest.mark.parametrize("pairs", faults(1, 20))
def test_of_two_trainers_that_start_at_once_one_is_refused(
    pairs: int,
    data: Path,
    tmp_path: Path,
    reference: Callable[..., Outcome],
    figure: Callable[[str, Any], None],
) -> None:
    rng, expected = random.Random(3), reference().digest

    def work(folder: Path, delay: float) -> None:
        time.sleep(delay)
        try:
            train(config(data, folder))
        except ConfigError as error:
            sys.exit(5 if " on " in str(error) and "process " in str(error) else 6)

    for number in range(pairs):
        folder, delay = tmp_path / str(number), rng.uniform(0, 0.02)
        begun = [fork(lambda d=d, f=folder: work(f, d)) for d in (0.0, delay)]  # type: ignore[misc]
        assert sorted(wait(pid) for pid in begun) == [0, 5]
        assert digest(folder / LAST) == expected
    figure("pairs of trainers in one folder, one refused", pairs)


# -- what a launch does with what is there ---------------------------------------------------------


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


# -- ends ------------------------------------------------------------------------------------------


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


# -- gradients that are not finite -----------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, updates: set[int], value: float = math.nan) -> None:
    """Make the loss of the chosen calls not finite."""
    original, calls = MaskedLmLoss.forward, 0

    def forward(self: Any, model: Any, sample: Any, reduce: bool = True) -> Any:
        nonlocal calls
        loss, size, log = original(self, model, sample, reduce)
        if model.training:
            calls += 1
            if calls in updates:
                loss = loss * value
        return loss, size, log

    monkeypatch.setattr(MaskedLmLoss, "forward", forward)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("flags", "value"),
    [({}, NAN), ({}, INF), ({"bf16": True}, NAN), ({"fp16": True}, INF), ({"amp": True}, NAN)],
    ids=str,
)
def test_a_gradient_that_is_not_finite_changes_nothing(
    flags: dict[str, Any],
    value: float,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison(monkeypatch, {4, 5}, value)
    before: dict[str, Any] = {}
    checked = []

    def look(trainer: Trainer, calls: int) -> None:
        weights = [p.detach().clone() for p in trainer.parameters()]
        state = json.dumps(trainer.optimizer.state_dict()["state"], default=lambda t: t.tolist())
        if calls in (4, 5):  # before the calls that follow the bad ones
            assert trainer.get_num_updates() == 3
            assert all(map(torch.equal, weights, before["weights"]))
            assert state == before["state"]
            checked.append(calls)
        before.update(weights=weights, state=state)

    recorder = Recorder(monkeypatch, look)
    train(config(data, tmp_path, max_update=8, **flags))
    assert checked == [4, 5] and set(recorder.losses) == set(range(1, 9))
    skipped = events(tmp_path, "skipped")
    assert [event["update"] for event in skipped] == [3, 3]
    assert all("gradient" in event["reason"] for event in skipped)


def test_many_bad_gradients_in_a_row_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(7, 100)))
    with pytest.raises(FairseqError, match="10 updates in a row.*--clip-norm"):
        train(config(data, tmp_path, save_interval_updates=3))
    assert updates_of(tmp_path) == 6
    poison(monkeypatch, set(range(2, 100)))
    with pytest.raises(FloatingPointError, match="loss scale"):
        train(config(data, tmp_path / "half", fp16=True, min_loss_scale=1.0))


# -- what is written beside the checkpoints --------------------------------------------------------


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
