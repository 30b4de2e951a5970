"""Learning-rate schedulers: base class and registry (the rows: ``lr_schedules``, ``lr_driven``).

The trainer calls ``step_update(n)`` once at the start (n = 0) and after every update,
``step_begin_epoch(e)`` before and ``step(e, val_loss)`` after epoch e = 1, 2, ...
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fairseq.config.registries import LR_SCHEDULER_REGISTRY
from fairseq.config.registry import setup_registry
from fairseq.errors import ConfigError
from fairseq.optim.base import FairseqOptimizer
from fairseq.protocols import Settings, StateDict

__all__ = [
    "LR_SCHEDULER_DATACLASS_REGISTRY",
    "LR_SCHEDULER_REGISTRY",
    "FairseqLRScheduler",
    "LegacyFairseqLRScheduler",
    "build_lr_scheduler",
    "register_lr_scheduler",
]


class FairseqLRScheduler:
    """Base of every schedule.

    Raises:
        ConfigError: if ``optimizer`` is not an optimizer of this package.
    """

    cfg: Any  # of the class that the subclass was registered with

    def __init__(self, cfg: Settings, optimizer: FairseqOptimizer) -> None:
        if optimizer is not None and not isinstance(optimizer, FairseqOptimizer):
            raise ConfigError(
                f"a learning-rate scheduler needs a FairseqOptimizer, got {type(optimizer)}"
            )
        self.cfg = cfg
        self.optimizer = optimizer
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state, plain values only."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best = state_dict.get("best", self.best)  # other schedules may keep none

    def step_begin_epoch(self, epoch: int) -> float | None:
        """Set the rate for the beginning of ``epoch`` (the first is 1)."""
        return None

    def step(self, epoch: int, val_loss: float | None = None) -> float | None:
        """Take note of the end of ``epoch`` and of its validation loss."""
        if val_loss is not None:
            self.best = val_loss if self.best is None else min(self.best, val_loss)
        return None

    def step_update(self, num_updates: int) -> float:
        """Set and return the rate after ``num_updates`` updates, that is, for the next one."""
        return self.optimizer.get_lr()


class LegacyFairseqLRScheduler(FairseqLRScheduler):
    """Base of plug-ins that are configured by a flat namespace, kept as ``self.args``."""

    def __init__(self, args: Namespace, optimizer: FairseqOptimizer) -> None:
        super().__init__(args, optimizer)
        self.args = args


build_lr_scheduler, register_lr_scheduler, _, LR_SCHEDULER_DATACLASS_REGISTRY = setup_registry(
    "--lr-scheduler",
    base_class=FairseqLRScheduler,
    default="fixed",
    registry=LR_SCHEDULER_REGISTRY,
)
