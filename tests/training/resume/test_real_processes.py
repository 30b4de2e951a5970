"""Processes that are killed, or asked to end, at any time; two trainers in one folder."""

from __future__ import annotations

import logging
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Recorder, config, digest, faults, fork, run, train, wait

from fairseq.distributed.signals import SAME_REQUEST_SECONDS
from fairseq.errors import ConfigError
from fairseq.training.trainer import Trainer
from tests.training.resume.cut_runs import LAST, Outcome, updates_of


class Counted:
    """The number of updates that a forked run has begun, readable from outside.

    With ``sleeps_at`` the run then sleeps for a minute before that of its updates.
    """

    def __init__(self, sleeps_at: int | None = None) -> None:
        self._memory, self._sleeps_at = mmap.mmap(-1, 8), sleeps_at

    def __call__(self, trainer: Trainer, calls: int) -> None:
        self._memory[:] = struct.pack("q", trainer.get_num_updates() + 1)
        if calls == self._sleeps_at:
            time.sleep(60)

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
    counted = Counted(sleeps_at=1)
    pid = launch(data, tmp_path, counted)
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
    counted = Counted(sleeps_at=1)
    pid = launch(data, tmp_path, counted)
    counted.wait_for(2)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    assert wait(pid, 20) == 128 + signal.SIGINT
    assert not (tmp_path / LAST).exists()


def test_the_second_trainer_in_a_folder_is_refused(data: Path, tmp_path: Path) -> None:
    counted = Counted(sleeps_at=2)

    def second() -> None:
        try:
            train(config(data, tmp_path))
        except ConfigError as error:
            sys.exit(5 if f"process {pid} on" in str(error) else 6)

    pid = launch(data, tmp_path, counted, num_workers=2)
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
