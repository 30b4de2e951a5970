"""Cut items that are too long: at the end, or to a random piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.wrappers import BaseWrapperDataset, OwnSizes, sizes_of
from fairseq.errors import ConfigError, check_choice
from fairseq.rng import legacy_item_seed, philox


class TruncateDataset(OwnSizes, BaseWrapperDataset):
    """Keeps the first ``truncation_length`` tokens of every item."""

    def __init__(self, dataset: FairseqDataset, truncation_length: int) -> None:
        """Wrap ``dataset``.

        Raises:
            ConfigError: if the length is not positive.
        """
        super().__init__(dataset)
        if truncation_length < 1:
            raise ConfigError(f"items cannot be cut to {truncation_length} tokens")
        self.truncation_length = truncation_length
        self._sizes = np.minimum(sizes_of(dataset), truncation_length)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.dataset[index][: self.truncation_length]


class RandomCropDataset(TruncateDataset):
    """Keeps a random piece of ``truncation_length`` tokens, another one in each epoch."""

    def __init__(
        self,
        dataset: FairseqDataset,
        truncation_length: int,
        seed: int = 1,
        *,
        data_rng: str = "philox",
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: dataset of tensors (T,).
            truncation_length: most tokens to keep.
            seed: the run's seed.
            data_rng: ``philox``, or ``fairseq-...`` to crop as the original, which never keeps the
                last token of an item that is cut.

        Raises:
            ConfigError: if the length is not positive.
        """
        super().__init__(dataset, truncation_length)
        self.seed = seed
        self.epoch = 1
        self.data_rng = data_rng

    def set_epoch(self, epoch: int) -> None:
        """Change the pieces that are kept."""
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> torch.Tensor:
        item_T = self.dataset[index]
        excess = len(item_T) - self.truncation_length
        if excess <= 0:
            return item_T
        start = self._start(index, excess)
        return item_T[start : start + self.truncation_length]

    def _start(self, index: int, excess: int) -> int:
        """Draw where the piece begins."""
        if self.data_rng == "philox":
            # by index and epoch: a crop depends neither on the order of the items nor on the
            # workers
            rng = philox(self.seed, "random-crop", self.epoch, index)
            # the last possible place counts, too: without it the last token would never be seen
            return int(rng.integers(0, excess, endpoint=True))
        legacy = np.random.RandomState(legacy_item_seed(self.seed, self.epoch, index))
        return int(legacy.randint(0, excess))


def maybe_shorten_dataset(
    dataset: FairseqDataset,
    split: str,
    shorten_data_split_list: str,
    shorten_method: str,
    tokens_per_sample: int,
    seed: int,
    *,
    data_rng: str = "philox",
) -> Any:
    """Return ``dataset``, shortened if the configuration asks for it.

    Args:
        dataset: dataset of tensors (T,).
        split: name of the split, such as ``train``.
        shorten_data_split_list: names of the splits to shorten, by commas; empty for all.
        shorten_method: ``none``, ``truncate`` or ``random_crop``.
        tokens_per_sample: most tokens to keep.
        seed: the run's seed.
        data_rng: one of ``fairseq.rng.DATA_RNGS``, for random crops.

    Raises:
        ConfigError: if the method is unknown.
    """
    check_choice("--shorten-method", shorten_method, ("none", "truncate", "random_crop"))
    splits = shorten_data_split_list.split(",") if shorten_data_split_list else [split]
    if shorten_method == "none" or split not in splits:
        return dataset
    if shorten_method == "truncate":
        return TruncateDataset(dataset, tokens_per_sample)
    return RandomCropDataset(dataset, tokens_per_sample, seed, data_rng=data_rng)
