"""Finished runs, kept in one JSON file, and the table made from them."""

from __future__ import annotations

import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairseq.errors import DataError
from fairseq.evaluation.glue.tasks import TASKS
from fairseq.files.io import atomic_write
from fairseq.report.listing import aligned
from fairseq.training.run_folder import versions

Run = dict[str, Any]


class Results:
    """The runs of ``results.json``: looked up before one begins, added when it ends.

    Raises:
        DataError: if the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self.runs = list(content["runs"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path} is no file of results ({error!r}); choose another --out, or move it"
                ) from error

    def find(self, task: str, seed: int, digest: str) -> Run | None:
        """Return the finished run of that task, seed and settings."""
        for run in self.runs:
            if (run["task"], run["seed"], run["digest"]) == (task, seed, digest):
                return run
        return None

    def add(self, run: Run) -> None:
        """Keep a run, in the place of one of the same task, seed and settings."""
        known = self.find(run["task"], run["seed"], run["digest"])
        self.runs = [*(old for old in self.runs if old is not known), run]
        self.write(self.runs)

    def write(self, runs: Iterable[Run]) -> None:
        """Write the file with a summary of ``runs``; all runs are kept."""
        content = {
            "command": shlex.join(sys.argv),
            "versions": versions(),
            "summary": summarize(runs),
            "runs": self.runs,
        }
        with atomic_write(self.path, "w") as handle:
            json.dump(content, handle, indent=1)
            handle.write("\n")


def summarize(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return mean and spread over the seeds of every task and score.

    ``best`` is of the epoch that validated best, ``last`` of the last one; ``spread`` is the
    standard deviation of ``best`` (n - 1), 0 for one seed; ``majority`` that of always answering
    with the most frequent label.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        for score in run["scores"]["best"]:
            groups.setdefault((run["task"], score, run["digest"]), []).append(run)
    rows = []
    for (task, score, digest), members in groups.items():
        best = [run["scores"]["best"][score] for run in members]
        rows.append(
            {
                "task": task,
                "score": score,
                "seeds": sorted(run["seed"] for run in members),
                "best": statistics.fmean(best),
                "spread": statistics.stdev(best) if len(best) > 1 else 0.0,
                "last": statistics.fmean(run["scores"]["last"][score] for run in members),
                "majority": members[0]["majority"][score],
                "digest": digest,
            }
        )
    return sorted(rows, key=lambda row: list(TASKS).index(row["task"]))


def table(rows: list[dict[str, Any]]) -> str:
    """Return a summary as text, scores times 100."""
    cells = [["task", "score", "seeds", "best", "spread", "last", "majority"]]
    for row in rows:
        figures = [100 * row[key] for key in ("best", "spread", "last", "majority")]
        shown = ["-" if math.isnan(figure) else f"{figure:.1f}" for figure in figures]
        cells.append([row["task"], row["score"], str(len(row["seeds"])), *shown])
    return aligned(cells, {0, 1})
