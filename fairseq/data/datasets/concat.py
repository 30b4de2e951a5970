"""Join datasets: one after the other (``ConcatDataset``), or item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data.dataloader import default_collate

from fairseq.data.datasets.base import FairseqDataset
from fairseq.errors import DataError


class ManyDatasets(FairseqDataset):
    """Reads several datasets: tells all of them what one is told."""

    datasets: Sequence[Any]

    @property
    def supports_prefetch(self) -> bool:
        return any(getattr(dataset, "supports_prefetch", False) for dataset in self.datasets)

    def prefetch(self, indices: Sequence[int]) -> None:
        for dataset in self.datasets:
            if getattr(dataset, "supports_prefetch", False):
                dataset.prefetch(indices)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return all(
            getattr(dataset, "can_reuse_epoch_itr_across_epochs", True) for dataset in self.datasets
        )

    def set_epoch(self, epoch: int) -> None:
        for dataset in self.datasets:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)


class ConcatDataset(ManyDatasets):
    """The items of several datasets, one dataset after the other, some of them repeated."""

    def __init__(self, datasets: Sequence[Any], sample_ratios: int | Sequence[int] = 1) -> None:
        """Join ``datasets``.

        Args:
            datasets: at least one dataset.
            sample_ratios: how often each of them is gone through; one number for all.

        Raises:
            DataError: if there are no datasets, or not one ratio for each.
        """
        super().__init__()
        self.datasets = list(datasets)
        if isinstance(sample_ratios, int):
            sample_ratios = [sample_ratios] * len(self.datasets)
        self.sample_ratios = list(sample_ratios)
        if not self.datasets or len(self.datasets) != len(self.sample_ratios):
            raise DataError(
                f"ConcatDataset: {len(self.datasets)} datasets, {len(self.sample_ratios)} ratios"
            )
        self.real_sizes = [len(dataset) for dataset in self.datasets]
        repeated = np.multiply(self.real_sizes, self.sample_ratios, dtype=np.int64)
        self.cumulative_sizes = np.cumsum(repeated).tolist()

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        dataset_index, sample_index = self._get_dataset_and_sample_index(index)
        return self.datasets[dataset_index][sample_index]

    def _get_dataset_and_sample_index(self, index: int) -> tuple[int, int]:
        """Return which dataset holds the item, and the item's index there."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)}")
        which = int(np.searchsorted(self.cumulative_sizes, index, side="right"))
        before = self.cumulative_sizes[which - 1] if which else 0
        return which, int(index - before) % self.real_sizes[which]

    def collater(self, samples: list[Any], **extra_args: Any) -> Any:
        """Merge items as the first dataset does, or as torch does if it has no way."""
        if hasattr(self.datasets[0], "collater"):
            return self.datasets[0].collater(samples, **extra_args)
        return default_collate(samples, **extra_args)

    @property
    def sizes(self) -> np.ndarray:
        """Lengths of all items."""
        pairs = zip(self.datasets, self.sample_ratios, strict=True)
        return np.concatenate([np.tile(np.asarray(ds.sizes), ratio) for ds, ratio in pairs])

    def size(self, index: int) -> int | tuple[int, ...]:
        dataset_index, sample_index = self._get_dataset_and_sample_index(index)
        return self.datasets[dataset_index].size(sample_index)

    def num_tokens(self, index: int) -> int:
        """Return the greatest length of an item."""
        return int(np.max(self.size(index)))

    def attr(self, attr: str, index: int) -> Any:
        dataset_index, _ = self._get_dataset_and_sample_index(index)
        return getattr(self.datasets[dataset_index], attr, None)

    def ordered_indices(self) -> np.ndarray:
        """Return all indices by length, items of equal length in order."""
        return np.argsort(self.sizes, kind="stable")

    @property
    def supports_prefetch(self) -> bool:
        return all(getattr(dataset, "supports_prefetch", False) for dataset in self.datasets)

    def prefetch(self, indices: Sequence[int]) -> None:
        places = [self._get_dataset_and_sample_index(index) for index in indices]
        for which, dataset in enumerate(self.datasets):
            dataset.prefetch([sample for place, sample in places if place == which])


class ConcatSentencesDataset(ManyDatasets):
    """Joins item i of every dataset into one sequence of tokens (T,)."""

    def __init__(self, *datasets: Any) -> None:
        """Join ``datasets``.

        Raises:
            DataError: if there are none, or they have different lengths.
        """
        super().__init__()
        self.datasets = datasets
        lengths = [len(dataset) for dataset in datasets]
        if len(set(lengths)) != 1:
            raise DataError(f"the sentences to join come in different numbers: {lengths}")

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat([dataset[index] for dataset in self.datasets])

    def __len__(self) -> int:
        return len(self.datasets[0])

    def collater(self, samples: list[torch.Tensor]) -> Any:
        return self.datasets[0].collater(samples)

    @property
    def sizes(self) -> np.ndarray:
        """Lengths of all items, int64 (len(self),)."""
        return np.sum([np.asarray(ds.sizes, dtype=np.int64) for ds in self.datasets], axis=0)

    def num_tokens(self, index: int) -> int:
        return sum(dataset.num_tokens(index) for dataset in self.datasets)

    def size(self, index: int) -> int:
        return sum(dataset.size(index) for dataset in self.datasets)

    def ordered_indices(self) -> np.ndarray:
        """Return the first dataset's order."""
        return self.datasets[0].ordered_indices()
