"""Runs as a table of text: ``fairseq-report runs/* --list``."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fairseq.errors import MissingFileError
from fairseq.logging.console import printable
from fairseq.report.runs import Run, load_run, run_names, summarize, trained_tokens

COLUMNS = ("run", "updates", "tokens", "time", "valid loss (bits)", "of", "at update", "state")


def load_listed(folders: Sequence[str | os.PathLike[str]]) -> tuple[list[Run], list[str]]:
    """Read the folders that hold runs, empty ones too; return them and the names of the others.

    Raises:
        MissingFileError: if none of them holds a run.
    """
    runs, others = [], []
    paths = [Path(folder) for folder in folders]
    for path, name in zip(paths, run_names(paths), strict=True):
        try:
            runs.append(load_run(path, name))
        except MissingFileError as error:
            others.append(str(path))
            reason = error
    if len(others) == 1 and not runs:
        raise reason
    if not runs:
        raise MissingFileError(f"{len(others)} folders were named and none holds a run: {reason}")
    return runs, others


def table(runs: Sequence[Run]) -> str:
    """Return one line a run under a heading; what is unknown is a dash."""
    texts = {COLUMNS.index(name) for name in ("run", "of", "state")}
    return aligned([COLUMNS, *map(_row, runs)], texts)


def aligned(rows: Sequence[Sequence[str]], texts: Collection[int]) -> str:
    """Return rows of cells as lines: the columns ``texts`` to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def _row(run: Run) -> tuple[str, ...]:
    figures = summarize(run)
    tokens = figures["tokens"] if figures["tokens"] is not None else trained_tokens(run) or None
    return (
        printable(run.name),
        _text(figures["updates"], "{:,.0f}"),
        _text(tokens, "{:,.0f}"),
        "-" if figures["wall_seconds"] is None else duration(figures["wall_seconds"]),
        _text(figures["best_valid_loss"], "{:.4f}"),
        printable(figures["objective"] or "") or "-",
        _text(figures["best_at_update"], "{:,.0f}"),
        printable(": ".join(part for part in run.state if part)) or "-",
    )


def _text(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def duration(seconds: float) -> str:
    """Return a time as hours:minutes:seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
