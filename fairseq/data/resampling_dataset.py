"""Draw items at random: a fixed subset, or a new weighted sample in every epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq.data.fairseq_dataset import FairseqDataset
from fairseq.data.wrappers import BaseWrapperDataset
from fairseq.errors import DataError
from fairseq.rng import philox


class _Drawn:
    """Mixin of wrappers that consist of the items ``_drawn[0]``, ``_drawn[1]``... of another."""

    dataset: Any
    _drawn: np.ndarray

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self._drawn[index])]

    def __len__(self) -> int:
        return len(self._drawn)

    @property
    def sizes(self) -> Any:
        """Lengths of the drawn items; a list of arrays if items have several lengths."""
        sizes = self.dataset.sizes
        if isinstance(sizes, list) and sizes and isinstance(sizes[0], np.ndarray):
            return [array[self._drawn] for array in sizes]
        return np.asarray(sizes)[self._drawn]

    def num_tokens(self, index: int) -> int:
        """Return the length of an item, for batching by tokens."""
        return self.dataset.num_tokens(int(self._drawn[index]))

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the lengths of many items."""
        return self.dataset.num_tokens_vec(self._drawn[indices])

    def size(self, index: int) -> int | tuple[int, ...]:
        """Return the length or lengths of an item, for filtering."""
        return self.dataset.size(int(self._drawn[index]))

    def attr(self, attr: str, index: int) -> Any:
        """Return an attribute that may differ from item to item."""
        return self.dataset.attr(attr, int(self._drawn[index]))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Load items ahead of time."""
        self.dataset.prefetch(self._drawn[np.asarray(indices)])

    # Not the wrapped dataset's, which would see the wrapped indices.
    batch_by_size = FairseqDataset.batch_by_size
    filter_indices_by_size = FairseqDataset.filter_indices_by_size

    def _by_size(self, ties: np.ndarray) -> np.ndarray:
        """Return all indices by length, items of equal length by ``ties``."""
        sizes = self.sizes
        keys = [ties, *sizes[::-1]] if isinstance(sizes, list) else [ties, sizes]
        return np.lexsort(keys)


class ResamplingDataset(_Drawn, BaseWrapperDataset):
    """A new random sample of another dataset in every epoch."""

    def __init__(
        self,
        dataset: Any,
        weights: Sequence[float] | np.ndarray | None = None,
        replace: bool = True,
        size_ratio: float = 1.0,
        batch_by_size: bool = True,
        seed: int = 0,
        epoch: int = 1,
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: where to draw from.
            weights: how likely each item is, up to a factor; None for all alike.
            replace: draw with replacement.
            size_ratio: length of this dataset over that of ``dataset``.
            batch_by_size: order items by length.
            seed: the run's seed.
            epoch: the first epoch.

        Raises:
            DataError: if the weights do not fit, or without replacement more items are wanted
                than there are.
        """
        super().__init__(dataset)
        if weights is not None and (len(weights) != len(dataset) or np.min(weights) < 0):
            raise DataError(f"{len(dataset)} items need as many weights, all >= 0")
        if not replace and size_ratio > 1:
            raise DataError(f"size_ratio {size_ratio} > 1 needs replace=True")
        self.weights = None if weights is None else np.asarray(weights, float) / np.sum(weights)
        self.replace = replace
        self.size_ratio = float(size_ratio)
        self.actual_size = math.ceil(len(dataset) * self.size_ratio)
        self.order_by_size = batch_by_size
        self.seed = seed
        self._cur_epoch: int | None = None
        self.set_epoch(epoch)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Return False: every epoch has other items."""
        return False

    def set_epoch(self, epoch: int) -> None:
        """Draw the sample of this epoch."""
        super().set_epoch(epoch)
        if epoch == self._cur_epoch:
            return
        self._cur_epoch = epoch
        self._drawn = philox(self.seed, "resample", epoch).choice(
            len(self.dataset), self.actual_size, replace=self.replace, p=self.weights
        )

    def ordered_indices(self) -> np.ndarray:
        """Return all indices, by length if that was asked for."""
        order = np.arange(len(self), dtype=np.int64)
        return self._by_size(order) if self.order_by_size else order


class SubsampleDataset(_Drawn, BaseWrapperDataset):
    """A fixed random part of another dataset."""

    def __init__(
        self, dataset: Any, size_ratio: float, shuffle: bool = False, *, seed: int = 1
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: where to draw from.
            size_ratio: share of the items to keep, in (0, 1).
            shuffle: put the items, and later those of equal length, in random order.
            seed: the run's seed.

        Raises:
            DataError: if ``size_ratio`` is not in (0, 1).
        """
        super().__init__(dataset)
        if not 0 < size_ratio < 1:
            raise DataError(f"size_ratio must lie between 0 and 1, not {size_ratio}")
        self.shuffle = shuffle
        self.seed = seed
        n_kept = math.ceil(len(dataset) * size_ratio)
        drawn = philox(seed, "subsample").permutation(len(dataset))[:n_kept]
        self._drawn = drawn if shuffle else np.sort(drawn)

    def ordered_indices(self) -> np.ndarray:
        """Return all indices by length, items of equal length in their order here."""
        return self._by_size(np.arange(len(self), dtype=np.int64))
