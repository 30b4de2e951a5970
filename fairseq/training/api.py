"""Training from Python: ``from fairseq import train``; documented in ``docs/python.md``."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.checkpoint import with_suffix
from fairseq.config.plugins import import_user_module
from fairseq.config.sections import FairseqConfig
from fairseq.config.settings import config_from_settings
from fairseq.distributed.utils import meeting
from fairseq.errors import ConfigError
from fairseq.logging.console import setup_logging
from fairseq.logging.sinks import read_jsonl
from fairseq.training.loop import run_training
from fairseq.training.watch import Callback, Record, Watch

PathLike = str | os.PathLike[str]

# random draws, figures and open logs are the process's: no callback trains, nor another thread
_RUNNING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        save_dir: the run folder.
        checkpoint: the newest checkpoint, None if there is none (``no_save``).
        best_checkpoint: the one with the best validation, None if there is none.
        updates: updates done, earlier starts included.
        final: the last record of each validation subset, by subset.
        best: the record of the first subset whose ``best_checkpoint_metric`` is best, or None.
        metrics: all records of the run, as in ``metrics.jsonl``; with ``no_save`` those that
            callbacks get.
        reason: why it ended; None if it was the last epoch.
    """

    save_dir: Path
    checkpoint: Path | None
    best_checkpoint: Path | None
    updates: int
    final: dict[str, Record]
    best: Record | None
    metrics: list[Record] = dataclasses.field(repr=False)
    reason: str | None


def train(
    settings: Mapping[str, Any] | None = None,
    *,
    recipe: PathLike | Sequence[PathLike] = (),
    on_log: Callback | None = None,
    on_validate: Callback | None = None,
) -> TrainResult:
    """Train a model in this process, with the loop of ``fairseq-train``.

    Args:
        settings: flags of ``fairseq-train`` by name, ``data`` among them:
            ``{"data": "data-bin", "arch": "roberta_tiny", "tokens_per_sample": 128}``.
        recipe: YAML files, or names of recipes of the package, as for ``--config``; settings win.
        on_log: called with the training figures every ``log_interval`` updates; True ends the run.
        on_validate: called with the figures of each validation subset; True ends the run.

    Returns:
        what the run came to. A run that was complete before does no update and returns the same.

    Raises:
        FairseqError: for settings, data and checkpoints that cannot be used.
        KeyboardInterrupt: after Ctrl-C, when the state is saved.
        SystemExit: after SIGTERM or SIGUSR1, when the state is saved: the process is to end.
    """
    for name, callback in (("on_log", on_log), ("on_validate", on_validate)):
        if callback is not None and not callable(callback):
            raise ConfigError(f"{name} is a function, not {callback!r}")
    if not _RUNNING.acquire(blocking=False):
        raise ConfigError(
            "a run of this process is under way, in another thread or around this callback: the "
            "two would share random draws, figures and logs. Wait for its end, or start a process "
            "for each"
        )
    try:
        return _train(settings, recipe, on_log, on_validate)
    finally:
        _RUNNING.release()


def _train(
    settings: Mapping[str, Any] | None,
    recipe: PathLike | Sequence[PathLike],
    on_log: Callback | None,
    on_validate: Callback | None,
) -> TrainResult:
    recipes = [recipe] if isinstance(recipe, str | os.PathLike) else recipe
    cfg = _in_one_process(config_from_settings(settings or {}, recipes))
    seen: list[Record] = []
    setup_logging()
    import_user_module(cfg.common)
    watch = Watch(_kept(seen, on_log), _kept(seen, on_validate))
    try:
        run_training(cfg, watch)
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    return _result(cfg, watch, seen)


def _in_one_process(cfg: FairseqConfig) -> FairseqConfig:
    """Return the settings by which the run is this process, or one of those torchrun started.

    Raises:
        ConfigError: if more processes are asked for: callbacks and result could not leave them.
    """
    stated = cfg.distributed_training.distributed_world_size
    distributed = meeting(cfg)
    if distributed.distributed_world_size == 1 or distributed.distributed_no_spawn:
        return cfg.changed(distributed_training=distributed)
    if stated > 1:
        raise ConfigError(
            f"train() is one process, and distributed_world_size is {stated}: start the program "
            f"with torchrun --nproc-per-node {stated}, or use fairseq-train"
        )
    return cfg.changed(distributed_training=distributed.changed(distributed_world_size=1))


def _kept(seen: list[Record], callback: Callback | None) -> Callback:
    """Return a callback that keeps records before it passes them on."""

    def keep(record: Record) -> bool | None:
        seen.append(record)
        return None if callback is None else callback(dict(record))

    return keep


def _result(cfg: FairseqConfig, watch: Watch, seen: list[Record]) -> TrainResult:
    settings, folder = cfg.checkpoint, Path(cfg.checkpoint.save_dir)
    log = folder / "metrics.jsonl"
    metrics = seen if settings.no_save or not log.is_file() else read_jsonl(log)
    metric = settings.best_checkpoint_metric
    # what only validations report
    validations = [record for record in metrics if f"best_{metric}" in record]
    final = {record["tag"]: record for record in validations}
    first = cfg.dataset.valid_subset.split(",")[0].strip()
    pick = max if settings.maximize_best_checkpoint_metric else min
    candidates = [r for r in validations if r["tag"] == first and r.get(metric) is not None]
    last, best = (
        folder / with_suffix(f"checkpoint_{name}.pt", settings.checkpoint_suffix)
        for name in ("last", "best")
    )
    newest = last if last.is_file() else watch.saved and Path(watch.saved)
    return TrainResult(
        save_dir=folder,
        checkpoint=None if settings.no_save else newest or None,
        best_checkpoint=best if best.is_file() and not settings.no_save else None,
        updates=watch.updates,
        final=final,
        best=pick(candidates, key=lambda record: record[metric], default=None),
        metrics=metrics,
        reason=watch.reason,
    )
