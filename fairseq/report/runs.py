"""What a run folder tells about its run.

A run folder holds ``metrics.jsonl`` (see :class:`fairseq.logging.sinks.JsonlSink`) and, if the run
got that far, ``config.yaml``, ``command.txt`` and ``versions.json``.
"""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from fairseq.config.yaml_text import load_yaml
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.logging.sinks import parse_record, read_jsonl
from fairseq.report.state import State, state_of

TRAIN_TAGS = ("train_inner", "train")
COSTS = ("tokens", "flops", "flops_electra")  # totals so far

# Greater numbers are no measurement, and too great to be drawn.
GREATEST = 1e30

Record = dict[str, Any]
Series = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: short name, unique among the runs that were loaded together.
        folder: the run folder.
        records: by tag, the records in the order of their updates.
        config: settings, nested keys joined by dots.
        command: the command line, empty if unknown.
        versions: versions of the software, and ``parameters`` (how many the model has).
        notes: what could not be read.
        starts: when its processes began, Unix seconds.
        lineage: the runs whose weights this one began with, the oldest first.
        samples: what it made of ``--sample-prompts``, one record a validation.
        state: whether it is alive.
    """

    name: str
    folder: Path
    records: Mapping[str, Sequence[Record]]
    config: Mapping[str, Any]
    command: str
    versions: Mapping[str, Any]
    notes: Sequence[str]
    starts: Sequence[float] = ()
    lineage: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Record] = ()
    state: State = State("")

    @property
    def valid_tags(self) -> list[str]:
        """The validation subsets, ``valid`` first."""
        tags = (tag for tag in self.records if tag not in TRAIN_TAGS)
        return sorted(tags, key=lambda tag: (tag != "valid", tag))

    @property
    def train_tag(self) -> str:
        """The finer one of the two training tags that has records."""
        return "train_inner" if self.records.get("train_inner") else "train"

    def series(self, tag: str, key: str) -> Series:
        """Return the updates and the finite values of the figure ``key``."""
        updates: list[float] = []
        values: list[float] = []
        for record in self.records.get(tag, ()):
            value = number_or_none(record.get(key))
            if value is not None:
                updates.append(record["update"])
                values.append(value)
        return updates, values

    def along(self, axis: str, updates: Sequence[float]) -> list[float]:
        """Return where updates lie on an axis, between training records by interpolation.

        Args:
            axis: ``updates``, ``tokens``, ``flops``, or ``time`` in hours, restarts added up.
            updates: ascending.

        Returns:
            nothing if no record has the figure.
        """
        if axis == "updates":
            return list(updates)
        if axis == "time":
            points = [(update, seconds / 3600) for update, seconds in _clock(self)]
        else:
            points = self.training(axis)
        return [_between([(0.0, 0.0), *points], update) for update in updates] if points else []

    def training(self, key: str) -> list[tuple[float, float]]:
        """Return the updates with the values of a training figure, whichever tag has it."""
        series = (self.series(tag, key) for tag in TRAIN_TAGS)
        return sorted({u: v for one in series for u, v in zip(*one, strict=True)}.items())


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value at ``x`` of the line through points; that of the last one behind it."""
    place = bisect.bisect_left(points, (x,))
    if place == len(points) or place == 0:
        return points[min(place, len(points) - 1)][1]
    (left, low), (right, high) = points[place - 1], points[place]
    return low + (high - low) * (x - left) / (right - left)


def load_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read run folders.

    Raises:
        MissingFileError: if a folder or its ``metrics.jsonl`` is missing.
        DataError: if no folder is given, or none of them has a record yet.
    """
    if not folders:
        raise DataError("no run folder given: name at least one folder with a metrics.jsonl")
    paths = [Path(folder) for folder in folders]
    runs = [load_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    if not any(run.records for run in runs):
        raise DataError(
            f"no records yet in {', '.join(str(path / 'metrics.jsonl') for path in paths)}: "
            "the first ones are written after --log-interval updates"
        )
    return runs


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest endings of ``paths`` that tell them apart; equal paths get numbers."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    counted = [f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]
    return [name if names.count(name) == 1 else counted[i] for i, name in enumerate(names)]


def load_run(folder: Path, name: str) -> Run:
    """Read one run folder, which may have no record yet.

    Raises:
        MissingFileError: if the folder or its ``metrics.jsonl`` is missing.
    """
    if not folder.is_dir():
        raise MissingFileError(f"run folder not found: {folder}. Name the --save-dir of a run.")
    metrics = folder / "metrics.jsonl"
    events = _read_side(folder / "events.jsonl")
    if not metrics.is_file():
        begun = (
            "the run has begun, its first record comes after --log-interval updates (--watch waits)"
        )
        foreign = "name the --save-dir of a run; runs of the original fairseq have no such file"
        raise MissingFileError(f"no metrics.jsonl in {folder}: {begun if events else foreign}")
    notes: list[str] = []
    return Run(
        name=name,
        folder=folder,
        records=_by_tag(_read_records(metrics, notes)),
        config=_settings(_read_mapping(folder / "config.yaml", notes)),
        command=_read_text(folder / "command.txt").strip(),
        versions=_read_mapping(folder / "versions.json", notes),
        notes=notes,
        starts=_starts(events),
        lineage=_lineage(events),
        samples=_samples(folder / "samples.jsonl"),
        state=state_of(folder, events),
    )


def _read_records(path: Path, notes: list[str]) -> list[Record]:
    """Return the records that have a tag and an update; a note tells what was skipped."""
    records, skipped = [], []
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            record = parse_record(line)
            usable = record and isinstance(record.get("tag"), str)
            if record is not None and usable and number_or_none(record.get("update")) is not None:
                records.append(record)
            elif line.strip():
                skipped.append(number)
    if skipped:
        lines = f"line {skipped[0]}" + (f" and {len(skipped) - 1} more" if skipped[1:] else "")
        notes.append(f"{path}: {lines} skipped: no record of an update")
    return records


def _read_side(path: Path) -> list[Record]:
    return read_jsonl(path) if path.is_file() else []


def _starts(events: Sequence[Record]) -> list[float]:
    times = [number_or_none(event.get("time")) for event in events if event.get("event") == "start"]
    return [time for time in times if time is not None]


def _lineage(events: Sequence[Record]) -> list[Mapping[str, Any]]:
    """Return what the latest start of a run says that it descends from."""
    starts = [row for row in events if row.get("event") == "start"]
    steps = starts[-1].get("lineage") if starts else None
    return [step for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []


def _samples(path: Path) -> list[Record]:
    """Return the samples that can be shown, those made again instead of the earlier ones."""
    rows: list[Record] = []
    for record in _read_side(path):
        samples, update = record.get("samples"), number_or_none(record.get("update"))
        if isinstance(samples, list) and update is not None:
            while rows and rows[-1]["update"] >= update:
                rows.pop()
            whole = [one for one in samples if isinstance(one, Mapping)]
            rows.append({"update": update, "samples": whole})
    return rows


def _by_tag(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Sort records by tag; a run that went back to a checkpoint overwrites what it repeats."""
    tags: dict[str, list[Record]] = {}
    for record in records:
        update: Any = number_or_none(record["update"])
        rows = tags.setdefault(record["tag"], [])
        while rows and rows[-1]["update"] >= update:
            rows.pop()
        rows.append({**record, "update": update})
    return tags


def number_or_none(value: Any) -> float | int | None:
    """Return ``value`` if it is a number that can be drawn, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= GREATEST else None  # NaN is not <= anything


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file; {} and a note if it is damaged."""
    text = _read_text(path)
    if not text:
        return {}
    try:
        value = json.loads(text) if path.suffix == ".json" else load_yaml(text, path)
    except (ValueError, RecursionError, ConfigError) as error:
        notes.append(f"{path} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path} is not a mapping of names to values")
        return {}
    return value


def _settings(config: Mapping[str, object]) -> dict[str, Any]:
    """Return the settings of a run, flat; what of them was stated repeats some."""
    return _flatten({section: values for section, values in config.items() if section != "stated"})


def _flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with their keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def summarize(run: Run) -> dict[str, Any]:
    """Return the final figures of a run; None where they are unknown.

    Losses are in bits (base 2), as fairseq logs them; speed is the median of the logged ones.
    """
    tag = run.valid_tags[0] if run.valid_tags else None
    losses = run.series(tag, "loss") if tag else ([], [])
    best = min(range(len(losses[1])), key=losses[1].__getitem__) if losses[1] else None
    updates = [rows[-1]["update"] for rows in run.records.values()]
    train_losses = run.series(run.train_tag, "loss")[1]
    accuracies = run.series(tag, "accuracy")[1] if tag else []
    best_loss = None if best is None else losses[1][best]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "valid_subset": tag,
        "objective": objective_of(run),
        "best_valid_loss": best_loss,
        "best_valid_ppl": None if best_loss is None or best_loss > 1000 else 2.0**best_loss,
        "best_at_update": None if best is None else losses[0][best],
        "best_valid_accuracy": max(accuracies, default=None),
        "last_train_loss": train_losses[-1] if train_losses else None,
        "updates": max(updates, default=None),
        "wall_seconds": trained_seconds(run),
        "tokens_per_second": _median_speed(run),
        **{key: next((v for _, v in reversed(run.training(key))), None) for key in COSTS},
        "parameters": number_or_none(run.versions.get("parameters")),
        "state": run.state.kind or None,
        "ended_by": run.state.reason or None,
    }


def objective_of(run: Run) -> str | None:
    """Return what the losses of a run are of; those of two objectives cannot be compared.

    It is the criterion and, if it has another name, the task: ``masked_lm``,
    ``distillation/language_modeling``. None if the folder has no settings.
    """
    names = [run.config.get(f"{section}._name") for section in ("criterion", "task")]
    return "/".join(dict.fromkeys(str(name) for name in names if name)) or None


def trained_seconds(run: Run) -> float | None:
    """Return the seconds behind a run's records, all restarts added up; None if unknown."""
    return next((seconds for _, seconds in reversed(_clock(run))), None)


def _clock(run: Run) -> list[tuple[float, float]]:
    """Return the updates with the seconds behind them, all restarts added up.

    ``wall`` counts from the start of a process, so its last value before each start is added.
    What a restart did again, from a checkpoint, counts once.
    """
    rows = [row for tag in TRAIN_TAGS for row in run.records.get(tag, ())]
    rows = [row for row in rows if number_or_none(row.get("wall")) is not None]
    rows.sort(key=lambda row: (row["update"], row["wall"]))
    ended = [a["wall"] if _restarted(run.starts, a, b) else 0 for a, b in pairwise(rows)]
    before = accumulate([0, *ended])
    return [(row["update"], float(s + row["wall"])) for row, s in zip(rows, before, strict=False)]


def _restarted(starts: Sequence[float], before: Record, after: Record) -> bool:
    """Tell whether another process wrote ``after``: its clock is behind, or its start is known."""
    if after["wall"] < before["wall"]:
        return True
    earlier, later = number_or_none(before.get("time")), number_or_none(after.get("time"))
    if earlier is None or later is None:
        return False
    return any(earlier < start <= later for start in starts)


def trained_tokens(run: Run) -> int:
    """Return how many tokens a run was trained on: means of epochs times their updates, added up.

    What no record of an epoch covers yet is added from those of the intervals.
    """
    ends: dict[Any, Record] = {row.get("epoch"): row for row in run.records.get("train", ())}
    rows = sorted(ends.values(), key=lambda row: row["update"])
    covered = rows[-1]["update"] if rows else 0
    rows += [row for row in run.records.get("train_inner", ()) if row["update"] > covered]
    total, done = 0.0, 0
    for row in rows:
        total += (number_or_none(row.get("wpb")) or 0) * (row["update"] - done)
        done = row["update"]
    return round(total)


def _median_speed(run: Run) -> float | None:
    # The first record of a run has speed 0: its clock has only just started.
    speeds = sorted(value for value in run.series(run.train_tag, "wps")[1] if value > 0)
    return speeds[len(speeds) // 2] if speeds else None


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return the settings that are not the same in all runs, each with its value per run.

    A setting that a run does not have counts as None.
    """
    keys = sorted({key for run in runs for key in run.config})
    rows = [(key, [run.config.get(key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]
