"""Where figures go besides the console: JSON lines, TensorBoard, Weights & Biases.

Training never stops for a sink: :class:`GuardedSink` warns at the first failure and switches the
sink off. :func:`open_sinks` opens each destination once a process, however many progress bars use
it; destinations are closed at exit or by :func:`close_sinks`.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from fairseq.files.io import atomic_write
from fairseq.logging.deferred import to_python
from fairseq.logging.meters import AverageMeter, StopwatchMeter, SumMeter, TimeMeter, exact

logger = logging.getLogger(__name__)

Stats = Mapping[str, Any]
WANDB_FILE = "wandb.json"


class MetricSink:
    """A destination of figures."""

    def log(
        self,
        stats: Stats,
        tag: str | None = None,
        step: int | None = None,
        epoch: int | None = None,
    ) -> None:
        """Take one record.

        Args:
            stats: figures by name; values are numbers, meters or scalar tensors.
            tag: what was measured: ``train_inner``, ``train`` or the name of a validation subset.
            step: updates done so far.
            epoch: the epoch, from 1.
        """
        self._take(stats, tag, step, epoch)

    def _take(self, stats: Stats, tag: str | None, step: int | None, epoch: int | None) -> None:
        raise NotImplementedError

    def update_config(self, config: Mapping[str, object]) -> None:
        """Take the settings of the run; files do not need them, the run folder has them."""

    def close(self) -> None:
        """Write what is left and let go of files and connections."""
        raise NotImplementedError


def to_number(stat: object) -> int | float | None:
    """Return a figure as a number, not rounded; None if it is none (strings, empty meters)."""
    if isinstance(stat, AverageMeter | TimeMeter):
        stat = stat.avg
    elif isinstance(stat, StopwatchMeter | SumMeter):
        stat = stat.sum
    stat = to_python(exact(stat))
    return stat if isinstance(stat, int | float) else None


def _step_of(stats: Stats, step: int | None) -> int | None:
    if step is not None:
        return int(step)
    updates = to_number(stats.get("num_updates"))
    return None if updates is None else int(updates)


def as_record(
    stats: Stats, tag: str | None, step: int | None, epoch: int | None
) -> dict[str, int | float | str | None]:
    """Return figures as they stand in ``metrics.jsonl``: plain numbers, None if not finite.

    Args:
        stats: figures by name; what is no number is left out.
        tag: what was measured.
        step: updates done so far.
        epoch: the epoch, from 1.
    """
    record: dict[str, int | float | str | None] = {
        "tag": tag,
        "epoch": epoch,
        "update": _step_of(stats, step),
        "time": round(time.time(), 3),
    }
    for key, stat in stats.items():
        number = to_number(stat)
        if number is not None:
            # a figure called epoch or time must not replace the record's own
            record.setdefault(key, number if math.isfinite(number) else None)
    return record


class LineFile:
    """Appends lines to a text file, each one flushed; the folder is created.

    A last line that lacks its end is completed, so that new lines start on their own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        # bytes: reading backwards could begin in the middle of a character
        self._handle: IO[bytes] = open(path, "a+b")
        if _unfinished_tail(self._handle):
            self._handle.write(b"\n")

    def write(self, line: str) -> None:
        """Append ``line`` and a line end."""
        self._handle.write(line.encode() + b"\n")
        self._handle.flush()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _unfinished_tail(handle: IO[bytes]) -> bytes:
    """Return what follows the last line end of a file, reading backwards; usually nothing."""
    start = end = handle.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 4096)
        handle.seek(start)
        tail = handle.read(end - start)
    return tail[tail.rfind(b"\n") + 1 :]


def _remove_torn_record(path: str | os.PathLike[str]) -> None:
    """Cut off a last line that is no whole record, as an interrupted run leaves it."""
    if not os.path.exists(path):
        return
    with open(path, "r+b") as handle:
        tail = _unfinished_tail(handle)
        # a whole record whose line end is missing is kept
        if tail and parse_record(tail) is None:
            handle.truncate(handle.seek(0, os.SEEK_END) - len(tail))


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object in ``line``, None if it is blank, torn or something else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # JSON and UTF-8 errors alike, numbers of 5000 digits
        return None
    return record if isinstance(record, dict) else None


def _is_from(record: Mapping[str, object], update: float) -> bool:
    logged_at = record.get("update")
    return isinstance(logged_at, int | float) and logged_at >= update


def _set_aside(path: str | os.PathLike[str], done: int) -> None:
    """Move records of updates after ``done`` to ``<path>.superseded``: they are made again."""
    if not os.path.exists(path):
        return
    lines = Path(path).read_bytes().splitlines(keepends=True)
    again = [_is_from(parse_record(line) or {}, done + 1) for line in lines]
    if not any(again):
        return
    # kept, not deleted, and before the file loses them: a crash between the two loses nothing
    with open(f"{os.fspath(path)}.superseded", "ab") as handle:
        handle.writelines(line for line, is_again in zip(lines, again, strict=True) if is_again)
    with atomic_write(path) as handle:
        handle.writelines(line for line, is_again in zip(lines, again, strict=True) if not is_again)


def _continued(path: str | os.PathLike[str], done: int | None) -> LineFile:
    """Open a file of records where ``done`` updates left it."""
    _remove_torn_record(path)
    if done is not None:
        _set_aside(path, done)
    return LineFile(path)


class JsonlSink(MetricSink):
    """One JSON object a line: ``tag``, ``epoch``, ``update``, ``time`` (Unix) and the figures.

    Figures are plain numbers; NaN and infinities, which JSON has not, become null.

    Args:
        path: the file; it is continued if it exists, without the torn last line of a crash.
        done: updates done when the run starts or goes on; records of later ones, which an
            interrupted run left, are set aside.
    """

    def __init__(self, path: str | os.PathLike[str], done: int | None = None) -> None:
        self._lines = _continued(path, done)

    def _take(self, stats: Stats, tag: str | None, step: int | None, epoch: int | None) -> None:
        self._lines.write(json.dumps(as_record(stats, tag, step, epoch)))

    def close(self) -> None:
        self._lines.close()


class TensorBoardSink(MetricSink):
    """Event files in ``<folder>/<tag>``, one for each tag; a figure's name is its TensorBoard tag.

    Args:
        folder: the log folder to point TensorBoard at.
        done: updates done when the run starts or goes on; TensorBoard hides later ones, which an
            interrupted run wrote.

    Raises:
        ImportError: if tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], done: int | None = None) -> None:
        import tensorboardX  # noqa: F401 - fail now, with the sink's first record, not later

        self._folder = os.fspath(folder)
        self._again = None if not done else done + 1
        self._writers: dict[str, Any] = {}

    def _writer(self, tag: str) -> Any:
        if tag not in self._writers:
            from tensorboardX import SummaryWriter

            folder = os.path.join(self._folder, tag)
            self._writers[tag] = SummaryWriter(folder, purge_step=self._again)
            self._writers[tag].add_text("sys.argv", str(sys.argv))
        return self._writers[tag]

    def _take(self, stats: Stats, tag: str | None, step: int | None, epoch: int | None) -> None:
        writer = self._writer(tag or "")
        step = _step_of(stats, step)
        for key, stat in stats.items():
            number = to_number(stat)
            # that one is the step itself
            if number is not None and key != "num_updates":
                writer.add_scalar(key, number, step)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class WandbSink(MetricSink):
    """A Weights & Biases run; keys are ``<tag>/<figure>``.

    A training that goes on goes on in the same run, whose id the run folder keeps. ``WANDB_RUN_ID``
    and ``WANDB_RUN_GROUP`` win.

    Args:
        project: name of the project.
        run_name: name of the run; None lets the service choose.
        folder: the run folder; its ``wandb.json`` keeps the id.

    Raises:
        ImportError: if wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        run_name: str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        import wandb

        known = os.environ.get("WANDB_RUN_ID") or _kept_id(folder, project)
        settings = {"id": known, "group": os.environ.get("WANDB_RUN_GROUP")}
        stated: dict[str, Any] = {name: value for name, value in settings.items() if value}
        if folder is not None:
            stated["resume"] = "allow"  # "must" would fail at the first start
        self._run: Any = wandb.init(project=project, name=run_name, **stated)
        if folder is not None:
            record = {"project": project, "id": self._run.id, "name": run_name}
            with atomic_write(os.path.join(folder, WANDB_FILE), "w") as handle:
                json.dump(record, handle)

    def _take(self, stats: Stats, tag: str | None, step: int | None, epoch: int | None) -> None:
        numbers = {key: to_number(stat) for key, stat in stats.items()}
        prefix = f"{tag}/" if tag else ""
        shown = {prefix + key: number for key, number in numbers.items() if number is not None}
        self._run.log(shown, step=_step_of(stats, step))

    def update_config(self, config: Mapping[str, object]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def close(self) -> None:
        self._run.finish()


def _kept_id(folder: str | os.PathLike[str] | None, project: str) -> str | None:
    """Return the id of the run that a folder reported to in this project, None if there is none."""
    try:
        with open(os.path.join(folder or "", WANDB_FILE), encoding="utf-8") as handle:
            record = parse_record(handle.read()) or {}
    except OSError:
        return None
    return str(record["id"]) if record.get("project") == project and record.get("id") else None


class GuardedSink(MetricSink):
    """Passes calls on to a sink until one fails: then it warns once and does nothing more.

    Args:
        label: the destination, for the warning.
        open_sink: makes the sink; called with the first record, and guarded too.
    """

    def __init__(self, label: str, open_sink: Callable[[], object]) -> None:
        self.label = label
        self._open_sink: Callable[[], Any] | None = open_sink
        self._sink: Any = None

    @property
    def is_on(self) -> bool:
        """Whether records still reach the destination."""
        return self._open_sink is not None

    def _call(self, method: str, *args: object, **kwargs: object) -> None:
        if self._open_sink is None:
            return
        try:
            if self._sink is None:
                self._sink = self._open_sink()
            getattr(self._sink, method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises, training goes on
            self._open_sink = self._sink = None
            logger.warning(
                "%s is switched off, training goes on: %s: %s",
                self.label,
                type(error).__name__,
                error,
            )

    def _take(self, stats: Stats, tag: str | None, step: int | None, epoch: int | None) -> None:
        self._call("log", stats, tag=tag, step=step, epoch=epoch)

    def write(self, line: str) -> None:
        """Pass one line of text on."""
        self._call("write", line)

    def update_config(self, config: Mapping[str, object]) -> None:
        self._call("update_config", config)

    def close(self) -> None:
        """Close the sink; it stays off afterwards."""
        if self._sink is not None:
            self._call("close")
        self._open_sink = self._sink = None


_open_sinks: dict[tuple[str, str], GuardedSink] = {}


def _opened(
    kind: str, where: str | os.PathLike[str], open_sink: Callable[..., object], *args: object
) -> GuardedSink:
    """Return the process's sink of this kind and destination, opened with ``args``."""
    where = os.fspath(where)
    if not _open_sinks:
        atexit.register(close_sinks)
    if (kind, where) not in _open_sinks:
        _open_sinks[kind, where] = GuardedSink(f"{kind} ({where})", partial(open_sink, *args))
    return _open_sinks[kind, where]


def open_text_log(path: str | os.PathLike[str]) -> GuardedSink:
    """Return the process's guarded :class:`LineFile` for ``path``."""
    return _opened("log file", path, LineFile, path)


def open_records(path: str | os.PathLike[str], done: int | None = None) -> GuardedSink:
    """Return the process's guarded :class:`LineFile` of JSON objects, whose ``update`` counts.

    Args:
        path: the file; it is continued as :class:`JsonlSink` continues its own.
        done: see there.
    """
    return _opened("JSON lines", path, _continued, path, done)


def open_sinks(
    jsonl_path: str | os.PathLike[str] | None = None,
    tensorboard_logdir: str | os.PathLike[str] | None = None,
    wandb_project: str | None = None,
    wandb_run_name: str | None = None,
    wandb_folder: str | os.PathLike[str] | None = None,
    done: int | None = None,
) -> list[GuardedSink]:
    """Return the sinks that were asked for, the same ones for the same destinations.

    Args:
        jsonl_path: file for JSON lines.
        tensorboard_logdir: folder for TensorBoard.
        wandb_project: project of Weights & Biases.
        wandb_run_name: name of the run there.
        wandb_folder: the run folder, which keeps the run's id.
        done: updates done so far; what the destinations hold of later ones is superseded.
    """
    sinks = []
    if jsonl_path:
        sinks.append(_opened("JSON lines", jsonl_path, JsonlSink, jsonl_path, done))
    if tensorboard_logdir:
        folder = tensorboard_logdir
        sinks.append(_opened("TensorBoard", folder, TensorBoardSink, folder, done))
    if wandb_project:
        where = "/".join(filter(None, (wandb_project, wandb_run_name)))
        run = wandb_project, wandb_run_name, wandb_folder
        sinks.append(_opened("Weights & Biases", where, WandbSink, *run))
    return sinks


def close_sinks() -> None:
    """Close all sinks of the process; later calls of :func:`open_sinks` open them anew."""
    for sink in _open_sinks.values():
        sink.close()
    _open_sinks.clear()
    atexit.unregister(close_sinks)


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; blank and torn lines are skipped."""
    with open(path, "rb") as handle:
        return [record for line in handle if (record := parse_record(line)) is not None]
