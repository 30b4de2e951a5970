"""Iterators that know how far they are: counting, grouping, sharding and reading ahead.

``n`` is the number of elements consumed, those before a resume included; ``len()`` is the value
that ``n`` has at the end.
"""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

from fairseq.errors import ConfigError

MAX_BUFFER = 20
"""Elements that the training loop reads ahead at most: more cost memory and gain nothing."""
CHECK_SECONDS = 1.0


class Counted(Protocol):
    """What can be counted: a sequence, a loader, or another of these iterators."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class CountingIterator:
    """Counts the elements it hands out, and stops after a known number of them."""

    def __init__(
        self, iterable: Iterable[Any], start: int | None = None, total: int | None = None
    ) -> None:
        """Wrap ``iterable``.

        Args:
            iterable: what to iterate over; further elements than ``total`` are ignored.
            start: elements consumed before; None to go on counting where ``iterable`` stands.
            total: value of ``n`` at the end; None for all elements of ``iterable``.
        """
        self.iterable = iterable
        self.n = getattr(iterable, "n", 0) if start is None else start
        if total is None:
            total = self.n + len(cast("Counted", iterable)) - getattr(iterable, "n", 0)
        self.total = total
        self._itr: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> Any:
        if not self.has_next():
            raise StopIteration
        if self._itr is None:
            self._itr = iter(self.iterable)
        try:
            element = next(self._itr)
        except StopIteration:
            raise IndexError(
                f"iterator expected to have length {self.total}, but exhausted at position {self.n}"
            ) from None
        self.n += 1
        if not self.has_next():
            self._itr = None  # lets workers and threads behind it end now
        return element

    def has_next(self) -> bool:
        """Tell whether there is another element."""
        return self.n < self.total

    def skip(self, n: int) -> CountingIterator:
        """Consume ``n`` elements, or all there are."""
        for _ in itertools.islice(self, n):
            pass
        return self

    def take(self, n: int) -> CountingIterator:
        """Stop when ``n`` elements have been consumed, those before now included."""
        self.total = min(self.total, n)
        if hasattr(self.iterable, "take"):
            self.iterable.take(max(n - self.n, 0))
        return self


class GroupedIterator(CountingIterator):
    """Hands out lists of ``chunk_size`` consecutive elements; the last may be shorter."""

    def __init__(
        self, iterable: Counted, chunk_size: int, skip_remainder_batch: bool = False
    ) -> None:
        """Wrap ``iterable``.

        Args:
            iterable: what to group; a partly consumed counting iterator counts as groups consumed.
            chunk_size: elements of a group.
            skip_remainder_batch: leave out a last group that is not full.
        """
        done = getattr(iterable, "n", 0)
        left = len(iterable) - done
        n_groups = left // chunk_size if skip_remainder_batch else -(-left // chunk_size)
        # Rounded apart from each other, so that nothing is lost if ``done`` ends within a group.
        start = -(-done // chunk_size)
        if skip_remainder_batch and hasattr(iterable, "take"):
            iterable.take(done + n_groups * chunk_size)
        super().__init__(_groups(iterable, chunk_size), start=start, total=start + n_groups)
        self.chunk_size = chunk_size


def _groups(iterable: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of ``size`` consecutive elements; the last may be shorter."""
    iterator = iter(iterable)
    while group := list(itertools.islice(iterator, size)):
        yield group


class ShardedIterator(CountingIterator):
    """Hands out every ``num_shards``-th element, as many as any other shard does."""

    def __init__(
        self, iterable: Counted, num_shards: int, shard_id: int, fill_value: object = None
    ) -> None:
        """Wrap ``iterable``.

        Args:
            iterable: what all shards divide between them.
            num_shards: number of shards.
            shard_id: this shard, from 0.
            fill_value: stands for the element that shards at the end lack.

        Raises:
            ConfigError: if there is no such shard.
        """
        check_shard(num_shards, shard_id)
        done = getattr(iterable, "n", 0)
        # rounded up: every shard must take the same number of steps
        n_rounds = -(-(len(iterable) - done) // num_shards)
        mine = itertools.islice(iterable, shard_id, len(iterable) - done, num_shards)
        padded = itertools.islice(itertools.chain(mine, itertools.repeat(fill_value)), n_rounds)
        start = -(-done // num_shards)
        super().__init__(padded, start=start, total=start + n_rounds)


def check_shard(num_shards: int, shard_id: int) -> None:
    """Raise unless there is a shard ``shard_id`` (from 0) among ``num_shards``.

    Raises:
        ConfigError: if there is not.
    """
    if not 0 <= shard_id < num_shards:
        raise ConfigError(f"shard_id must be between 0 and {num_shards - 1}, not {shard_id}")


class BufferedIterator:
    """Reads elements ahead in a thread of its own."""

    def __init__(self, size: int, iterable: Counted) -> None:
        """Wrap ``iterable``.

        Args:
            size: elements to keep ready.
            iterable: what to read; needs a length. If its iterator has a method ``check``, that
                is called while an element is long in coming; it raises if none will come.
        """
        self.iterable = iterable
        self.total = len(iterable)
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._left = self.total
        self._close: Callable[[], object] = self._stop.set
        self._check: Callable[[], Any] = lambda: None

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> BufferedIterator:
        return self

    def take(self, n: int) -> BufferedIterator:
        """Stop after ``n`` elements; must be called before the first is asked for."""
        self.total = self._left = min(self.total, n)
        if hasattr(self.iterable, "take"):
            self.iterable.take(n)
        return self

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        if self._thread is None:
            # The thread must not hold on to self, or nobody could ever drop it.
            elements = iter(self.iterable)
            if hasattr(elements, "check"):  # weak: what is read to its end is dropped by the thread
                self._check = weakref.WeakMethod(elements.check)
            work = (itertools.islice(elements, self._left), self._queue, self._stop)
            del elements
            self._thread = threading.Thread(target=_read_ahead, args=work, daemon=True)
            self._thread.start()
            # joined, also at exit: a thread that is cut off inside a worker's queue aborts Python
            self._close = weakref.finalize(self, _end, self._thread, self._stop)
        element, error = self._wait()
        if error is not None:
            self._left = 0
            if isinstance(error, StopIteration):
                raise StopIteration
            raise error
        self._left -= 1
        return element

    def _wait(self) -> tuple[Any, BaseException | None]:
        while True:
            try:
                return self._queue.get(timeout=CHECK_SECONDS)
            except queue.Empty:
                check = self._check()
                if check is not None:
                    check()

    def __del__(self) -> None:
        self._close()


def read_ahead(batches: Counted, buffer_size: int, num_workers: int) -> Counted:
    """Return the batches, read ahead by a thread if so many are to be kept ready."""
    # with workers always: a thread that waits for a dead one must not be the run's own
    ahead = max(buffer_size, min(num_workers, 1))
    return BufferedIterator(min(ahead, MAX_BUFFER), batches) if ahead > 0 else batches


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    # the collector may drop the iterator from inside that very thread
    if thread is not threading.current_thread():
        # not for ever: it may be stuck in a disk that does not answer
        thread.join(timeout=5)


def _read_ahead(source: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    """Put (element, None) for each element, then (None, the exception that ended it)."""
    while not stop.is_set():
        try:
            message: Sequence[Any] = (next(source), None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that reads
            message = (None, error)
        while not stop.is_set():
            try:
                # waking up now and then, or a thread whose reader has gone would wait for ever
                ready.put(message, timeout=0.1)
                break
            except queue.Full:
                continue
        if message[1] is not None:
            return
