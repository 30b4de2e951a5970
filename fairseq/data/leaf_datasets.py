"""Small datasets that end a chain: counts, indices, labels and plain lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fairseq.data.fairseq_dataset import FairseqDataset
from fairseq.data.wrappers import BaseWrapperDataset


class NumelDataset(BaseWrapperDataset):
    """The number of elements of every item of another dataset."""

    def __init__(self, dataset: Any, reduce: bool = False) -> None:
        """Wrap ``dataset``; with ``reduce``, a batch is the sum of its items' counts."""
        super().__init__(dataset)
        self.reduce = reduce

    def __getitem__(self, index: int) -> int:
        item = self.dataset[index]
        return item.numel() if torch.is_tensor(item) else int(np.size(item))

    def collater(self, samples: list[int]) -> int | torch.Tensor:
        """Return the sum of the counts, or an int64 tensor (B,) of them."""
        return sum(samples) if self.reduce else torch.tensor(samples)


class NumSamplesDataset(FairseqDataset):
    """One for every item, so that a batch is its number of samples; has no length of its own."""

    def __getitem__(self, index: int) -> int:
        return 1

    def __len__(self) -> int:
        return 0

    def collater(self, samples: list[int]) -> int:
        """Return the number of samples."""
        return sum(samples)


class IdDataset(FairseqDataset):
    """The index of every item; has no length of its own."""

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return 0

    def collater(self, samples: list[int]) -> torch.Tensor:
        """Return an int64 tensor (B,) of indices."""
        return torch.tensor(samples)


class RawLabelDataset(FairseqDataset):
    """Labels held in memory: numbers, or equally long rows of numbers."""

    def __init__(self, labels: Sequence[Any]) -> None:
        super().__init__()
        self.labels = labels

    def __getitem__(self, index: int) -> Any:
        return self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    def collater(self, samples: list[Any]) -> torch.Tensor:
        """Return a tensor of the labels, one row per sample."""
        return torch.tensor(samples)


class ListDataset(BaseWrapperDataset):
    """Any sequence as a dataset; a batch is the list of its items."""

    def __init__(self, dataset: Sequence[Any], sizes: Sequence[int] | np.ndarray | None = None):
        """Wrap a sequence; ``sizes`` are the lengths of its items, if they matter."""
        super().__init__(dataset)
        self._sizes = sizes

    def __iter__(self) -> Iterator[Any]:
        yield from self.dataset

    def collater(self, samples: list[Any]) -> list[Any]:
        """Return the list of items."""
        return samples

    @property
    def sizes(self) -> Any:
        """Lengths of all items, as given."""
        return self._sizes

    def num_tokens(self, index: int) -> int:
        """Return the length of an item, for batching by tokens."""
        return self.sizes[index]

    def size(self, index: int) -> int:
        """Return the length of an item, for filtering."""
        return self.sizes[index]
