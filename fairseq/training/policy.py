"""When a run saves, validates and stops: functions of settings and counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fairseq.config.sections import CheckpointConfig, FairseqConfig, OptimizationConfig


class Moment(NamedTuple):
    """Where a run stands.

    Attributes:
        updates: how many were done.
        epoch: the epoch at work, from 1.
        end_of_epoch: whether its last batch was read.
        updated: whether the latest update changed anything; if not, counts of updates were looked
            at before.
        at_milestone: whether a number of updates or tokens was reached that is to be saved.
    """

    updates: int
    epoch: int
    end_of_epoch: bool
    updated: bool = True
    at_milestone: bool = False


def due(cfg: FairseqConfig, now: Moment) -> tuple[bool, bool]:
    """Tell whether the intervals ask for saving and for validating, wherever the run ends."""
    data, checkpoint = cfg.dataset, cfg.checkpoint

    def interval(length: int) -> bool:
        return now.updated and length > 0 and now.updates > 0 and now.updates % length == 0

    late_enough = now.updates >= data.validate_after_updates
    do_save = (
        (now.end_of_epoch and now.epoch % checkpoint.save_interval == 0)
        or (interval(checkpoint.save_interval_updates) and late_enough)
        or (now.updated and now.at_milestone)
    )
    do_validate = (
        (not now.end_of_epoch and do_save)
        or (now.end_of_epoch and now.epoch % data.validate_interval == 0)
        or interval(data.validate_interval_updates)
    )
    return do_save, do_validate


def is_last_epoch(cfg: FairseqConfig, now: Moment) -> bool:
    """Tell whether the last epoch that was asked for has ended."""
    return now.end_of_epoch and 0 < cfg.optimization.max_epoch <= now.epoch


def is_time(cfg: FairseqConfig, now: Moment, at_limit: bool) -> tuple[bool, bool]:
    """Tell whether to save and whether to validate now; ``at_limit`` if the run ends here."""
    data, is_last = cfg.dataset, at_limit or is_last_epoch(cfg, now)
    allowed = now.updates >= data.validate_after_updates and not data.disable_validation
    do_save, do_validate = due(cfg, now)
    return do_save or is_last, (do_validate or is_last) and allowed


def reached_limit(
    settings: OptimizationConfig, updates: int, hours: float, tokens: int = 0
) -> str | None:
    """Return why training must end after so many updates, hours and tokens, None if it need not."""
    if settings.max_update and updates >= settings.max_update:
        return f"num_updates: {updates} >= max_update: {settings.max_update}"
    if 0 < settings.max_tokens_total <= tokens:
        return f"tokens: {tokens} >= max_tokens_total: {settings.max_tokens_total}"
    if 0 < settings.stop_time_hours < hours:
        return (
            f"cumulative_training_time: {hours} > stop_time_hours: "
            f"{settings.stop_time_hours} hour(s)"
        )
    if 0 < settings.lr_time_budget < hours:
        return f"cumulative_training_time: {hours} > lr_time_budget: {settings.lr_time_budget}"
    return None


def validations_ahead(cfg: FairseqConfig, done: int, left: int | None, epoch_updates: int) -> int:
    """Return how often a run will validate, about: epochs are taken to end at multiples.

    Args:
        cfg: the configuration.
        done: updates so far.
        left: updates to come; None, which counts as none, for no limit.
        epoch_updates: updates of an epoch.
    """
    data = cfg.dataset
    if data.disable_validation or not left:
        return 0
    every = (
        cfg.checkpoint.save_interval_updates,
        data.validate_interval_updates,
        data.validate_interval * epoch_updates,
    )
    last = done + left
    first = max(done + 1, data.validate_after_updates)
    moments = {last}.union(*(range(-(-first // n) * n, last + 1, n) for n in every if n > 0))
    return len(moments)


def asks_other_metric(settings: CheckpointConfig, progress: dict[str, Any]) -> bool:
    """Tell whether best values until here are of another metric; forget them, and note this one."""
    asked = [settings.best_checkpoint_metric, settings.maximize_best_checkpoint_metric]
    other = bool(progress.get("metric", asked) != asked)
    if other:
        for name in ("best_for_patience", "validations_without_progress"):
            progress.pop(name, None)
    progress["metric"] = asked
    return other


def note_validation(progress: dict[str, Any], value: float, maximize: bool) -> None:
    """Count validations without progress, across restarts: ``progress`` is in checkpoints."""
    best = progress.get("best_for_patience")
    sign = 1 if maximize else -1
    if math.isfinite(value) and (best is None or sign * value > sign * best):
        progress.update(best_for_patience=value, validations_without_progress=0)
    else:
        count = progress.get("validations_without_progress", 0)
        progress["validations_without_progress"] = count + 1


def validated_enough(settings: CheckpointConfig, progress: dict[str, Any]) -> str | None:
    """Return why training must end after these validations, None if it need not."""
    if 0 < settings.patience <= progress.get("validations_without_progress", 0):
        return f"patience: no better validation among the last {settings.patience}"
    best, goal = progress.get("best_for_patience"), settings.stop_at_metric
    if best is None or goal is None:
        return None
    if best >= goal if settings.maximize_best_checkpoint_metric else best <= goal:
        return f"stop_at_metric: {settings.best_checkpoint_metric} {best} has reached {goal}"
    return None
