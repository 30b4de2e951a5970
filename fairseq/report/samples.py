"""What models say, as HTML: gaps that were filled, and prompts at the validations of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fairseq.report.charts import colour_of, dashes_of
from fairseq.report.runs import Run, number_or_none

# validations of one run that are shown of each prompt, the first and the last among them
SHOWN = 6


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


def guesses(examples: Iterable[FillMaskExample]) -> str:
    """Return cards of filled gaps."""
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
    return f"<div class=card><h3>{_prompt(example.text)}</h3>{''.join(rows)}</div>"


def _prompt(text: str) -> str:
    return escape(text).replace("&lt;mask&gt;", "<span class=mask>&hellip;</span>")


def sample_tables(runs: Sequence[Run]) -> str:
    """Return a table for each prompt of ``--sample-prompts``; nothing if no run has any.

    Of one run, at most ``SHOWN`` validations are shown, evenly spread; of several, the last one of
    each.
    """
    tables: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        rows = run.samples if len(runs) == 1 else run.samples[-1:]
        for row in _spread(rows):
            for sample in row["samples"]:
                name = f"<td>{run_name(runs, index)}</td>" if len(runs) > 1 else ""
                cells = f"<td>{row['update']:,.0f}</td><td>{_said(sample)}</td>"
                tables.setdefault(str(sample.get("prompt")), []).append(f"<tr>{name}{cells}</tr>")
    head = ("<th>Run</th>" if len(runs) > 1 else "") + "<th>Update</th><th>Output</th>"
    return "".join(
        f"<div class=card><h3>{_prompt(prompt)}</h3>"
        f"<table class=said><tr>{head}</tr>{''.join(rows)}</table></div>"
        for prompt, rows in tables.items()
    )


def _spread(rows: Sequence[Any]) -> list[Any]:
    """Return at most ``SHOWN`` of the rows, the first and the last among them."""
    if len(rows) <= SHOWN:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (SHOWN - 1))] for place in range(SHOWN)]


def _said(sample: Mapping[str, Any]) -> str:
    """Return one output as HTML: fills with their shares, or the text that follows."""
    fills = sample.get("fills")
    if not isinstance(fills, list):
        return escape(str(sample.get("continuation", "")))
    pairs = [fill for fill in fills if isinstance(fill, list) and len(fill) == 2]
    return " &nbsp; ".join(
        f"{escape(str(text).strip())} <span class=muted>{100 * (number_or_none(share) or 0):.1f}%"
        "</span>"
        for text, share in pairs
    )


def run_name(runs: Sequence[Run], index: int) -> str:
    """Return a run's name, with its colour if there are several."""
    stroke = f'stroke="{colour_of(index)}" stroke-dasharray="{dashes_of(index)}"'
    swatch = f'<svg class=swatch width=22 height=8><path d="M1 4H21" {stroke}></path></svg>'
    return (swatch if len(runs) > 1 else "") + escape(runs[index].name)
