"""Datasets that wrap one other dataset: the base, and those that extend, pad, order or cache.

Items are int tensors (T,) unless said otherwise, and are never changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data.dataloader import default_collate

from fairseq.data.collate import collate_tokens
from fairseq.data.datasets.base import FairseqDataset, Items
from fairseq.errors import DataError


class BaseWrapperDataset(FairseqDataset):
    """Hands every question to the wrapped dataset; subclasses answer some themselves.

    What the wrapped one cannot answer, being a mere sequence, is answered as any FairseqDataset
    does, and merged as torch does.
    """

    def __init__(self, dataset: Items) -> None:
        super().__init__()
        self.dataset: Any = dataset  # a mere sequence answers only some of what is asked

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: list[Any]) -> Any:
        return getattr(self.dataset, "collater", default_collate)(samples)

    @property
    def sizes(self) -> Any:
        """Lengths of all items."""
        return self.dataset.sizes

    def num_tokens(self, index: int) -> int:
        return self.dataset.num_tokens(index)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return getattr(self.dataset, "num_tokens_vec", super().num_tokens_vec)(indices)

    def size(self, index: int) -> int | tuple[int, ...]:
        return self.dataset.size(index)

    def ordered_indices(self) -> np.ndarray:
        return getattr(self.dataset, "ordered_indices", super().ordered_indices)()

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def attr(self, attr: str, index: int) -> Any:
        return getattr(self.dataset, "attr", super().attr)(attr, index)

    def prefetch(self, indices: Sequence[int]) -> None:
        self.dataset.prefetch(indices)

    def get_batch_shapes(self) -> Sequence[tuple[int, int]] | None:
        return getattr(self.dataset, "get_batch_shapes", super().get_batch_shapes)()

    def batch_by_size(self, indices: np.ndarray, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        return getattr(self.dataset, "batch_by_size", super().batch_by_size)(
            indices, *args, **kwargs
        )

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: float | Sequence[float | None] | None
    ) -> tuple[np.ndarray, list[int]]:
        return getattr(self.dataset, "filter_indices_by_size", super().filter_indices_by_size)(
            indices, max_sizes
        )

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return getattr(self.dataset, "can_reuse_epoch_itr_across_epochs", True)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class OwnSizes:
    """Mixin of wrappers whose items have other lengths than the wrapped ones.

    The user sets ``_sizes``, an int64 array of all lengths; everything about sizes follows.
    """

    _sizes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Lengths of all items, int64 (len(self),)."""
        return self._sizes

    def num_tokens(self, index: int) -> int:
        """Return the length of an item, for batching by tokens."""
        return int(self._sizes[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the lengths of many items."""
        return self._sizes[indices]

    size = num_tokens

    # Not the wrapped dataset's, which would see the wrapped lengths.
    batch_by_size = FairseqDataset.batch_by_size
    filter_indices_by_size = FairseqDataset.filter_indices_by_size


def sizes_of(dataset: FairseqDataset) -> np.ndarray:
    """Return ``dataset.sizes`` as an int64 array."""
    return np.asarray(dataset.sizes, dtype=np.int64)


class TokenAddedDataset(OwnSizes, BaseWrapperDataset):
    """Adds one token to every item (none if ``token`` is None), in front or behind it."""

    in_front: bool

    def __init__(self, dataset: FairseqDataset, token: int | None = None) -> None:
        super().__init__(dataset)
        self.token = token
        self._sizes = sizes_of(dataset) + (token is not None)

    def __getitem__(self, index: int) -> torch.Tensor:
        item_T = self.dataset[index]
        if self.token is None:
            return item_T
        added_1 = item_T.new_tensor([self.token])
        return torch.cat([added_1, item_T] if self.in_front else [item_T, added_1])


class PrependTokenDataset(TokenAddedDataset):
    """Puts one token in front of every item (none if ``token`` is None)."""

    in_front = True


class AppendTokenDataset(TokenAddedDataset):
    """Puts one token behind every item (none if ``token`` is None)."""

    in_front = False


class PadDataset(BaseWrapperDataset):
    """Collates items into one padded tensor (B, T)."""

    def __init__(
        self, dataset: FairseqDataset, pad_idx: int, left_pad: bool, pad_length: int | None = None
    ) -> None:
        super().__init__(dataset)
        self.pad_idx = pad_idx
        self.left_pad = left_pad
        self.pad_length = pad_length

    def collater(self, samples: list[torch.Tensor]) -> torch.Tensor:
        """Pad items to the longest, or to ``pad_length`` if that is more."""
        return collate_tokens(
            samples, self.pad_idx, left_pad=self.left_pad, pad_to_length=self.pad_length
        )


class RightPadDataset(BaseWrapperDataset):
    """Collates items into one tensor (B, T), padded at the end."""

    def __init__(
        self, dataset: FairseqDataset, pad_idx: int, pad_length: int | None = None
    ) -> None:
        super().__init__(PadDataset(dataset, pad_idx, left_pad=False, pad_length=pad_length))


class SortDataset(BaseWrapperDataset):
    """Orders the items by one or more keys."""

    def __init__(
        self, dataset: FairseqDataset, sort_order: np.ndarray | Sequence[np.ndarray]
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: the items.
            sort_order: one array (len(dataset),) or several; the LAST is the primary key.

        Raises:
            DataError: if an array is not as long as the dataset.
        """
        super().__init__(dataset)
        self.sort_order = list(sort_order) if isinstance(sort_order, list | tuple) else [sort_order]
        lengths = [len(keys) for keys in self.sort_order]
        if any(length != len(dataset) for length in lengths):
            raise DataError(f"SortDataset: keys of {lengths} items for {len(dataset)} items")

    def ordered_indices(self) -> np.ndarray:
        return np.lexsort(self.sort_order)


class NumelDataset(BaseWrapperDataset):
    """The number of elements of every item of another dataset."""

    def __init__(self, dataset: FairseqDataset, reduce: bool = False) -> None:
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
        return samples

    @property
    def sizes(self) -> Any:
        return self._sizes

    def num_tokens(self, index: int) -> int:
        return self.sizes[index]

    size = num_tokens


class StripTokenDataset(BaseWrapperDataset):
    """Removes a token from both ends of every item, as often as it stands there.

    The sizes stay those of the wrapped dataset, an upper bound.
    """

    def __init__(self, dataset: FairseqDataset, id_to_strip: int) -> None:
        super().__init__(dataset)
        self.id_to_strip = id_to_strip

    def __getitem__(self, index: int) -> torch.Tensor:
        item_T = self.dataset[index]
        kept = (item_T != self.id_to_strip).nonzero().flatten().tolist()
        return item_T[kept[0] : kept[-1] + 1] if kept else item_T[:0]


class ConstantTokensDataset(BaseWrapperDataset):
    """Puts one value in the place of every token: the segment of a sentence, for instance."""

    def __init__(self, dataset: FairseqDataset, value: int) -> None:
        super().__init__(dataset)
        self.value = value

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full_like(self.dataset[index], self.value)


class RollDataset(BaseWrapperDataset):
    """Rotates every item by ``shifts`` places to the right."""

    def __init__(self, dataset: FairseqDataset, shifts: int) -> None:
        super().__init__(dataset)
        self.shifts = shifts

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.roll(self.dataset[index], self.shifts)
