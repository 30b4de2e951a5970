"""The page: one HTML file that needs nothing else, and the charts as PNG files beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from fairseq.files.io import atomic_write
from fairseq.report.charts import AXIS_LABELS, MAX_POINTS, PANELS, THEMES, Panel, colour_of, draw
from fairseq.report.runs import Run, config_differences, load_runs, number_or_none, summarize
from fairseq.report.style import STYLE


@dataclass(frozen=True)
class FillMaskExample:
    """A sentence with a gap and what the model put there.

    Attributes:
        text: the sentence, with ``<mask>``.
        guesses: ``(filled sentence, probability, token)``, as ``fill_mask`` returns them.
        accepted: words that count as right; empty if nobody said.
    """

    text: str
    guesses: Sequence[tuple[str, float, str]]
    accepted: Sequence[str] = ()


def write_report(
    run_folders: Sequence[str | os.PathLike[str]],
    output_folder: str | os.PathLike[str],
    title: str | None = None,
    examples: Sequence[FillMaskExample] | None = None,
    axis: str = "updates",
) -> Path:
    """Write ``report.html`` about runs, and its charts as PNG files.

    Args:
        run_folders: folders with ``metrics.jsonl`` and, if there, ``config.yaml``,
            ``command.txt`` and ``versions.json``.
        output_folder: where to write; created if missing.
        title: heading; the names of the runs by default.
        examples: sentences with a gap to show with the model's guesses.
        axis: what curves are drawn against: updates, tokens, time or flops.

    Returns:
        The path of the page.

    Raises:
        MissingFileError: if a run folder or its ``metrics.jsonl`` is missing.
        DataError: if there is no record in any of them.
        FairseqError: if matplotlib is not installed.
    """
    runs = load_runs(run_folders)
    output = Path(output_folder)
    output.mkdir(parents=True, exist_ok=True)
    title = title or ", ".join(run.name for run in runs)
    body = [
        f"<header><h1>{escape(title)}</h1><div class=muted>{_subtitle(runs)}</div></header>",
        *_notes(runs),
        _section("Results", _card(_results(runs))),
        _section("Curves", _charts(runs, output, axis)),
    ]
    if examples:
        body.append(_section("Filling the gap", _guesses(examples)))
    if len(runs) > 1:
        body.append(_section("Settings that differ", _card(_differences(runs))))
    body.append(_section("How it was made", _card("".join(map(_origin, runs)))))
    path = output / "report.html"
    with atomic_write(path, "w") as handle:
        page = _document(title, "\n".join(body))
        handle.write(page.encode("utf-8", "replace").decode())  # half a surrogate pair in a name
    return path


def _document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
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


def _name(runs: Sequence[Run], index: int) -> str:
    swatch = f'<span class=swatch style="background:{colour_of(index)}"></span>'
    return (swatch if len(runs) > 1 else "") + escape(runs[index].name)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _count(number: float) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,.0f}"


# Column heading, key of the summary, how a value is written, which of several runs is the best.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str], Callable[..., Any] | None], ...] = (
    ("Valid loss", "best_valid_loss", "{:.3f}".format, min),
    ("Perplexity", "best_valid_ppl", "{:,.2f}".format, min),
    ("Accuracy", "best_valid_accuracy", "{:.1f}".format, max),
    ("At update", "best_at_update", "{:,.0f}".format, None),
    ("Train loss", "last_train_loss", "{:.3f}".format, None),
    ("Updates", "updates", "{:,.0f}".format, None),
    ("Time", "wall_seconds", _duration, None),
    ("Tokens/s", "tokens_per_second", "{:,.0f}".format, None),
    ("Parameters", "parameters", _count, None),
    ("Tokens", "tokens", _count, None),
    ("FLOPs", "flops", "{:.3g}".format, None),
    ("ELECTRA's count", "flops_electra", "{:.3g}".format, None),
)


def _results(runs: Sequence[Run]) -> str:
    """Return the table of final figures; columns that no run can fill are left out."""
    rows = [summarize(run) for run in runs]
    columns = [column for column in _COLUMNS if any(row[column[1]] is not None for row in rows)]
    head = "".join(f"<th>{heading}</th>" for heading, *_ in columns)
    lines = []
    for index, row in enumerate(rows):
        cells = [f"<td>{_name(runs, index)}</td>"]
        for _, key, write, best in columns:
            known = [other[key] for other in rows if other[key] is not None]
            is_best = best is not None and len(known) > 1 and row[key] == best(known)
            text = "&ndash;" if row[key] is None else write(row[key])
            cells.append(f"<td{' class=best' if is_best else ''}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr><th>Run</th>{head}</tr>{''.join(lines)}</table>"


def _charts(runs: Sequence[Run], output: Path, axis: str) -> str:
    """Draw the charts, save the light ones as files, and return all of them as HTML."""
    figures = [_chart(panel, runs, output, index == 0, axis) for index, panel in enumerate(PANELS)]
    is_thinned = any(len(run.records.get(run.train_tag, ())) > MAX_POINTS for run in runs)
    remark = f"Long training curves are drawn as the means of {MAX_POINTS} equal spans."
    return f"<div class=charts>{''.join(figures)}</div>" + (
        f"<p class=muted>{remark}</p>" if is_thinned else ""
    )


def _chart(panel: Panel, runs: Sequence[Run], output: Path, wide: bool, axis: str) -> str:
    images = {name: draw(panel, runs, theme, wide, axis) for name, theme in THEMES.items()}
    light, dark = images["light"], images["dark"]
    if light is None or dark is None:
        return ""
    with atomic_write(output / f"{panel.name}.png") as handle:
        handle.write(light)
    return (
        f'<figure class="card{" wide" if wide else ""}">'
        "<picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data_url(dark)}">'
        f'<img src="{_data_url(light)}" alt="{escape(panel.title)} against {AXIS_LABELS[axis]}">'
        "</picture></figure>\n"
    )


def _data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _guesses(examples: Iterable[FillMaskExample]) -> str:
    return f"<div class=guesses>{''.join(map(_guess_card, examples))}</div>"


def _guess_card(example: FillMaskExample) -> str:
    accepted = {word.strip().lower() for word in example.accepted}
    rows = []
    for _, probability, token in example.guesses:
        is_right = token.strip().lower() in accepted
        rows.append(
            f"<div class=guess><span{' class=accepted' if is_right else ''}>"
            f"{escape(token.strip())}{' &#10003;' if is_right else ''}</span>"
            f'<div class=track><div class=fill style="width:{100 * probability:.1f}%"></div></div>'
            f"<span class=share>{100 * probability:.1f}%</span></div>"
        )
    sentence = escape(example.text).replace("&lt;mask&gt;", "<span class=mask>&hellip;</span>")
    return _card(f"<h3>{sentence}</h3>{''.join(rows)}")


def _differences(runs: Sequence[Run]) -> str:
    rows = config_differences(runs)
    if not rows:
        known = any(run.config for run in runs)
        text = "None." if known else "No run folder has a config.yaml."
        return f"<span class=muted>{text}</span>"
    head = "".join(f"<th>{_name(runs, index)}</th>" for index in range(len(runs)))
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
