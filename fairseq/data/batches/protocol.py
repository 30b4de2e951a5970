"""``EpochBatchIterating``: what the training loop asks of an iterator over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EpochBatchIterating:
    """Gives one iterator over batches per epoch, and knows its position."""

    epoch: int

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def next_epoch_idx(self) -> int:
        """Return the epoch that :meth:`next_epoch_itr` would begin or go on with."""
        return self.epoch + 1 if self.end_of_epoch() else self.epoch

    def next_epoch_itr(
        self,
        shuffle: bool = True,
        fix_batches_to_gpus: bool = False,
        set_dataset_epoch: bool = True,
    ) -> Any:
        """Return an iterator over the next epoch, or over the rest of one that was loaded.

        Args:
            shuffle: shuffle the batches; a position that was loaded keeps its own shuffling.
            fix_batches_to_gpus: always read a batch in the same shard, if the dataset has
                ``supports_prefetch``.
            set_dataset_epoch: tell the dataset the epoch; off for a fixed validation set.
        """
        raise NotImplementedError

    def end_of_epoch(self) -> bool:
        """Tell whether the last batch of the epoch has been read."""
        raise NotImplementedError

    @property
    def iterations_in_epoch(self) -> int:
        """Return the number of batches read in this epoch."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain Python values."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a position returned by :meth:`state_dict`."""
        raise NotImplementedError

    @property
    def first_batch(self) -> Any:
        """Return some batch, to try things out with, or ``"DUMMY"`` if that is impossible."""
        return "DUMMY"


class FinishedEpoch:
    """An epoch iterator as it was at the end of the epoch before the one where it stands."""

    def __init__(self, epoch_itr: EpochBatchIterating) -> None:
        self.epoch = epoch_itr.epoch - 1
        self.state_dict = epoch_itr.state_dict

    def end_of_epoch(self) -> bool:
        """Return True."""
        return True
