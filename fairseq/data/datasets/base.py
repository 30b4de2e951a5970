"""``FairseqDataset``: what the training loop asks of a dataset beyond torch's ``Dataset``.

Wrappers, the batch iterator and the tasks rely on this contract only; plug-ins subclass it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch.utils.data

from fairseq.data.batches.cut import batch_by_size, filter_by_size_dynamic, filter_by_sizes


class Items(Protocol):
    """What a wrapper needs at least: items by number, as every sequence has."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


class EpochListening:
    """What a dataset is told of epochs, and asked about them."""

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Tell whether the sizes and the order of the items stay the same in every epoch.

        If so, the batches are cut once and only their order changes. Datasets that resample must
        return False; those that only mask or crop anew may return True.
        """
        return True

    def set_epoch(self, epoch: int) -> None:
        """Learn the epoch that begins (from 1), in the main process and in every worker."""


class FairseqDataset(torch.utils.data.Dataset, EpochListening):
    """A dataset that knows the lengths of its items, orders and collates them."""

    if TYPE_CHECKING:  # where they are known, for fast filtering

        @property
        def sizes(self) -> Any:
            """Lengths of all items."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def collater(self, samples: list[Any]) -> Any:
        """Merge items into a batch.

        Args:
            samples: items of this dataset; may be empty, which must give an empty batch.
        """
        raise NotImplementedError

    def num_tokens(self, index: int) -> int:
        """Return the length of an item, for batching by tokens."""
        raise NotImplementedError

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the lengths of many items, int (len(indices),).

        Raises:
            NotImplementedError: if only :meth:`num_tokens` is known.
        """
        raise NotImplementedError

    def size(self, index: int) -> int | tuple[int, ...]:
        """Return the length or lengths of an item, for filtering by the model's limits."""
        raise NotImplementedError

    def ordered_indices(self) -> np.ndarray:
        """Return all indices in the order in which batches are to be cut, int64 (len(self),)."""
        return np.arange(len(self), dtype=np.int64)

    @property
    def supports_prefetch(self) -> bool:
        """Tell whether :meth:`prefetch` does anything."""
        return False

    def attr(self, attr: str, index: int) -> Any:
        """Return an attribute that may differ from item to item, or None."""
        return getattr(self, attr, None)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Load items ahead of time."""
        raise NotImplementedError

    def get_batch_shapes(self) -> Sequence[tuple[int, int]] | None:
        """Return None: batches of fixed shapes serve TPUs, which are not supported."""
        return None

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
        drop_trailing: bool = False,
    ) -> list[np.ndarray]:
        """Cut ``indices`` into batches; see :func:`fairseq.data.batches.cut.batch_by_size`."""
        try:
            num_tokens_vec = self.num_tokens_vec(indices)
        except NotImplementedError:
            num_tokens_vec = None
        return batch_by_size(
            indices,
            self.num_tokens,
            num_tokens_vec=num_tokens_vec,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
            fixed_shapes=self.get_batch_shapes(),
            drop_trailing=drop_trailing,
        )

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: float | Sequence[float | None] | None
    ) -> tuple[np.ndarray, list[int]]:
        """Split ``indices`` into items that fit and items that are too long.

        Args:
            indices: int (N,), sample numbers.
            max_sizes: the most allowed: a number, one limit per length of an item, or None.

        Returns:
            Indices that fit, in order, and the list of the others.
        """
        if max_sizes is None:
            return indices, []
        sizes = getattr(self, "sizes", None)
        arrays: list[Any] = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        limits = list(max_sizes) if isinstance(max_sizes, Sequence) else [max_sizes] * len(arrays)
        if len(arrays) == len(limits) and all(isinstance(a, np.ndarray) for a in arrays):
            return filter_by_sizes(indices, arrays, limits)
        return filter_by_size_dynamic(indices, self.size, max_sizes)

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """Tell whether items may be read in the main process."""
        return True


class FairseqIterableDataset(torch.utils.data.IterableDataset, EpochListening):
    """A dataset that is read in sequence, for sources that have no index."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError
