"""The batches of a task's dataset, as a run cuts them: which samples fit, in which order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fairseq.data.batches.cut import without_trailing
from fairseq.data.datasets.base import FairseqDataset
from fairseq.errors import DataError
from fairseq.protocols import Limits
from fairseq.utils import resolve_max_positions

if TYPE_CHECKING:
    from fairseq.tasks.base import FairseqTask


class Fits(NamedTuple):
    """What is done about long samples.

    Attributes:
        max_positions: the longest.
        max_tokens: most tokens of a batch today, which ``max_positions`` knows of.
        leave_out: leave longer ones out instead of refusing them.
    """

    max_positions: Limits
    max_tokens: int | None
    leave_out: bool

    def under(self, max_tokens: int | None) -> tuple[Limits, bool]:
        """Return the longest under another limit, and whether longer ones are left out."""
        limits = self.max_positions
        if self.leave_out and max_tokens != self.max_tokens:
            # a run with a smaller limit left out what did not fit that one
            limits = resolve_max_positions(limits, max_tokens or None)
        return limits, self.leave_out


def own_seed(dataset: object) -> int | None:
    """Return the seed that a dataset orders its samples by, None if it has none."""
    seed = getattr(dataset, "seed", None)
    return seed if isinstance(seed, int) else None


def cut_batches(
    task: FairseqTask,
    dataset: FairseqDataset,
    seed: int,
    fits: Fits,
    batching: Mapping[str, Any],
    without: np.ndarray,
) -> list[Any]:
    """Return the batches of all samples but some.

    Args:
        task: filters samples, and says whether a small last batch is dropped.
        dataset: the samples.
        seed: today's.
        fits: what is done about long samples.
        batching: limits of a batch; ``order_epoch`` where the order depends on an epoch, ``seed``
            and ``dataset_seed`` where batches of a run with others are wanted.
        without: sample numbers to leave out, int64.

    Raises:
        DataError: if no sample fits, or one does not that must.
    """
    sizes = dict(batching)
    order_seed = sizes.pop("seed", seed) + sizes.pop("order_epoch", 0)
    ordered = dataset
    if "dataset_seed" in sizes:
        ordered = copy.copy(dataset)
        vars(ordered)["seed"] = sizes.pop("dataset_seed")
    limits = fits.under(sizes.get("max_tokens"))
    indices = _usable_indices(task, ordered, order_seed, *limits)
    kept = indices[~np.isin(indices, without)] if len(without) else indices
    # the original leaves a last small batch out in training; an evaluation needs every sample
    drop = task.data_rng == "fairseq-main" and not task.only_evaluates
    batches = dataset.batch_by_size(kept, **sizes)  # a plug-in's takes no other limits
    return without_trailing(batches, sizes["required_batch_size_multiple"]) if drop else batches


def _usable_indices(
    task: FairseqTask,
    dataset: FairseqDataset,
    order_seed: int,
    max_positions: Limits,
    leave_out: bool,
) -> np.ndarray:
    """Return the samples that fit, in the dataset's order; refuse to return none."""
    from fairseq.data.collate import numpy_seed

    # legacy datasets draw their order from numpy's global generator
    with numpy_seed(order_seed):
        indices = dataset.ordered_indices()
    if max_positions is not None:
        indices = task.filter_indices_by_size(indices, dataset, max_positions, leave_out)
    if len(indices) == 0:
        raise DataError(
            "The dataset is empty: it has no sample, or all are longer than max_positions="
            f"{max_positions}"
        )
    return indices
