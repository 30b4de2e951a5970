"""Evaluating a checkpoint on data: what fairseq-validate does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairseq import checkpoint, utils
from fairseq.checkpoint.layout import explain
from fairseq.config.sections import DatasetConfig, FairseqConfig
from fairseq.criterions.base import FairseqCriterion
from fairseq.data.batches.read import workers_ended
from fairseq.distributed.device import choose_device
from fairseq.errors import CheckpointError
from fairseq.hub.load import load_by_settings
from fairseq.logging.progress_bar import progress_of
from fairseq.models.base import BaseFairseqModel
from fairseq.models.ema import EMA
from fairseq.protocols import Sample
from fairseq.tasks import validation
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.precision import to_device, weights_dtype
from fairseq.teacher import attach_teacher

logger = logging.getLogger("fairseq.evaluation")


def validate(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Evaluate a checkpoint with its own settings, except for those that are given.

    Args:
        flat: flat settings: ``path`` (several checkpoints are joined with ``:``; the first is
            evaluated), ``data``, ``valid_subset`` and whatever else should differ from the
            checkpoint, such as ``tokens_per_sample``.

    Returns:
        the statistics of every subset, as they are printed.

    Raises:
        CheckpointError: if the criterion has parameters that the checkpoint does not hold.
        ConfigError: if no path is given.
        DataError: if there is nothing to evaluate.
    """
    models, config, task = load_by_settings(flat)
    device = choose_device(config)
    dtype = weights_dtype(config.common, device)
    model = models[0].to(device=device, dtype=dtype)
    criterion = task.build_criterion(config.criterion)
    attach_teacher(config, task, model, criterion, required=False)
    path = utils.split_paths(flat["path"])[0]
    load_criterion(criterion, path)
    criterion = criterion.to(device=device, dtype=dtype)
    ema = _load_ema(config, model, path) if task.uses_ema else None

    def step(sample: Sample) -> None:
        if len(sample) > 0:
            sample = to_device(sample, device, dtype)
            _, log = validation.valid_step(config, task, model, criterion, sample, device, ema)
            validation.log_figures(task, criterion, [log])

    results = {}
    for subset in validation.valid_subsets(config):
        task.load_dataset(subset, combine=validation.joins(config, subset), epoch=1)
        results[subset] = _validate_subset(config, task, model, subset, step, flat)
    return results


def _load_ema(config: FairseqConfig, model: BaseFairseqModel, path: str) -> EMA | None:
    """Return the moving average that a checkpoint keeps beside the model, if it was asked for."""
    if not config.ema.store_ema:
        return None
    ema = EMA(model, config.ema)
    ema.load_state(checkpoint.load_checkpoint_to_cpu(path)["extra_state"])
    return ema


def load_criterion(criterion: FairseqCriterion, path: str) -> None:
    """Give a criterion with parameters those of the checkpoint.

    Raises:
        CheckpointError: if it has none, or others.
    """
    if not utils.has_parameters(criterion):
        return
    state = checkpoint.load_checkpoint_to_cpu(path).get("criterion")
    if not state:
        raise CheckpointError(
            f"{path} holds no parameters of {type(criterion).__name__}, which has some: it was "
            "trained with another criterion, or grew, which leaves them behind. Name a criterion "
            "without parameters, such as --criterion masked_lm, or train it first"
        )
    try:
        criterion.load_state_dict(state)
    except RuntimeError as error:
        raise explain(error, path) from error


def _validate_subset(
    config: FairseqConfig,
    task: FairseqTask,
    model: BaseFairseqModel,
    subset: str,
    step: Callable[[Any], Any],
    flat: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the statistics of a subset, or of its first batches: a limit of the training's own
    validations does not count here.
    """
    data = config.dataset
    validation.begin_validation(config, task, model, epoch=1)
    every = validation.valid_batches(config, task, model, subset)
    if data.data_rng != "philox" and "data_rng" not in flat:
        _say_other_mode(subset, getattr(every, "frozen_batches", []), data)
    batches = every.next_epoch_itr(shuffle=False)
    bar = progress_of(config.common, batches, f"valid on '{subset}' subset")
    with workers_ended(), bar as progress:
        figures = validation.figures_of(
            config, task, model, subset, progress, step, flat.get("max_valid_steps")
        )
        assert figures is not None, "nothing stops it"
        progress.print(figures[0], tag=subset)
    return figures[0]


def _say_other_mode(subset: str, batches: Sequence[Sequence[int]], data: DatasetConfig) -> None:
    """Say whose masks are drawn, and what of the data the original would leave out."""
    rest = len(batches[-1]) % data.required_batch_size_multiple if batches else 0
    dropped = len(batches[-1]) if rest and data.data_rng == "fairseq-main" else 0
    logger.warning(
        "'%s': random draws (masks) are those of the original, --data-rng %s, as the checkpoint "
        "began; all %s samples in %s batches are evaluated%s. --data-rng philox draws what a "
        "checkpoint of this project is validated with",
        subset,
        data.data_rng,
        sum(map(len, batches)),
        len(batches),
        f" (the original drops the last {dropped})" if dropped else "",
    )
