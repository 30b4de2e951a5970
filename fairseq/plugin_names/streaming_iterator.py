"""``StreamingEpochBatchIterator``: batches of a dataset that can only be read in sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.utils.data

from fairseq.data.batches.counting import CountingIterator, read_ahead
from fairseq.data.batches.protocol import EpochBatchIterating
from fairseq.data.batches.read import WatchedBatches, set_epoch
from fairseq.distributed.signals import outlive_stop_signals
from fairseq.errors import DataError


class StreamingEpochBatchIterator(EpochBatchIterating):
    """Iterates over a dataset that can only be read in sequence; its position is an epoch."""

    def __init__(
        self,
        dataset: object,
        max_sentences: int = 1,
        collate_fn: Callable[[list[object]], object] | None = None,
        epoch: int = 1,
        num_workers: int = 0,
        buffer_size: int = 0,
        timeout: int = 0,
        persistent_workers: bool = False,
    ) -> None:
        """Iterate over ``dataset``.

        Args:
            dataset: a torch ``IterableDataset`` with a length; with workers it has to see to it
                that each yields its own part.
            max_sentences: samples of a batch.
            collate_fn: merges a list of samples.
            epoch: the first epoch.
            num_workers: processes that read data; 0 to read in this one.
            buffer_size: batches to keep ready in a thread of this process.
            timeout: seconds after which a worker counts as stuck; 0 for never.
            persistent_workers: keep the workers, and with them the epoch that they were told.

        Raises:
            DataError: if the dataset is of another kind, or has no length.
        """
        if not isinstance(dataset, torch.utils.data.IterableDataset):
            raise DataError("only a torch IterableDataset can be streamed; use EpochBatchIterator")
        if not hasattr(dataset, "__len__"):
            raise DataError("the dataset to stream needs a length: give it __len__")
        self.dataset = dataset
        self.epoch = max(epoch, 1)
        self.buffer_size = buffer_size
        self._current: CountingIterator | None = None
        self._loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=max_sentences,
            collate_fn=collate_fn,
            num_workers=num_workers,
            timeout=timeout if num_workers > 0 else 0,  # torch refuses it without workers
            worker_init_fn=getattr(dataset, "worker_init_fn", outlive_stop_signals),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent_workers and num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def next_epoch_itr(
        self,
        shuffle: bool = True,
        fix_batches_to_gpus: bool = False,
        set_dataset_epoch: bool = True,
    ) -> CountingIterator:
        """Return an iterator over the next epoch, in the dataset's own order."""
        self.epoch = self.next_epoch_idx
        if set_dataset_epoch:
            set_epoch(self.dataset, self.epoch)
        batches: Any = _Stream(self._loader)
        batches = read_ahead(batches, self.buffer_size, self._loader.num_workers)
        self._current = CountingIterator(batches, start=0)
        return self._current

    def end_of_epoch(self) -> bool:
        return self._current is not None and not self._current.has_next()

    @property
    def iterations_in_epoch(self) -> int:
        return self._current.n if self._current is not None else 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.next_epoch_idx}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to the beginning of an epoch."""
        self.epoch = state_dict["epoch"]
        self._current = None


class _Stream:
    """The batches of a torch loader, whose workers are watched."""

    def __init__(self, loader: torch.utils.data.DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return WatchedBatches(self.loader)
