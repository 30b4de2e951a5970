"""What the page's script draws: the curves of runs as JSON that no text in it can end or escape."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from fairseq.report.charts import AXIS_LABELS, PANELS, colour_of, curve_of, dashes_of
from fairseq.report.runs import COSTS, Run

# no figures: where and when a record was made, and what the axes show
_PLACES = {"tag", "epoch", "update", "time", "num_updates", "wall", "train_wall", *COSTS}

_OF_TRAINING = {panel.key for panel in PANELS if not panel.with_valid}


def page_data(runs: Sequence[Run], axis: str, refresh: int | None = None) -> dict[str, Any]:
    """Return what ``plot.js`` reads.

    Args:
        runs: the runs.
        axis: what curves are drawn against at first.
        refresh: seconds after which the page is to be read anew; None for never.
    """
    drawn = [_run_data(run, index) for index, run in enumerate(runs)]
    keys = {curve["key"] for run in drawn for curve in run["curves"]}
    panels = [
        {"name": p.name, "title": p.title, "key": p.key, "log": p.log, "zero": p.from_zero}
        | {"exact": p.coincide}  # what is set, not measured, is not smoothed
        for p in PANELS
        if p.key in keys
    ]
    more = sorted(keys - {panel.key for panel in PANELS})
    page = {"axis": axis, "written": round(time.time()), "refresh": refresh}
    return {**page, "panels": panels, "more": more, "runs": drawn}


def _run_data(run: Run, index: int) -> dict[str, Any]:
    """Return the curves of a run; those over the same updates share where these lie on the axes."""
    grids: dict[tuple[float, ...], int] = {}
    curves = []
    for tag in [run.train_tag, *run.valid_tags]:
        for key in sorted({key for row in run.records.get(tag, ()) for key in row} - _PLACES):
            valid = tag in run.valid_tags
            updates, values = curve_of(run, tag, key)
            if updates and not (valid and key in _OF_TRAINING):
                grid = grids.setdefault(tuple(updates), len(grids))
                row = {"key": key, "tag": tag if valid else "training", "valid": valid}
                curves.append({**row, "grid": grid, "y": _rounded(values)})
    places = [{axis: run.along(axis, updates) for axis in AXIS_LABELS} for updates in grids]
    shown = [{axis: _rounded(x) for axis, x in grid.items() if x} for grid in places]
    look = {"name": run.name, "colour": colour_of(index), "dash": dashes_of(index)}
    return {**look, "grids": shown, "curves": curves}


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def as_script(data: Any) -> str:
    """Return JSON that can stand in a ``<script>`` element, whatever the texts in it say."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII alone
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
