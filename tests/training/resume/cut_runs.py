"""Runs that are cut at a chosen update, and what their folders say afterwards."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import content

from fairseq.logging.sinks import read_jsonl
from fairseq.training.trainer import Trainer

EPOCH = 6  # updates of an epoch without accumulation
LAST = "checkpoint_last.pt"
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


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as its files are concerned."""


@dataclasses.dataclass
class Outcome:
    """What a run computed."""

    losses: dict[int, str]
    digest: str


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
