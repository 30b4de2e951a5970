"""Curves of runs against updates, tokens, time or operations: which there are, and PNGs of them.

PNGs are drawn with matplotlib; what the page shows is drawn by its own script.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.errors import FairseqError, install_hint
from fairseq.files.io import atomic_write
from fairseq.report.runs import Run, Series

# A training curve of more points is shown as the means of this many equal spans.
MAX_POINTS = 600

# Distinct on white and on near-black, and for the common kinds of colour blindness.
COLOURS = ("#2f7ed8", "#e8743b", "#1fa187", "#b665c9", "#c9a227", "#6b8299")
LINE_STYLES = ("-", "--", ":", "-.")
DASHES = ("none", "7 4", "2 3", "8 3 2 3")  # the same in SVG


BACKGROUND, INK, MUTED, GRID = "#ffffff", "#1d2330", "#667085", "#e9ecf1"


@dataclass(frozen=True)
class Panel:
    """One chart: which figure it shows, and how.

    Attributes:
        name: file name without ending.
        title: heading.
        key: the figure in the records.
        with_valid: whether validations have the figure too.
        log: logarithmic vertical axis.
        from_zero: the vertical axis begins at zero.
        coincide: curves may be the same for several runs; the first ones are drawn broader.
    """

    name: str
    title: str
    key: str
    with_valid: bool = False
    log: bool = False
    from_zero: bool = False
    coincide: bool = False


PANELS = (
    Panel("loss", "Loss (bits per predicted token)", "loss", with_valid=True),
    Panel("perplexity", "Perplexity", "ppl", with_valid=True, log=True),
    Panel("learning_rate", "Learning rate", "lr", from_zero=True, coincide=True),
    Panel("gradient_norm", "Gradient norm", "gnorm", from_zero=True),
    Panel("speed", "Tokens per second", "wps", from_zero=True),
)


AXIS_LABELS = {
    "updates": "updates",
    "tokens": "tokens",
    "time": "hours",
    "flops": "floating-point operations",
}


def colour_of(index: int) -> str:
    """Return the colour of the run number ``index``."""
    return COLOURS[index % len(COLOURS)]


def write_pictures(runs: Sequence[Run], folder: Path, axis: str = "updates") -> None:
    """Write the charts as PNG files, those that a run has figures for.

    Raises:
        FairseqError: if matplotlib is not installed.
    """
    for index, panel in enumerate(PANELS):
        image = draw(panel, runs, index == 0, axis)
        if image is not None:
            with atomic_write(folder / f"{panel.name}.png") as handle:
                handle.write(image)


def draw(
    panel: Panel, runs: Sequence[Run], wide: bool = False, axis: str = "updates"
) -> bytes | None:
    """Return the chart as a PNG file, None if no run has the figure.

    Args:
        panel: what to draw.
        runs: the runs, one colour each.
        wide: for the whole width of the page instead of half of it.
        axis: what curves are drawn against, a key of ``AXIS_LABELS``.

    Raises:
        FairseqError: if matplotlib is not installed.
    """
    curves = [_curves(panel, run, axis) for run in runs]
    if not any(curves):
        return None
    figure, axes = canvas((10.4, 4.6) if wide else (5.1, 3.5))
    figure.suptitle(panel.title, x=0.012, ha="left", color=INK, fontsize=11, weight="bold")
    for index, run_curves in enumerate(curves):
        style = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
        for is_valid, (updates, values) in run_curves:
            broader = min(len(runs) - 1 - index, 3) * 1.8 if panel.coincide else 0.0
            look = _valid_look(len(updates)) if is_valid else {"linewidth": 1.4 + broader}
            faint = panel.with_valid and not is_valid and any(valid for valid, _ in run_curves)
            axes.plot(
                updates,
                values,
                linestyle=style,
                color=colour_of(index),
                alpha=0.55 if faint else 1.0,
                solid_capstyle="round",
                **look,
            )
    _finish_axes(axes, panel, axis)
    _add_legend(axes, [run.name for run in runs], curves)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor=BACKGROUND)
    return buffer.getvalue()


def _curves(panel: Panel, run: Run, axis: str) -> list[tuple[bool, Series]]:
    """Return the curves of one run as ``(is a validation, series)``, empty ones left out."""
    curves = [(False, curve_of(run, run.train_tag, panel.key))]
    if panel.with_valid:
        curves += [(True, curve_of(run, tag, panel.key)) for tag in run.valid_tags]
    placed = [(is_valid, (run.along(axis, x), y)) for is_valid, (x, y) in curves]
    return [(is_valid, series) for is_valid, series in placed if series[0]]


def curve_of(run: Run, tag: str, key: str) -> Series:
    """Return the updates and values of one curve, few enough to be drawn."""
    updates, values = run.series(tag, key)
    if tag in run.valid_tags:
        return updates, values
    if key == "wps" and values and values[0] == 0:  # the clock had only just started
        updates, values = updates[1:], values[1:]
    return thinned(updates, values)


def dashes_of(index: int) -> str:
    """Return the dashes of that run's curves, as SVG writes them: those of one colour differ."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def thinned(updates: list[float], values: list[float]) -> Series:
    """Return the means of equal spans if there are more than ``MAX_POINTS`` points."""
    if len(values) <= MAX_POINTS:
        return updates, values
    edges = [len(values) * i // MAX_POINTS for i in range(MAX_POINTS + 1)]
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    return (
        [sum(updates[start:end]) / (end - start) for start, end in spans],
        [sum(values[start:end]) / (end - start) for start, end in spans],
    )


def _valid_look(points: int) -> dict[str, Any]:
    look: dict[str, Any] = {"linewidth": 2.0, "zorder": 3}
    if points <= 40:
        look.update(marker="o", markersize=5, markeredgecolor=BACKGROUND, markeredgewidth=1.2)
    return look


def canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    """Return an empty figure, in inches, and its axes.

    Raises:
        FairseqError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FairseqError(f"curves need matplotlib ({error}): {install_hint('plot')}") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(BACKGROUND)
    return figure, axes


def _finish_axes(axes: Any, panel: Panel, axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6, labelsize=9, labelcolor=MUTED)
    axes.margins(x=0.01, y=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel(AXIS_LABELS[axis], color=MUTED, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=axis != "time"))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, _: int = 0) -> str:
    """Return a short label: 1500 -> 1.5k, 0.0005 -> 5e-4."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    if value and abs(value) < 0.01:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:g}"


def _add_legend(
    axes: Any, names: Sequence[str], curves: Sequence[list[tuple[bool, Series]]]
) -> None:
    """Name the runs by colour, and training and validation by strength, where there is a choice."""
    from matplotlib.lines import Line2D

    drawn = [index for index, run_curves in enumerate(curves) if run_curves]
    kinds = {is_valid for run_curves in curves for is_valid, _ in run_curves}
    handles = []
    if len(drawn) > 1:
        for index in drawn:
            style = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
            label = _label(names[index])
            handles.append(Line2D([], [], color=colour_of(index), ls=style, lw=2.4, label=label))
    if len(kinds) > 1:
        neutral = MUTED if len(drawn) > 1 else colour_of(drawn[0])
        valid = _valid_look(1)
        handles.append(Line2D([], [], color=neutral, lw=1.4, alpha=0.55, label="training"))
        handles.append(Line2D([], [], color=neutral, label="validation", **valid))
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        budget = int(14 * axes.figure.get_figwidth())  # characters that fit in one line
        legend = axes.legend(
            handles=handles,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=max(1, min(len(handles), budget // (longest + 6))),
            borderaxespad=0.2,
            handlelength=1.6,
            columnspacing=1.6,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name between dollars is no formula


def _label(name: str) -> str:
    """Return a name that matplotlib writes as it is: it hides those that begin with ``_``."""
    shown = "".join(c if c.isprintable() else "?" for c in name[-40:])
    return f" {shown}" if shown.startswith("_") else shown
