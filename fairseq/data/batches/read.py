"""Read batches in this process or in workers, with the right epoch and with clear errors."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
import torch.utils.data

from fairseq.data.datasets.base import FairseqDataset
from fairseq.distributed.signals import outlive_stop_signals
from fairseq.errors import FairseqError
from fairseq.files.processes import can_be_sent, exit_with_parent, safe_context

logger = logging.getLogger(__name__)

Request = tuple[int | None, Sequence[int] | np.ndarray]


def set_epoch(dataset: torch.utils.data.Dataset[Any], epoch: int) -> None:
    """Tell a dataset the epoch, if it cares."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)


class BatchLoader:
    """Reads batches of a map-style dataset; one loader serves all epochs.

    The epoch travels with every request, so that the copy of the dataset in a worker never has an
    old one, however long the worker has lived and however it was started.
    """

    def __init__(
        self,
        dataset: FairseqDataset,
        collate_fn: Callable[[list[Any]], Any],
        num_workers: int,
        timeout: int,
        persistent_workers: bool,
    ) -> None:
        """Read from ``dataset``.

        Args:
            dataset: any dataset with an index.
            collate_fn: merges a list of items.
            num_workers: processes that read data, each with one thread; 0 for this process.
            timeout: seconds after which a worker counts as stuck; 0 for never.
            persistent_workers: keep workers from one call of :meth:`read` to the next.
        """
        self.num_workers = num_workers
        self._requests = _Requests()
        self._loader = torch.utils.data.DataLoader(
            _BatchReader(dataset, collate_fn),
            # the sampler hands out whole requests; torch must not batch them again
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_is,
            num_workers=num_workers,
            worker_init_fn=begin_data_worker,
            timeout=timeout if num_workers > 0 else 0,  # torch refuses it without workers
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent_workers and num_workers > 0,
        )

    def read(self, requests: Sequence[Request]) -> Iterator[Any]:
        """Yield one batch per request.

        Args:
            requests: pairs of an epoch, None to leave the dataset's alone, and sample numbers.

        Raises:
            FairseqError: if a worker dies or is stuck.
        """
        self._requests.items = requests
        if self._loader.num_workers > 0:
            # at every start: the dataset may have become one that cannot be pickled
            self._loader.multiprocessing_context = data_context(self._loader.dataset)
        return WatchedBatches(self._loader)


def begin_data_worker(worker: int) -> None:
    """Prepare a process that reads data; for ``worker_init_fn``."""
    outlive_stop_signals(worker)
    exit_with_parent()


def data_context(dataset: torch.utils.data.Dataset[Any]) -> BaseContext:
    """Return how processes that read a dataset are started.

    Torch's own choice is a fork, which is unsafe beside the threads that training runs. A dataset
    that cannot be pickled, as of a plug-in, is forked all the same.
    """
    chosen = torch.multiprocessing.get_start_method(allow_none=True)
    if chosen not in (None, "fork"):
        return torch.multiprocessing.get_context(chosen)
    context = safe_context()
    if context.get_start_method() != "forkserver" or can_be_sent(dataset):
        return context
    logger.warning(
        "the dataset cannot be pickled, so that processes that read it are forked from one that "
        "runs threads; if they get stuck, use --num-workers 0"
    )
    return torch.multiprocessing.get_context("fork")


FEWER = (
    "It may have been killed for want of memory; use fewer --num-workers, or --num-workers 0 to "
    "see its error"
)


class WatchedBatches:
    """The batches of a torch loader, from its workers; a worker that dies or is stuck is explained.

    Torch's own watch raises in the main thread, wherever that stands: within a save, or where the
    error is swallowed. Here the one who waits for a batch finds out.
    """

    def __init__(self, loader: torch.utils.data.DataLoader[Any]) -> None:
        """Start the workers of ``loader``, or wake them.

        Raises:
            FairseqError: if one that was kept from an earlier epoch is dead.
        """
        self._workers: Sequence[BaseProcess] = ()
        here = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if here else None
        try:
            with self._explained():
                self._batches = iter(loader)
        finally:
            if here:  # torch's handler is what raises
                signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        self._workers = getattr(self._batches, "_workers", ())
        # so that an error in the main thread can end the workers, see workers_ended
        _open.add(self._batches)

    def __iter__(self) -> WatchedBatches:
        return self

    def __next__(self) -> Any:
        with self._explained():
            batch = next(self._batches)
        if isinstance(batch, FairseqError):  # what a worker met
            raise batch
        return batch

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            # a process that ends closes its connections a moment before it is known to be dead
            worker = "DataLoader worker (pid" in str(error)
            broken = worker or (self._workers and not isinstance(error, RuntimeError))
            if broken and (death := _death(self._workers, 2)) is not None:
                raise death from error
            if worker:
                raise FairseqError(f"a process that reads data died: {error}. {FEWER}") from error
            if "DataLoader timed out" in str(error):
                raise FairseqError(
                    f"the processes that read data are stuck or too slow: {error}. Check the "
                    "disk, or use --num-workers 0"
                ) from error
            raise

    def check(self) -> None:
        """Raise if a worker is dead: the thread that reads may wait for it for ever.

        Raises:
            FairseqError: if so.
        """
        if (error := _death(self._workers)) is not None:
            raise error


def _death(workers: Sequence[BaseProcess], seconds: float = 0) -> FairseqError | None:
    """Return an error that names a worker which died, within so many seconds; None without one."""
    deadline = time.monotonic() + seconds
    while True:
        for worker in workers:
            if code := worker.exitcode:  # 0 is the end of an epoch
                how = f" ({signal.strsignal(-code)})" if code < 0 else ""
                told = f"a process that reads data died{how}: pid {worker.pid}"
                return FairseqError(f"{told}. {FEWER}")
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


# Iterators of torch loaders that are still needed.
_open: weakref.WeakSet[Any] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)  # a parent's workers are not the child's


@contextlib.contextmanager
def workers_ended() -> Iterator[None]:
    """End data workers with the block if an error ends it.

    They would not heed the SIGTERM that Python's exit sends them, since they outlive a
    scheduler's, and keep this process waiting.
    """
    try:
        yield
    except BaseException:
        _kill_workers()
        raise


def _kill_workers() -> None:
    workers = [w for batches in list(_open) for w in getattr(batches, "_workers", ())]
    if (
        not workers
        or not hasattr(signal, "SIGCHLD")
        or threading.current_thread() is not threading.main_thread()
    ):
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise again
    try:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join()
    finally:
        signal.signal(signal.SIGCHLD, previous)


class _BatchReader(torch.utils.data.Dataset):
    """A dataset whose keys are requests and whose items are batches."""

    def __init__(self, dataset: FairseqDataset, collate_fn: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self.dataset = dataset
        self.collate_fn = collate_fn
        self._epoch: int | None = None

    def __getitem__(self, request: Request) -> Any:
        epoch, indices = request
        # a worker lives in a process of its own: the epoch travels with the request, since no call
        # of the main process reaches this copy of the dataset
        if epoch is not None and epoch != self._epoch:
            set_epoch(self.dataset, epoch)
            self._epoch = epoch
        try:
            return self.collate_fn([self.dataset[int(index)] for index in indices])
        except FairseqError as error:  # torch would put a worker's traceback into its message
            return error


class _Requests(torch.utils.data.Sampler):
    """The requests of the epoch that is being read."""

    def __init__(self) -> None:
        self.items: Sequence[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _as_is(batch: object) -> Any:
    """Return the batch, which has been collated already."""
    return batch
