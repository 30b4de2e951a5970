"""Validation: the one loop of training runs and of fairseq-validate.

Both read the same batches in the precision of the run and reduce the figures batch by batch, so
that they print the same. Who calls hands in the step: the trainer's adds up over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fairseq import utils
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.base import FairseqCriterion
from fairseq.data.datasets.base import FairseqDataset
from fairseq.distributed.utils import get_rank, get_world_size
from fairseq.errors import DataError
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from fairseq.models.ema import EMA
from fairseq.protocols import LoggingOutput, Model, Sample
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.precision import autocast


def valid_subsets(cfg: FairseqConfig) -> list[str]:
    """Return the names of the subsets that a model is evaluated on."""
    return cfg.dataset.valid_subset.replace(" ", "").split(",")


def joins(cfg: FairseqConfig, subset: str) -> bool:
    """Tell whether ``valid1``, ``valid2``, ... belong to a subset, when a model is evaluated."""
    return subset == "valid" and bool(cfg.dataset.combine_valid_subsets)


def _longest(cfg: FairseqConfig, task: FairseqTask, model: Model) -> Any:
    """Return how long a sample may be."""
    return utils.resolve_max_positions(
        task.max_positions(), model.max_positions(), cfg.dataset.max_tokens_valid
    )


def refuse_long_samples(cfg: FairseqConfig, task: FairseqTask, model: Model, subset: str) -> None:
    """Refuse a loaded subset whose samples do not fit, unless they are to be skipped.

    Raises:
        DataError: naming the first of them.
    """
    dataset, limits = task.dataset(subset), _longest(cfg, task, model)
    skip = cfg.dataset.skip_invalid_size_inputs_valid_test
    if limits is not None and not skip and isinstance(dataset, FairseqDataset):
        task.filter_indices_by_size(np.arange(len(dataset)), dataset, limits)


def valid_batches(
    cfg: FairseqConfig,
    task: FairseqTask,
    model: Model,
    subset: str,
    epoch: int = 1,
    dataset: Any = None,
    **more: Any,
) -> Any:
    """Return the iterator over a loaded subset.

    Args:
        cfg: the configuration of the run.
        task: holds the subset.
        model: says how long a sample may be.
        subset: its name.
        epoch: whose masks are drawn; those of validations never change.
        dataset: the subset, the one that the task holds if None.
        **more: arguments of ``task.get_batch_iterator``, such as this process's share.
    """
    data = cfg.dataset
    return task.get_batch_iterator(
        dataset=task.dataset(subset) if dataset is None else dataset,
        max_tokens=data.max_tokens_valid,
        max_sentences=data.batch_size_valid,
        max_positions=_longest(cfg, task, model),
        ignore_invalid_inputs=data.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=data.required_batch_size_multiple,
        seed=cfg.common.seed,
        num_workers=data.num_workers,
        epoch=epoch,
        data_buffer_size=data.data_buffer_size,
        **more,
    )


def averaged_model(task: FairseqTask, ema: EMA | None) -> dict[str, Any]:
    """Return the averaged model as a further argument of the steps of tasks that ask for it."""
    return {"ema_model": ema.get_model()} if ema is not None and task.uses_ema else {}


@torch.no_grad()
def valid_step(
    cfg: FairseqConfig,
    task: FairseqTask,
    model: Model,
    criterion: FairseqCriterion,
    sample: Sample,
    device: torch.device,
    ema: EMA | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Evaluate a batch that lies on the device; return ``(sample_size, logging_output)``."""
    for module in (model, criterion):
        if module.training:  # walking all parts of a small model takes as long as one of its layers
            module.eval()
    with autocast(cfg, device):
        _, size, log = task.valid_step(sample, model, criterion, **averaged_model(task, ema))
    return size, log


def log_figures(
    task: FairseqTask, criterion: FairseqCriterion, logs: list[LoggingOutput]
) -> dict[str, Any]:
    """Log what a batch came to; return it."""
    if not any(logs):
        return {}
    with metrics.aggregate() as aggregated:
        task.reduce_metrics(logs, criterion)
    return dict(aggregated.get_smoothed_values())


def begin_validation(cfg: FairseqConfig, task: FairseqTask, model: Model, epoch: int) -> None:
    """Seed torch if the settings say so, and tell the task; before the batches are cut."""
    if cfg.dataset.fixed_validation_seed is not None:
        utils.set_torch_seed(cfg.dataset.fixed_validation_seed)
    task.begin_valid_epoch(epoch, model)


def steps_of(limit: int | None, batches: int) -> int:
    """Return how often each process evaluates a batch if all together evaluate ``limit``.

    Args:
        limit: None for all.
        batches: how many each process has, fillers included.
    """
    return batches if limit is None else min(batches, -(-limit // get_world_size()))


def _first(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    """Yield this process's share of the first ``limit`` batches, which are dealt in turn."""
    rank, world = get_rank(), get_world_size()
    for number, sample in enumerate(batches):
        if limit is not None and number * world >= limit:
            break
        # an empty batch becomes a filler: the others' figures are added up with those of all
        yield sample if limit is None or number * world + rank < limit else {}


def figures_of(
    cfg: FairseqConfig,
    task: FairseqTask,
    model: Model,
    subset: str,
    batches: Iterable[Any],
    step: Callable[[Any], Mapping[str, Any] | None],
    limit: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], MetersDict] | None:
    """Evaluate a subset; the task may add figures in ``post_validate``.

    Args:
        cfg: the configuration of the run.
        task: its task.
        model: for the task's hook.
        subset: its name, for messages.
        batches: of the subset.
        step: evaluates a batch and logs its figures.
        limit: evaluate so many batches only, those of all processes together.
        stopped: asked after each batch.

    Returns:
        ``(figures as they are printed, their meters)``; None if it was stopped.

    Raises:
        DataError: if there is nothing to evaluate.
    """
    with metrics.aggregate(new_root=True) as aggregated:
        for sample in _first(batches, limit):
            step(sample)
            if stopped():
                return None
        stats = dict(aggregated.get_smoothed_values())
        if not stats:
            raise DataError(
                f"there is no batch to validate on in '{subset}'; the original's rule "
                f"(--data-rng {cfg.dataset.data_rng}) drops batches that are no multiple of "
                f"--required-batch-size-multiple {cfg.dataset.required_batch_size_multiple}"
            )
        task.post_validate(model, stats, aggregated)
    return stats, aggregated
