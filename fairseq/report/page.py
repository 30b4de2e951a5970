"""The page: one HTML file that needs nothing else, and the charts as PNG files beside it.

Its curves are drawn by ``plot.js``, which stands in the page as the data do. The page's policy lets
this one script run and nothing be fetched, whatever the names and texts of the runs say.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from fairseq.errors import FairseqError
from fairseq.files.io import atomic_write
from fairseq.report.charts import MAX_POINTS, write_pictures
from fairseq.report.curves import as_script, page_data
from fairseq.report.listing import duration
from fairseq.report.runs import Run, config_differences, load_runs, number_or_none, summarize
from fairseq.report.samples import FillMaskExample, guesses, run_name, sample_tables
from fairseq.report.state import ALIVE
from fairseq.report.style import STYLE

logger = logging.getLogger(__name__)
SCRIPT = Path(__file__).with_name("plot.js").read_text(encoding="utf-8")


def write_report(
    run_folders: Sequence[str | os.PathLike[str]],
    output_folder: str | os.PathLike[str],
    title: str | None = None,
    examples: Sequence[FillMaskExample] | None = None,
    axis: str = "updates",
    refresh: int | None = None,
    pictures: bool | None = None,
) -> Path:
    """Write ``report.html`` about runs, and its charts as PNG files.

    Args:
        run_folders: folders with ``metrics.jsonl`` and, if there, ``config.yaml``,
            ``command.txt`` and ``versions.json``.
        output_folder: where to write; created if missing.
        title: heading; the names of the runs by default.
        examples: sentences with a gap to show with the model's guesses.
        axis: what curves are drawn against: updates, tokens, time or flops.
        refresh: seconds after which the page reads itself anew, if a run is alive.
        pictures: whether PNG files are written; None: if matplotlib is installed.

    Returns:
        The path of the page.

    Raises:
        MissingFileError: if a run folder or its ``metrics.jsonl`` is missing.
        DataError: if there is no record in any of them.
        FairseqError: if pictures are asked for and matplotlib is not installed.
    """
    runs = load_runs(run_folders)
    if not any(run.state.kind == ALIVE for run in runs):
        refresh = None
    output = Path(output_folder)
    output.mkdir(parents=True, exist_ok=True)
    more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
    title = title or ", ".join(run.name for run in runs[:4]) + more
    body = [
        f"<header><h1>{escape(title)}</h1><div class=muted>{_subtitle(runs)}</div></header>",
        *_notes(runs),
        _section("Results", _card(_results(runs))),
        _section("Curves", _curves(runs)),
    ]
    if tables := sample_tables(runs):
        body.append(_section("Samples", f"<div class=samples>{tables}</div>"))
    if examples:
        body.append(_section("Filling the gap", guesses(examples)))
    if len(runs) > 1:
        body.append(_section("Settings that differ", _card(_differences(runs))))
    body.append(_section("How it was made", _card("".join(map(_origin, runs)))))
    path = output / "report.html"
    with atomic_write(path, "w") as handle:
        page = _document(title, "\n".join(body), page_data(runs, axis, refresh))
        handle.write(page.encode("utf-8", "replace").decode())  # half a surrogate pair in a name
    if pictures is not False:
        _write_pictures(runs, output, axis, required=pictures is True)
    return path


def _write_pictures(runs: Sequence[Run], folder: Path, axis: str, required: bool) -> None:
    try:
        write_pictures(runs, folder, axis)
    except FairseqError as error:
        if required:
            raise
        logger.warning("no PNG files were written: %s", error)


def _document(title: str, body: str, data: dict[str, Any]) -> str:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="data">{as_script(data)}</script>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n{content}</section>"


def _card(content: str) -> str:
    return f"<div class=card>{content}</div>"


def _subtitle(runs: Sequence[Run]) -> str:
    times = [row.get("time") for run in runs for rows in run.records.values() for row in rows[-1:]]
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    known = [time for time in map(number_or_none, times) if time is not None]
    try:
        return f"{count}, last record {datetime.fromtimestamp(max(known)):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # none known, or no time that a calendar has
        return count


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = [note for run in runs for note in run.notes]
    notes += [f"{run.name} has no records yet" for run in runs if not run.records]
    return [f"<p class=note>{escape(note)}</p>" for note in notes]


def _state(run: Run) -> str:
    """Return how a run stands, and how far it is if it goes on."""
    kind, reason = run.state
    lines = _progress(run) if kind == ALIVE else []
    progress = "".join(f"<div class=progress>{escape(line)}</div>" for line in lines)
    chip = f'<span class="state {kind}" title="{escape(reason)}">{kind or "&ndash;"}</span>'
    return chip + progress


def _progress(run: Run) -> list[str]:
    """Return how many of the updates are done and how long the others take, if they are known."""
    most, figures = number_or_none(run.config.get("optimization.max_update")), summarize(run)
    done, seconds = figures["updates"], figures["wall_seconds"]
    if not most or not done or done > most:
        return []
    left = f"about {duration((seconds or 0) / done * (most - done))} left"
    return [f"{done:,.0f} of {most:,.0f} updates", *([left] if seconds else [])]


def _count(number: float) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,.0f}"


# Column heading, key of the summary, how a value is written, which of several runs is the best.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str], Callable[..., Any] | None], ...] = (
    ("Objective", "objective", escape, None),
    ("Valid loss (bits)", "best_valid_loss", "{:.3f}".format, min),
    ("Perplexity", "best_valid_ppl", "{:,.2f}".format, min),
    ("Accuracy", "best_valid_accuracy", "{:.1f}".format, max),
    ("At update", "best_at_update", "{:,.0f}".format, None),
    ("Train loss", "last_train_loss", "{:.3f}".format, None),
    ("Updates", "updates", "{:,.0f}".format, None),
    ("Time", "wall_seconds", duration, None),
    ("Tokens/s", "tokens_per_second", "{:,.0f}".format, None),
    ("Parameters", "parameters", _count, None),
    ("Tokens", "tokens", _count, None),
    ("FLOPs", "flops", "{:.3g}".format, None),
)


def _results(runs: Sequence[Run]) -> str:
    """Return the table of final figures; columns that no run can fill are left out.

    The best figure is marked among runs of the same objective.
    """
    rows = [summarize(run) for run in runs]
    columns = [column for column in _COLUMNS if any(row[column[1]] is not None for row in rows)]
    if len({row["objective"] for row in rows if row["best_valid_loss"] is not None}) < 2:
        columns = [column for column in columns if column[1] != "objective"]
    head = "".join(f"<th>{heading}</th>" for heading, *_ in columns)
    told = any(run.state.kind for run in runs)
    head = ("<th>State</th>" if told else "") + head
    lines = []
    for index, row in enumerate(rows):
        cells = [f"<td>{run_name(runs, index)}</td>"]
        cells += [f"<td>{_state(runs[index])}</td>"] if told else []
        for _, key, write, best in columns:
            alike = (other for other in rows if other["objective"] == row["objective"])
            known = [other[key] for other in alike if other[key] is not None]
            is_best = best is not None and len(known) > 1 and row[key] == best(known)
            text = "&ndash;" if row[key] is None else write(row[key])
            cells.append(f"<td{' class=best' if is_best else ''}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr><th>Run</th>{head}</tr>{''.join(lines)}</table>"


def _curves(runs: Sequence[Run]) -> str:
    """Return the place where the page's script draws."""
    remarks = ["Thin lines: training. Thick lines, with dots where they are few: validation."]
    if any(len(run.records.get(run.train_tag, ())) > MAX_POINTS for run in runs):
        remarks.append(f"Long training curves are drawn as the means of {MAX_POINTS} equal spans.")
    return (
        "<noscript><p class=note>The curves need JavaScript; the PNG files that were written "
        "beside this page show the same.</p></noscript>\n"
        f"<p class=muted>{' '.join(remarks)} <span id=fresh></span></p>\n"
        "<div id=curves class=charts></div>"
    )


def _differences(runs: Sequence[Run]) -> str:
    rows = config_differences(runs)
    if not rows:
        known = any(run.config for run in runs)
        text = "None." if known else "No run folder has a config.yaml."
        return f"<span class=muted>{text}</span>"
    head = "".join(f"<th>{run_name(runs, index)}</th>" for index in range(len(runs)))
    lines = [
        f"<tr><td><code>{escape(key)}</code></td>"
        + "".join(f"<td>{_setting(value)}</td>" for value in values)
        + "</tr>"
        for key, values in rows
    ]
    return f"<table class=settings><tr><th>Setting</th>{head}</tr>{''.join(lines)}</table>"


def _setting(value: object) -> str:
    return "&ndash;" if value is None else escape(str(value))


def _origin(run: Run) -> str:
    parts = [f"<p class=muted>{escape(str(run.folder))}</p>"]
    if run.command:
        parts.append(f"<pre>{escape(run.command)}</pre>")
    if run.lineage:
        lines = (
            f"{step.get('method')} of {step.get('source')} after {step.get('updates')} updates "
            f"(SHA-256 {step.get('sha256')})"
            for step in run.lineage
        )
        parts.append(f"<h3>Began with</h3><pre>{escape(chr(10).join(lines))}</pre>")
    if run.versions:
        lines = (f"{key} {value}" for key, value in run.versions.items())
        parts.append(f"<h3>Versions</h3><pre>{escape(chr(10).join(lines))}</pre>")
    if run.config:
        lines = (f"{key}: {value}" for key, value in run.config.items())
        parts.append(f"<h3>Settings</h3><pre>{escape(chr(10).join(lines))}</pre>")
    return f"<details><summary>{escape(run.name)}</summary>{''.join(parts)}</details>"
