"""What studies that compare ways to train share: tuning on a tenth, intervals, cost to a loss."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import studies
import verdicts

from fairseq.report.runs import load_runs


def shown(values: Sequence[float], digits: int = 1, unit: str = "") -> str:
    """Return ``mean [low, high]``."""
    mean, low, high = verdicts.interval(values)
    return f"{mean:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


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
    flags: Sequence[str],
    updates: int,
    grid: Mapping[str, Sequence[str]],
    data: Path,
    out: Path,
    schedule: Callable[[Sequence[str], int, dict[str, str]], tuple[str, ...]],
    measure: Callable[[Path], dict[str, Any]] = lambda folder: {},
) -> tuple[dict[str, str], list[Any]]:
    """Return the best choice for an arm on the first seed, and all that was tried.

    Args:
        arm: its name.
        flags: what the arm adds to the command.
        updates: of a trial.
        grid: flag -> values; all combinations are tried.
        data: the data.
        out: folder of the runs.
        schedule: makes the words of a run from flags, updates and a choice.
        measure: see :func:`studies.train`; its curve, if it has one, decides.
    """
    choices = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs = [
        studies.Run(f"tune-{arm}", studies.SEEDS[0], schedule(flags, updates, choice))
        for choice in choices
    ]
    done = [studies.train(run, data, out, measure) for run in runs]
    losses = [result["curve"][-1]["loss"] for result in done]
    best = min(range(len(choices)), key=losses.__getitem__)
    tried = [{**choice, "loss": loss} for choice, loss in zip(choices, losses, strict=True)]
    return choices[best], tried


def paired(new: Sequence[Any], old: Sequence[Any]) -> list[float]:
    """Return the differences of final losses, seed by seed."""
    return [
        one["curve"][-1]["loss"] - other["curve"][-1]["loss"]
        for one, other in zip(new, old, strict=True)
    ]


def read(path: Path) -> dict[str, Any]:
    """Return a record of results."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
