"""Evaluating a checkpoint on data: what fairseq-validate does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fairseq import checkpoint, utils
from fairseq.checkpoint.layout import explain
from fairseq.data.batches.read import workers_ended
from fairseq.distributed.device import choose_device
from fairseq.errors import CheckpointError, DataError
from fairseq.hub.load import load_by_settings
from fairseq.logging import metrics
from fairseq.logging.progress_bar import progress_bar
from fairseq.teacher import attach_teacher

logger = logging.getLogger("fairseq.evaluation")


def validate(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Evaluate a checkpoint with its own settings, except for those that are given.

    Args:
        given: flat settings: ``path`` (several checkpoints are joined with ``:``; the first is
            evaluated), ``data``, ``valid_subset`` and whatever else should differ from the
            checkpoint, such as ``tokens_per_sample``.

    Returns:
        the statistics of every subset, as they are printed.

    Raises:
        CheckpointError: if the criterion has parameters that the checkpoint does not hold.
        ConfigError: if no path is given.
        DataError: if there is nothing to evaluate.
    """
    models, config, task = load_by_settings(given)
    device = choose_device(config)
    model = models[0].to(device).eval()
    criterion = task.build_criterion(config.criterion)
    attach_teacher(config, task, model, criterion, required=False)
    load_criterion(criterion, utils.split_paths(given["path"])[0])
    criterion = criterion.to(device).eval()
    results = {}
    for subset in subsets_of(config):
        task.load_dataset(subset, combine=False, epoch=1)
        results[subset] = _validate_subset(config, task, model, criterion, subset, device, given)
    return results


def load_criterion(criterion: Any, path: str) -> None:
    """Give a criterion with parameters those of the checkpoint.

    Raises:
        CheckpointError: if it has none, or others.
    """
    if not utils.has_parameters(criterion):
        return
    state = checkpoint.load_checkpoint_to_cpu(path).get("criterion")
    if not state:
        raise CheckpointError(
            f"{path} holds no parameters of {type(criterion).__name__}, which has some: evaluate "
            "it with the criterion it was trained with"
        )
    try:
        criterion.load_state_dict(state)
    except RuntimeError as error:
        raise explain(error, path) from error


def subsets_of(config: Any) -> list[str]:
    """Return the names of the subsets to evaluate."""
    return str(config.dataset.valid_subset).replace(" ", "").split(",")


def batches_of(config: Any, task: Any, model: Any, subset: str, epoch: int = 1) -> Any:
    """Return the iterator over a loaded subset, masked as in the given epoch."""
    data = config.dataset
    return task.get_batch_iterator(
        dataset=task.dataset(subset),
        max_tokens=data.max_tokens_valid,
        max_sentences=data.batch_size_valid,
        max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=data.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=data.required_batch_size_multiple,
        seed=config.common.seed,
        num_workers=data.num_workers,
        epoch=epoch,
        data_buffer_size=data.data_buffer_size,
    )


def _validate_subset(
    config: Any,
    task: Any,
    model: Any,
    criterion: Any,
    subset: str,
    device: torch.device,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the statistics of a subset, or of its first batches: a limit of the training's own
    validations does not count here.
    """
    data, common, most = config.dataset, config.common, given.get("max_valid_steps")
    every = batches_of(config, task, model, subset)
    if data.data_rng != "philox" and "data_rng" not in given:
        _say_other_mode(subset, getattr(every, "frozen_batches", []), data)
    bar = progress_bar(
        every.next_epoch_itr(shuffle=False),
        log_format=common.log_format,
        log_interval=common.log_interval,
        prefix=f"valid on '{subset}' subset",
        default_log_format="simple" if common.no_progress_bar else "rich",
    )
    logs = []
    with workers_ended(), bar as progress:
        for number, sample in enumerate(progress):
            if most is not None and number >= most:
                break
            if len(sample) == 0:
                continue
            sample = utils.move_to_device(sample, device)
            logs.append(task.valid_step(sample, model, criterion)[2])
        if not logs:
            raise DataError(f"there is no batch to evaluate in '{subset}'")
        with metrics.aggregate(new_root=True) as aggregated:
            task.reduce_metrics(logs, criterion)
        stats = aggregated.get_smoothed_values()
        progress.print(stats, tag=subset, step=len(logs))
    return dict(stats)


def _say_other_mode(subset: str, batches: Sequence[Sequence[int]], data: Any) -> None:
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
