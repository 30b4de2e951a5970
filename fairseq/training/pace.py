"""How far a run has to go, and how long that takes."""

from __future__ import annotations

import datetime
import math
import time
from typing import NamedTuple

from fairseq.config.sections import OptimizationConfig


class Position(NamedTuple):
    """Where a run stands.

    Attributes:
        updates: how many were done.
        tokens: how many it was trained on, padding not counted.
        epoch: the epoch at work, from 1.
        left_of_epoch: updates until its end.
        epoch_updates: updates of a whole epoch.
    """

    updates: int
    tokens: int
    epoch: int
    left_of_epoch: int
    epoch_updates: int


def updates_left(
    settings: OptimizationConfig, at: Position, tokens_an_update: float | None
) -> tuple[int | None, str]:
    """Return how many updates are left, and the flag that ends the run.

    Args:
        settings: their limits of updates, epochs and tokens count; the clock and patience do not.
        at: where the run stands.
        tokens_an_update: on average; None if unknown.

    Returns:
        ``(updates, flag and value)``; ``(None, "")`` if there is no such limit.
    """
    limits: dict[str, int] = {}
    if settings.max_update:
        limits[f"--max-update {settings.max_update}"] = settings.max_update - at.updates
    if settings.max_epoch:
        # epochs behind the present one are whole; of the present one the rest counts
        epochs = settings.max_epoch - at.epoch
        limits[f"--max-epoch {settings.max_epoch}"] = epochs * at.epoch_updates + at.left_of_epoch
    if settings.max_tokens_total and tokens_an_update:
        tokens = settings.max_tokens_total - at.tokens
        name = f"--max-tokens-total {settings.max_tokens_total}"
        limits[name] = math.ceil(tokens / tokens_an_update)
    if not limits:
        return None, ""
    # whichever limit is reached first ends the run
    first = min(limits, key=lambda name: limits[name])
    return max(0, limits[first]), first


def seconds_left(
    settings: OptimizationConfig, updates: int | None, seconds_an_update: float, spent: float
) -> float | None:
    """Return the seconds until the run ends, None if nothing bounds it.

    Args:
        settings: their limits of hours count.
        updates: updates that are left, None for no limit.
        seconds_an_update: of the clock.
        spent: seconds trained so far, restarts added up.
    """
    hours = (settings.stop_time_hours, settings.lr_time_budget)
    limits = [limit * 3600 - spent for limit in hours if limit > 0]
    if updates is not None:
        limits.append(updates * seconds_an_update)
    return max(0.0, min(limits)) if limits else None


class Pace:
    """Measures what an update takes in all, its share of validations and checkpoints included.

    The first update of a process is left out, as it is slower than the others.
    """

    def __init__(self) -> None:
        self._start: tuple[int, float] | None = None

    def seconds_an_update(self, updates: int) -> float | None:
        """Return the seconds on average, None before the second update.

        Args:
            updates: how many were done; call it after the first one, too.
        """
        now = time.perf_counter()
        if self._start is None or updates < self._start[0]:  # the run has gone back
            self._start = updates, now
        done = updates - self._start[0]
        return (now - self._start[1]) / done if done else None


def clock(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``."""
    return str(datetime.timedelta(seconds=round(seconds)))


def scaled(number: float) -> str:
    """Return a number with three digits and the prefix of its size: ``4.2 M``, ``311 G``."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    # 999.5 would be shown as 1e+03
    while abs(number) >= 999.5 and len(prefixes) > 1:
        number /= 1000
        del prefixes[0]
    return f"{number:.3g} {prefixes[0]}"
