"""Datasets that wrap one other dataset and edit the tokens of its items.

Items are int tensors (T,) unless said otherwise, and are never changed in place.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fairseq.data.batches.cut import filter_by_sizes
from fairseq.data.collate import collate_tokens
from fairseq.data.datasets.base import FairseqDataset, Items
from fairseq.data.datasets.wrappers import BaseWrapperDataset, PadDataset
from fairseq.errors import ConfigError, DataError
from fairseq.protocols import Limits
from fairseq.rng import philox

logger = logging.getLogger("fairseq.data.data_utils")


class OffsetTokensDataset(BaseWrapperDataset):
    """Adds a constant to every token id."""

    def __init__(self, dataset: Items, offset: int) -> None:
        super().__init__(dataset)
        self.offset = offset

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.dataset[index] + self.offset


class ReplaceDataset(BaseWrapperDataset):
    """Replaces token ids in every item, or in every part of items that are tuples."""

    def __init__(self, dataset: Items, replace_map: Mapping[int, int], offsets: Sequence[int]):
        """Wrap ``dataset``.

        Args:
            dataset: dataset of tensors (T,) or tuples of them.
            replace_map: old id -> new id; all replacements happen at once.
            offsets: per part, how many tokens to leave alone: at the beginning if positive, at
                the end if negative.

        Raises:
            DataError: if ``replace_map`` is empty.
        """
        super().__init__(dataset)
        if not replace_map:
            raise DataError("ReplaceDataset: replace_map is empty; give old id -> new id")
        self.replace_map = dict(replace_map)
        self.offsets = list(offsets)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if not isinstance(item, tuple):
            return self._replaced(item, self.offsets[0])
        return tuple(map(self._replaced, item, self.offsets))

    def _replaced(self, old_T: torch.Tensor, offset: int) -> torch.Tensor:
        """Return ``old_T`` with ids replaced outside of the part that ``offset`` protects."""
        new_T = old_T.clone()
        part = slice(offset, None) if offset >= 0 else slice(None, offset)
        for old, new in self.replace_map.items():
            new_T[part][old_T[part] == old] = new
        return new_T


class PrependDataset(BaseWrapperDataset):
    """Replaces the first token of every item (or of its first part) by a computed one."""

    def __init__(
        self,
        dataset: Items,
        prepend_getter: Callable[[Any, int], int],
        ensure_first_token_is: int | None = None,
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: dataset of tensors (T,) or tuples of them.
            prepend_getter: (dataset, index) -> the token to write.
            ensure_first_token_is: the only id that may be overwritten, or None for any.
        """
        super().__init__(dataset)
        self.prepend_getter = prepend_getter
        self.ensure_first_token = ensure_first_token_is

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        first_T = item[0] if isinstance(item, tuple) else item
        if self.ensure_first_token is not None and first_T[0] != self.ensure_first_token:
            raise DataError(
                f"sample {index} begins with token {int(first_T[0])}, not with "
                f"{self.ensure_first_token}; check how the data was prepared"
            )
        new_T = first_T.clone()
        new_T[0] = self.prepend_getter(self.dataset, index)
        return (new_T, *item[1:]) if isinstance(item, tuple) else new_T


class LeftPadDataset(BaseWrapperDataset):
    """Collates items into one tensor (B, T), padded at the beginning."""

    def __init__(
        self, dataset: FairseqDataset, pad_idx: int, pad_length: int | None = None
    ) -> None:
        super().__init__(PadDataset(dataset, pad_idx, left_pad=True, pad_length=pad_length))


class RightPaddingMaskDataset(BaseWrapperDataset):
    """Collates items into their padding mask, bool (B, T): True where a shorter item has ended."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros_like(self.dataset[index], dtype=torch.bool)

    def collater(self, samples: list[torch.Tensor]) -> torch.Tensor:
        return collate_tokens(samples, True)


class LRUCacheDataset(BaseWrapperDataset):
    """Keeps the items used last, for items that several wrappers above read in turn."""

    CAPACITY = 8

    def __init__(self, dataset: Items, token: object = None) -> None:
        """Wrap ``dataset``; ``token`` is ignored, as in the original."""
        super().__init__(dataset)
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, index: int) -> Any:
        if index not in self._cache:
            self._cache[index] = self.dataset[index]
            if len(self._cache) > self.CAPACITY:
                self._cache.popitem(last=False)
        self._cache.move_to_end(index)
        return self._cache[index]

    def set_epoch(self, epoch: int) -> None:
        """Forget everything: items may change with the epoch."""
        self._cache.clear()
        super().set_epoch(epoch)


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
        dataset: Items,
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
        self, dataset: Items, size_ratio: float, shuffle: bool = False, *, seed: int = 1
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


class ColorizeDataset(BaseWrapperDataset):
    """Adds a number to every sample of a batch, as ``net_input.colors``."""

    def __init__(self, dataset: Items, color_getter: Callable[[Any, int], int]) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: its items have an ``id``, its batches ``net_input``.
            color_getter: (dataset, id) -> the number.
        """
        super().__init__(dataset)
        self.color_getter = color_getter

    def collater(self, samples: list[Any]) -> Any:
        """Merge items; ``net_input.colors`` is int64 (B,), in the order of ``samples``."""
        batch = super().collater(samples)
        if batch:
            colors = [self.color_getter(self.dataset, sample["id"]) for sample in samples]
            batch["net_input"]["colors"] = torch.tensor(colors, dtype=torch.int64)
        return batch


class TransformEosDataset(BaseWrapperDataset):
    """Adds or removes the end-of-sentence of ``source`` and ``target`` when batches are made.

    Items, ``source`` and ``target`` int (T,) each, and sizes are those of the wrapped dataset.
    """

    def __init__(
        self,
        dataset: Items,
        eos: int,
        append_eos_to_src: bool = False,
        remove_eos_from_src: bool = False,
        append_eos_to_tgt: bool = False,
        remove_eos_from_tgt: bool = False,
        has_target: bool = True,
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: its items are dicts.
            eos: id of end-of-sentence.
            append_eos_to_src: sources have none and get one.
            remove_eos_from_src: sources have one and lose it.
            append_eos_to_tgt: the same for targets.
            remove_eos_from_tgt: the same for targets.
            has_target: whether there are targets.

        Raises:
            ConfigError: if it is to be both added and removed.
        """
        super().__init__(dataset)
        self.eos = eos
        # what is edited, and whether it gets an end-of-sentence or loses it
        self.edits: dict[str, bool] = {}
        for part, append, remove in (
            ("source", append_eos_to_src, remove_eos_from_src),
            ("target", append_eos_to_tgt, remove_eos_from_tgt),
        ):
            if append and remove:
                raise ConfigError(f"{part}: the end-of-sentence cannot be both added and removed")
            if (append or remove) and (has_target or part == "source"):
                self.edits[part] = append

    def collater(self, samples: list[dict[str, Any]]) -> Any:
        """Edit items, then merge them.

        Raises:
            DataError: for a sequence that has an end-of-sentence to be added, or lacks one to be
                removed.
        """
        return super().collater([self._edited(sample) for sample in samples])

    def _edited(self, sample: dict[str, Any]) -> dict[str, Any]:
        sample = dict(sample)
        for part, append in self.edits.items():
            tokens_T = sample[part]
            ends = len(tokens_T) > 0 and int(tokens_T[-1]) == self.eos
            if ends == append:
                raise DataError(
                    f"the {part} of sample {sample.get('id')} {'ends' if ends else 'does not end'} "
                    f"with end-of-sentence ({self.eos}); check how the data was prepared"
                )
            end_1 = tokens_T.new_tensor([self.eos])
            sample[part] = torch.cat([tokens_T, end_1]) if append else tokens_T[:-1]
        return sample


def filter_by_size(
    indices: np.ndarray,
    dataset: FairseqDataset,
    max_positions: Limits,
    raise_exception: bool = False,
) -> np.ndarray:
    """Return the indices of the items of ``dataset`` that are short enough.

    Args:
        indices: int (N,), sample numbers.
        dataset: a FairseqDataset.
        max_positions: the most allowed: a number, or a tuple with None for no limit.
        raise_exception: raise for samples that are too long instead of warning.

    Raises:
        DataError: if some are too long and ``raise_exception`` is set.
    """
    kept, ignored = dataset.filter_indices_by_size(indices, max_positions)
    if ignored:
        where = f"max_positions={max_positions}, first sample ids={ignored[:10]}"
        if raise_exception:
            raise DataError(
                f"{len(ignored)} samples are too long, {where}. Skip them with "
                "--skip-invalid-size-inputs-valid-test, or shorten them"
            )
        logger.warning("%d samples are too long and will be skipped, %s", len(ignored), where)
    return kept


def filter_paired_dataset_indices_by_size(
    src_sizes: np.ndarray,
    tgt_sizes: np.ndarray | None,
    indices: np.ndarray,
    max_sizes: float | Sequence[float | None] | None,
) -> tuple[np.ndarray, list[int]]:
    """Split ``indices`` by the lengths of sources and targets.

    Args:
        src_sizes: lengths of all sources.
        tgt_sizes: lengths of all targets, or None.
        indices: int (N,), sample numbers.
        max_sizes: one limit for both, a pair (source, target), or None.

    Returns:
        Indices that fit, in order, and the list of the others.
    """
    if max_sizes is None:
        return indices, []
    limits = list(max_sizes) if isinstance(max_sizes, Sequence) else [max_sizes, max_sizes]
    sizes = [src_sizes] if tgt_sizes is None else [src_sizes, tgt_sizes]
    return filter_by_sizes(indices, sizes, limits[: len(sizes)])
