"""Datasets that wrap one other dataset and edit the tokens of its items.

Items are int tensors (T,) unless said otherwise, and are never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fairseq.data.wrappers import BaseWrapperDataset
from fairseq.errors import DataError


class StripTokenDataset(BaseWrapperDataset):
    """Removes a token from both ends of every item, as often as it stands there.

    The sizes stay those of the wrapped dataset, an upper bound.
    """

    def __init__(self, dataset: Any, id_to_strip: int) -> None:
        super().__init__(dataset)
        self.id_to_strip = id_to_strip

    def __getitem__(self, index: int) -> torch.Tensor:
        item_T = self.dataset[index]
        kept = (item_T != self.id_to_strip).nonzero().flatten().tolist()
        return item_T[kept[0] : kept[-1] + 1] if kept else item_T[:0]


class OffsetTokensDataset(BaseWrapperDataset):
    """Adds a constant to every token id."""

    def __init__(self, dataset: Any, offset: int) -> None:
        super().__init__(dataset)
        self.offset = offset

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.dataset[index] + self.offset


class RollDataset(BaseWrapperDataset):
    """Rotates every item by ``shifts`` places to the right."""

    def __init__(self, dataset: Any, shifts: int) -> None:
        super().__init__(dataset)
        self.shifts = shifts

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.roll(self.dataset[index], self.shifts)


class ReplaceDataset(BaseWrapperDataset):
    """Replaces token ids in every item, or in every part of items that are tuples."""

    def __init__(self, dataset: Any, replace_map: Mapping[int, int], offsets: Sequence[int]):
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
        dataset: Any,
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
