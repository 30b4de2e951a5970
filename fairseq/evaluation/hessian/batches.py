"""The batches a loss is averaged over, and the checkpoint it is the loss of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fairseq import utils
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.distillation import DistillationCriterion
from fairseq.criterions.distillation_settings import alone
from fairseq.distributed.device import choose_device
from fairseq.errors import DataError
from fairseq.evaluation import load_criterion
from fairseq.evaluation.hessian.objective import Objective, Sample
from fairseq.hub.load import load_by_settings
from fairseq.models.base import BaseFairseqModel
from fairseq.rng import philox
from fairseq.tasks.base import FairseqTask

logger = logging.getLogger(__name__)


def open_checkpoint(
    flat: Mapping[str, Any], double: bool = False
) -> tuple[Objective, Any, Any, torch.device]:
    """Load a checkpoint; return its loss, its task, its configuration, and the device.

    Args:
        flat: flat settings, see :func:`fairseq.hub.load.load_by_settings`.
        double: compute in fp64, otherwise in fp32.
    """
    # where validation appends its answers to a file, a measurement must not
    models, config, task = load_by_settings({**flat, "save_predictions": None})
    device = choose_device(config)
    dtype = torch.float64 if double else torch.float32
    criterion = task.build_criterion(config.criterion)
    if isinstance(criterion, DistillationCriterion):
        # without its teacher the rest would be the likelihood times whatever weight it had
        logger.info("of a distilled student its own loss is measured, without the teacher's terms")
        settings = alone(config.criterion, criterion.masked)
        criterion = DistillationCriterion(settings, task)
    load_criterion(criterion, flat["path"])
    return (
        Objective(models[0].to(device, dtype), criterion.to(device, dtype)), task, config, device
    )  # fmt: skip


class Batches:
    """Random batches of a subset.

    Args:
        task: with the dataset.
        config: whether samples that are too long are skipped.
        model: for the longest sample.
        subset: name of the subset.
        seed: of the draws.
        device: where batches go.

    Raises:
        DataError: if there is no sample that fits.
    """

    def __init__(
        self,
        task: FairseqTask,
        config: FairseqConfig,
        model: BaseFairseqModel,
        subset: str,
        seed: int,
        device: torch.device,
    ) -> None:
        task.load_dataset(subset)
        self.dataset, self.seed, self.device = task.dataset(subset), seed, device
        longest = utils.resolve_max_positions(task.max_positions(), model.max_positions())
        skip = config.dataset.skip_invalid_size_inputs_valid_test
        everything = self.dataset.ordered_indices()
        # sorted: a dataset may order its samples by length or by chance, and draws go by place
        self.indices = np.sort(task.filter_indices_by_size(everything, self.dataset, longest, skip))
        if not len(self.indices):
            raise DataError(f"there is no sample in '{subset}'")

    def draw(self, number: int, size: int) -> Sample:
        """Return a batch of independent draws, with replacement; its masks are its own, too."""
        places = philox(self.seed, "hessian batch", number).integers(len(self.indices), size=size)
        # masks depend on the epoch, and epochs count from 1: every draw is masked in its own way
        return self._batch(self.indices[places], number + 1)

    def fixed(self, sentences: int, size: int) -> list[Sample]:
        """Return batches of distinct random samples, all samples if there are no more.

        The samples do not depend on the batch size, nor, with the random numbers of this project
        (--data-rng philox), do their masks.
        """
        order = philox(self.seed, "hessian sample").permutation(len(self.indices))[:sentences]
        chosen = self.indices[order]
        return [
            self._batch(chosen[start : start + size], 1) for start in range(0, len(chosen), size)
        ]

    def _batch(self, indices: np.ndarray, epoch: int) -> Sample:
        self.dataset.set_epoch(epoch)
        sample = self.dataset.collater([self.dataset[int(index)] for index in indices])
        return utils.move_to_device(sample, self.device)
