"""Schedules driven from outside: by the validation loss, by tables, or by the optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fairseq.config.schema import II, FairseqDataclass, option, parse_literal
from fairseq.errors import ConfigError
from fairseq.optim import lr_formulas
from fairseq.optim.base import FairseqOptimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from fairseq.optim.read_settings import learning_rates, single_rate, unless_negative
from fairseq.protocols import StateDict


@dataclass
class ReduceLROnPlateauLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler reduce_lr_on_plateau``."""

    lr_shrink: float = option(
        0.1, "factor of the rate when the validation loss stalls", above=0, below=1
    )
    lr_threshold: float = option(1e-4, "relative gain that counts as one", minimum=0)
    lr_patience: int = option(0, "epochs without gain that are tolerated", minimum=0)
    warmup_updates: int = option(0, "updates of linear warm-up", minimum=0)
    warmup_init_lr: float = option(-1.0, "rate of the first update (-1: 0)", minimum=0)
    lr: list[float] = II("optimization.lr")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@register_lr_scheduler("reduce_lr_on_plateau", dataclass=ReduceLROnPlateauLRScheduleConfig)
class ReduceLROnPlateauLRSchedule(FairseqLRScheduler):
    """Shrink the rate at the end of an epoch whose validation loss is no gain (torch's rule)."""

    def __init__(self, cfg: ReduceLROnPlateauLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "reduce_lr_on_plateau")
        self.warm = cfg.warmup_updates <= 0
        self.lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer.optimizer,
            mode="max" if cfg.maximize_best_checkpoint_metric is True else "min",
            factor=cfg.lr_shrink,
            patience=cfg.lr_patience,
            threshold=cfg.lr_threshold,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss and the counters; the rate itself is in the optimizer's state."""
        return {
            "best": self.lr_scheduler.best,
            "last_epoch": self.lr_scheduler.last_epoch,
            "num_bad_epochs": self.lr_scheduler.num_bad_epochs,
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.lr_scheduler.best = state_dict.get("best", self.lr_scheduler.best)
        self.lr_scheduler.last_epoch = state_dict.get("last_epoch", self.lr_scheduler.last_epoch)
        self.lr_scheduler.num_bad_epochs = state_dict.get("num_bad_epochs", 0)

    def step(self, epoch: int, val_loss: float | None = None) -> float:
        """Judge the validation loss of ``epoch``, once the warm-up is over."""
        if val_loss is not None and self.warm:
            self.lr_scheduler.step(val_loss)
        else:
            self.lr_scheduler.last_epoch = epoch
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        warmup = self.cfg.warmup_updates
        self.warm = num_updates > warmup or warmup <= 0
        if not self.warm:
            start = unless_negative(self.cfg.warmup_init_lr, 0.0)
            self.optimizer.set_lr(lr_formulas.linear_warmup(num_updates, warmup, start, self.lr))
        return self.optimizer.get_lr()


@dataclass
class ManualScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler manual``."""

    epoch2lr: str = option("{}", """rates by epoch, such as '{"1-4": 0.001, "5": 0.0001}'""")
    update2lr: str = option("{}", "rates by number of updates, in the same form")
    lr: list[float] = II("optimization.lr")


def _rate_table(text: str, flag: str) -> list[tuple[int, int, float]]:
    """Read ``{"2-4": 1e-3, "5,7": 1e-4}`` into rows (first, last, rate), in the order written.

    Raises:
        ConfigError: if ``text`` is no such dictionary, or a range or a rate is none.
    """
    table = parse_literal(text)
    problem = f"""{flag}: {text!r} is not of the form '{{"1-4": 0.001, "5": 0.0001}}'"""
    if not isinstance(table, dict):
        raise ConfigError(problem)
    rows = []
    for key, rate in table.items():
        for part in str(key).split(","):
            first, _, last = part.partition("-")
            try:
                row = int(first), int(last or first), float(rate)
            except (TypeError, ValueError) as error:
                raise ConfigError(problem) from error
            if row[1] < row[0] or not 0 <= row[2] < math.inf:
                raise ConfigError(
                    f"{flag}: '{part}': {rate} must be a range whose last number is not below its "
                    "first, and a rate that is finite and at least 0"
                )
            rows.append(row)
    return rows


def _latest(rows: list[tuple[int, int, float]], n: int, default: float) -> float:
    """Return the rate of the greatest number up to ``n`` that ``rows`` name."""
    # where two rows name the same number, the one written later wins
    named = [(min(n, last), order) for order, (first, last, _) in enumerate(rows) if first <= n]
    return rows[max(named)[1]][2] if named else default


@register_lr_scheduler("manual", dataclass=ManualScheduleConfig)
class ManualSchedule(FairseqLRScheduler):
    """Rates from tables.

    A rate stays in force until the next number named. Once ``update2lr`` has a row that applies,
    it wins over ``epoch2lr``; before the first row of both, the rate is that of epoch 1, of update
    1 or of ``--lr``, whichever is found first.
    """

    def __init__(self, cfg: ManualScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.epochs = _rate_table(cfg.epoch2lr, "--epoch2lr")
        self.updates = _rate_table(cfg.update2lr, "--update2lr")
        first_of_updates = _latest(self.updates, 1, learning_rates(cfg)[0])
        self.lr = _latest(self.epochs, 1, first_of_updates)

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.lr = state_dict.get("lr", self.lr)

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr = _latest(self.epochs, epoch, self.lr)
        self.optimizer.set_lr(self.lr)
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        self.optimizer.set_lr(_latest(self.updates, num_updates, self.lr))
        return self.optimizer.get_lr()


@dataclass
class PassThroughScheduleConfig(FairseqDataclass):
    """``--lr-scheduler pass_through`` has no settings."""


@register_lr_scheduler("pass_through", dataclass=PassThroughScheduleConfig)
class PassThroughScheduleSchedule(FairseqLRScheduler):
    """Hand everything to ``optimizer.lr_scheduler``, for optimizers that bring a schedule along."""

    def __init__(self, cfg: PassThroughScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.inner: FairseqLRScheduler = getattr(optimizer, "lr_scheduler", None)  # type: ignore[assignment]
        if self.inner is None:
            raise ConfigError(
                "--lr-scheduler pass_through is for optimizers that have their own schedule "
                f"(attribute lr_scheduler); {type(optimizer).__name__} has none"
            )

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.inner.load_state_dict(state_dict)

    def step_begin_epoch(self, epoch: int) -> Any:
        return self.inner.step_begin_epoch(epoch)

    def step(self, epoch: int, val_loss: float | None = None) -> Any:
        return self.inner.step(epoch, val_loss)

    def step_update(self, num_updates: int) -> float:
        return self.inner.step_update(num_updates)
