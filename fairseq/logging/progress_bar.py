"""The progress of a loop on the console, in the formats of fairseq, and on to all sinks.

Metric lines are log records of a logger named after what was measured (``train_inner``, ``train``,
``valid``), so they share one line format and one stream with all other messages;
:func:`setup_logging` sets both. The live line of the ``rich`` format goes to stderr.

Formats: ``json`` (one object a line), ``simple`` (text), ``rich`` (a live line; ``tqdm`` is an old
name for it; it becomes ``simple`` where stderr is no terminal) and ``none``.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Number
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from fairseq.errors import check_choice
from fairseq.logging.console import setup_logging as setup_logging
from fairseq.logging.deferred import to_python
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.logging.sinks import GuardedSink, Stats, open_sinks, open_text_log

if TYPE_CHECKING:
    from fairseq.config.sections import CommonConfig

LOG_FORMATS = ("json", "none", "rich", "simple", "tqdm")


def format_stat(stat: object) -> Any:
    """Return a figure as it is printed: numbers with six significant digits, as text.

    Args:
        stat: number, meter, scalar tensor or text; anything else comes back unchanged.
    """
    if isinstance(stat, AverageMeter):
        return f"{stat.avg:.3f}"
    if isinstance(stat, TimeMeter):
        return f"{round(stat.avg):g}"
    if isinstance(stat, StopwatchMeter):
        return f"{round(stat.sum):g}"
    stat = to_python(stat)
    return f"{stat:g}" if isinstance(stat, Number) else stat


def _readable(key: str, stat: Any) -> str:
    """Return a figure for people: the time left as ``h:mm:ss``, others as they are printed."""
    return str(datetime.timedelta(seconds=stat) if key == "eta" else format_stat(stat)).strip()


class BaseProgressBar:
    """Wraps an iterable; shows figures that are logged while it is consumed.

    Args:
        iterable: what to loop over. Its ``n``, if any, is the number of items consumed before.
        epoch: the epoch, from 1.
        prefix: text after the epoch, such as ``valid on 'valid' subset``.
        log_interval: show mid-epoch figures when the step is a multiple of this; None never.
        log_file: also append the lines to this file.
        sinks: other destinations, which get every record.
    """

    def __init__(
        self,
        iterable: Iterable[object],
        epoch: int | None = None,
        prefix: str | None = None,
        log_interval: int | None = 100,
        log_file: str | os.PathLike[str] | None = None,
        sinks: Sequence[GuardedSink] = (),
    ) -> None:
        self.iterable = iterable
        self.n: int = getattr(iterable, "n", 0)
        self.i: int | None = None
        self.epoch = epoch
        self.log_interval = log_interval
        self.sinks = sinks
        self._log_file = None if log_file is None else open_text_log(log_file)
        parts = [] if epoch is None else [f"epoch {epoch:03d}"]
        self.prefix = " | ".join(parts + ([] if prefix is None else [prefix]))

    @property
    def size(self) -> int:
        """Number of items, the consumed ones included; 0 if the iterable does not know."""
        return len(self.iterable) if isinstance(self.iterable, Sized) else 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Any]:
        for index, item in enumerate(self.iterable, start=self.n):
            self.i = index
            yield item

    def __enter__(self) -> BaseProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take a live line off the terminal. Sinks stay open for the next bar."""

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        """Show figures in the middle of an epoch, if the step is a multiple of the interval.

        Args:
            stats: figures in the order to show them.
            tag: what was measured; names the logger and the TensorBoard folder.
            step: updates done so far; None counts the items instead.
        """
        self._send(stats, tag, step)
        step = step or self.i or 0
        if step > 0 and self.log_interval and step % self.log_interval == 0:
            self._show(self._line(stats), tag)

    def print(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        """Show figures at the end of an epoch or validation; arguments as for :meth:`log`."""
        self._send(stats, tag, step)
        self._show(self._summary(stats, tag), tag)

    def update_config(self, config: Mapping[str, object]) -> None:
        """Tell the sinks the settings of the run."""
        for sink in self.sinks:
            sink.update_config(config)

    def _send(self, stats: Stats, tag: str | None, step: int | None) -> None:
        for sink in self.sinks:
            sink.log(stats, tag=tag, step=step, epoch=self.epoch)

    def _show(self, line: str | None, tag: str | None) -> None:
        if line is None:
            return
        logging.getLogger(tag or "train").info(line)
        if self._log_file is not None:
            self._log_file.write(line)

    def _line(self, stats: Stats) -> str | None:
        """Return the text for :meth:`log`, None for silence."""
        return None

    def _summary(self, stats: Stats, tag: str | None) -> str | None:
        """Return the text for :meth:`print`, None for silence."""
        return None


class NoopProgressBar(BaseProgressBar):
    """Shows nothing; the sinks still get every record."""


class JsonProgressBar(BaseProgressBar):
    """One JSON object a line: epoch, fractional update, and all figures as text."""

    def _line(self, stats: Stats) -> str:
        update = None
        if self.epoch is not None and self.size:
            # epochs count from 1 and items from 0; the item at work counts as done
            update = self.epoch - 1 + ((self.i or 0) + 1) / self.size
        return self._object(stats, update)

    def _summary(self, stats: Stats, tag: str | None) -> str:
        prefix = "" if tag is None else f"{tag}_"
        return self._object({prefix + key: stat for key, stat in stats.items()}, None)

    def _object(self, stats: Stats, update: float | None) -> str:
        fields: OrderedDict[str, Any] = OrderedDict()
        if self.epoch is not None:
            fields["epoch"] = self.epoch
        if update is not None:
            fields["update"] = round(update, 3)
        fields.update((key, format_stat(stat)) for key, stat in stats.items())
        return json.dumps(fields)


class SimpleProgressBar(BaseProgressBar):
    """Plain text lines."""

    def _line(self, stats: Stats) -> str:
        shown = ", ".join(f"{key}={_readable(key, stat)}" for key, stat in stats.items())
        return f"{self.prefix}:  {(self.i or 0) + 1:5d} / {self.size:d} {shown}"

    def _summary(self, stats: Stats, tag: str | None) -> str:
        shown = (f"{key} {str(format_stat(stat)).strip()}" for key, stat in stats.items())
        return " | ".join([self.prefix, *shown])


class RichProgressBar(SimpleProgressBar):
    """A live line on stderr; the end-of-epoch lines are those of ``simple``.

    Args:
        iterable: what to loop over, as for the base class.
        num_updates: updates done before this loop.
        total_updates: updates of the whole run; with it, the bar and the remaining time are those
            of the run, else those of the loop.
        **options: as for the base class.
    """

    # Shown figures: name in the statistics, text around the value.
    FIGURES = (("loss", "loss {}"), ("ppl", "ppl {}"), ("lr", "lr {}"), ("wps", "{} tok/s"))

    # A terminal has one live line: that of a validation pauses the one of the training around it.
    _live: ClassVar[list[RichProgressBar]] = []

    def __init__(
        self,
        iterable: Iterable[Any],
        num_updates: int | None = None,
        total_updates: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(iterable, **options)
        # an epoch that is gone on with has done some of the updates itself
        self._ahead = (num_updates or 0) - self.n if total_updates else 0
        self._total = total_updates or self.size or None
        self._display: Any = None
        self._task: Any = None

    def __iter__(self) -> Iterator[Any]:
        self._open()
        try:
            for item in super().__iter__():
                yield item
                self._advance()
        finally:
            self.close()

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        if self._live:
            # two live lines would write over each other
            self._live[-1]._display.stop()
        self._live.append(self)
        self._display = progress.Progress(
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(bar_width=16),
            progress.TextColumn("{task.fields[position]}"),
            progress.TextColumn("[cyan]{task.fields[figures]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("[dim]left"),
            progress.TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            refresh_per_second=4,
            # Prints to a terminal would tear the live line; a file or pipe keeps its own stream.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task = self._display.add_task(
            # rich reads [words] as markup
            self.prefix.replace("[", r"\["),
            total=self._total,
            position="",
            figures="",
        )
        self._advance()
        self._display.start()

    def _advance(self) -> None:
        if self._display is None:  # closed by the user inside the loop
            return
        consumed = self.n if self.i is None else self.i + 1
        done = self._ahead + consumed
        position = f"{done:,}/{self._total:,}" if self._total else f"{done:,}"
        self._display.update(self._task, completed=done, position=position)

    def close(self) -> None:
        if self._display is None:
            return
        self._display.stop()
        self._display = None
        # only the innermost bar is on the screen, but any of them can be closed
        was_shown = self._live[-1] is self
        self._live.remove(self)
        if was_shown and self._live:
            self._live[-1]._display.start()

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        """Show the figures in the live line; the sinks get all of them."""
        self._send(stats, tag, step)
        if self._display is None:
            return
        shown = (text.format(_short(stats[key])) for key, text in self.FIGURES if key in stats)
        self._display.update(self._task, figures="  ".join(shown))
        wall = stats.get("wall")
        if isinstance(wall, int | float):
            # The elapsed time is that of the run, not that of this epoch.
            self._display.tasks[0].start_time = self._display.get_time() - wall


def _short(stat: object) -> str:
    """Return a figure with at most four digits, thousands and millions abbreviated."""
    stat = to_python(stat)
    if not isinstance(stat, int | float):
        return str(format_stat(stat))
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(stat) >= 10 * size or (abs(stat) >= size and unit == "M"):
            return f"{stat / size:.3g}{unit}"
    return f"{stat:.4g}"


def _resolve_format(log_format: str) -> str:
    check_choice("--log-format", log_format, LOG_FORMATS)
    if log_format not in ("rich", "tqdm"):
        return log_format
    live = sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("rich")
    return "rich" if live else "simple"


def progress_bar(
    iterator: Iterable[object],
    log_format: str | None = None,
    log_interval: int | None = 100,
    log_file: str | os.PathLike[str] | None = None,
    epoch: int | None = None,
    prefix: str | None = None,
    tensorboard_logdir: str | os.PathLike[str] | None = None,
    default_log_format: str = "rich",
    wandb_project: str | None = None,
    wandb_run_name: str | None = None,
    wandb_folder: str | os.PathLike[str] | None = None,
    jsonl_path: str | os.PathLike[str] | None = None,
    num_updates: int | None = None,
    total_updates: int | None = None,
) -> BaseProgressBar:
    """Wrap ``iterator`` in a progress bar.

    Args:
        iterator: what to loop over; ``len`` and the attribute ``n`` are used if there.
        log_format: ``json``, ``simple``, ``rich`` (old name ``tqdm``) or ``none``.
        log_interval: show mid-epoch figures when the step is a multiple of this.
        log_file: also append the metric lines to this file.
        epoch: the epoch, from 1.
        prefix: text after the epoch in the lines.
        tensorboard_logdir: folder for TensorBoard.
        default_log_format: the format if ``log_format`` is None.
        wandb_project: project of Weights & Biases.
        wandb_run_name: name of the run there.
        wandb_folder: the run folder, which keeps the id of that run.
        jsonl_path: file for JSON lines with plain numbers.
        num_updates: updates done before this loop, for the live line.
        total_updates: updates of the whole run, for the live line's remaining time.

    Raises:
        ConfigError: if there is no such format.
    """
    kind = _resolve_format(log_format or default_log_format)
    options: dict[str, Any] = {
        "epoch": epoch,
        "prefix": prefix,
        "log_interval": log_interval,
        "log_file": log_file,
        "sinks": open_sinks(
            jsonl_path,
            tensorboard_logdir,
            wandb_project,
            wandb_run_name,
            wandb_folder,
            num_updates,
        ),
    }
    if kind == "rich":
        return RichProgressBar(
            iterator, num_updates=num_updates, total_updates=total_updates, **options
        )
    classes = {"json": JsonProgressBar, "simple": SimpleProgressBar, "none": NoopProgressBar}
    return classes[kind](iterator, **options)


def progress_of(
    common: CommonConfig, iterator: Iterable[Any], prefix: str | None = None, **more: Any
) -> BaseProgressBar:
    """Wrap ``iterator`` in the progress bar that the settings ask for.

    Args:
        common: the section that says how progress is shown.
        iterator: see :func:`progress_bar`.
        prefix: see there.
        **more: further arguments of it, which win over the settings.
    """
    asked = {
        "log_format": common.log_format,
        "log_interval": common.log_interval,
        "default_log_format": "simple" if common.no_progress_bar else "rich",
    }
    return progress_bar(iterator, prefix=prefix, **{**asked, **more})
