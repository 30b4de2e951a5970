"""What studies that compare ways to train share: tuning, costs, what the runs took."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import studies
import verdicts

from fairseq.report.runs import load_runs


def flops_of(folder: Path) -> float:
    """Return the operations of a run itself, without those of the runs that it began with."""
    (run,) = load_runs([folder])
    total = run.training("flops")[-1][1]
    return total - sum(float(step.get("flops", 0)) for step in run.lineage)


def reached(curve: Sequence[dict[str, float]], loss: float) -> float | None:
    """Return the update at which a curve first is at ``loss``, between points by interpolation.

    A curve that begins below it has paid nothing: 0. One that never gets there: None.
    """
    before = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None:
                return 0.0 if point["update"] <= 1 else float(point["update"])
            fall = before["loss"] - point["loss"]
            part = (before["loss"] - loss) / fall if fall > 0 else 1.0
            return before["update"] + part * (point["update"] - before["update"])
        before = point
    return None


def tuned(
    arm: str,
    grid: Mapping[str, Sequence[str]],
    words_of: Callable[[dict[str, str]], tuple[str, ...]],
    train_all: Callable[[Sequence[studies.Run]], Sequence[Any]],
    widest: int = 0,
) -> tuple[dict[str, str], list[Any]]:
    """Return the best choice for an arm on the first seed, and all that was tried.

    Runs are whole ones: the best rate of a short one need not be that of a long one, least of all
    for a model that has something to lose.

    Args:
        arm: its name.
        grid: flag -> values; all combinations are tried.
        words_of: makes the words of a run from a choice.
        train_all: trains runs and returns their results.
        widest: how often the best at an edge is followed by twice or half of it; then the grid
            has one flag of numbers.
    """
    choices = list(itertools.product(*grid.values()))
    if widest:
        (numbers,) = grid.values()
        choices = [float(number) for number in numbers]

    def choice(values: Any) -> dict[str, str]:
        texts = values if isinstance(values, tuple) else (f"{values:g}",)
        return dict(zip(grid, texts, strict=True))

    best, losses = studies.tune(
        lambda values: studies.Run(arm, studies.SEEDS[0], words_of(choice(values))),
        choices,
        train_all,
        widest,
    )
    return choice(best), [{**choice(values), "loss": loss} for values, loss in losses.items()]


def finals(group: Sequence[Any]) -> list[float]:
    """Return the final loss of every seed."""
    return [result["curve"][-1]["loss"] for result in group]


def paired(new: Sequence[Any], old: Sequence[Any]) -> verdicts.Interval:
    """Return the difference of final losses, seed by seed."""
    return verdicts.paired(finals(new), finals(old))


def cost(record: dict[str, Any], arms: Iterable[str]) -> str:
    """Return what the runs took and where, and which of all arms were not run."""
    results, machine = record["results"], record["machine"]
    left = sorted(set(arms) - {result["name"] for result in results})
    return (
        f"{sum(result['seconds'] for result in results) / 60:.0f} minutes in all, one thread, "
        f"torch {machine['torch']}, {machine['cpu']}. Not run: {', '.join(left) or 'none'}.\n"
    )
