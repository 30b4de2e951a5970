"""Text files in blocks of whole lines: where they start, how to read and share them out.

A line ends at ``\\n``, ``\\r\\n`` or ``\\r``, as in Python's text mode; blocks never cut a line, so
whatever is computed block by block is the same for every block size and number of workers.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fairseq.errors import DataError, FairseqError
from fairseq.files.io import PathLike, require_file
from fairseq.files.processes import begin_worker, safe_context

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")
Span = tuple[int, int]

BLOCK_BYTES = 1 << 18
_BAR_AFTER_SECONDS = 2.0
_PIECE_BYTES = 1 << 16
_LINE_END = re.compile(rb"\r\n?|\n")


def _line_start_after(handle: io.BufferedReader, offset: int, size: int) -> int:
    """Return where the line after the one that holds byte ``offset`` starts, or ``size``."""
    handle.seek(offset)
    while piece := handle.read(_PIECE_BYTES):
        if match := _LINE_END.search(piece):
            start = offset + match.end()
            # the "\r" that ends this piece may be half of a "\r\n"
            cut_in_two = match.end() == len(piece) and match.group() == b"\r"
            return start + 1 if cut_in_two and handle.read(1) == b"\n" else start
        offset += len(piece)
    return size


def find_offsets(filename: PathLike, num_chunks: int) -> list[int]:
    """Return ``num_chunks + 1`` byte offsets of line starts that cut a file in like parts.

    Offset ``i`` is the first line start after byte ``size // num_chunks * i``; the first is 0 and
    the last the size of the file.
    """
    with open(filename, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        inner = [
            _line_start_after(handle, size // num_chunks * i, size) for i in range(1, num_chunks)
        ]
    return [0, *inner, size]


def block_spans(path: PathLike, start: int = 0, end: int | None = None) -> Iterator[Span]:
    """Yield ``(start, end)`` byte offsets of blocks of about ``BLOCK_BYTES`` of whole lines.

    Args:
        path: the text file.
        start: where a line starts.
        end: where a line ends; the end of the file if None.
    """
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size if end is None else end
        while start < size:
            target = start + BLOCK_BYTES
            stop = size if target >= size else _line_start_after(handle, target, size)
            yield start, min(stop, size)
            start = stop


def read_block(path: PathLike, span: Span) -> bytes:
    """Return the lines of one block as valid UTF-8, each ended by ``\\n``, the last one too.

    A byte-order mark at the head of the file is left out.

    Raises:
        DataError: naming file and byte, if the block is not UTF-8.
    """
    start, end = span
    with open(path, "rb") as handle:
        handle.seek(start)
        block = handle.read(end - start)
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{os.fspath(path)} is not UTF-8 text: {error.reason} at byte "
                f"{start + error.start} (0x{block[error.start]:02x}). Convert it, for instance "
                "with `iconv -f LATIN1 -t UTF-8`, or drop the damaged line."
            ) from error
    if start == 0:
        block = block.removeprefix(codecs.BOM_UTF8)
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return block if block.endswith(b"\n") else block + b"\n"


class Chunker:
    """Context manager: the lines of a file between two offsets of :func:`find_offsets`, as text.

    Args:
        path: the text file.
        start_offset: where its first line starts.
        end_offset: where its last line ends; 0 or less for the end of the file.
    """

    def __init__(self, path: PathLike, start_offset: int = 0, end_offset: int = -1) -> None:
        self.path = path
        self.start_offset = start_offset
        self.end_offset = end_offset if end_offset > 0 else None

    def __enter__(self) -> Iterator[str]:
        spans = block_spans(self.path, self.start_offset, self.end_offset)
        return itertools.chain.from_iterable(
            text_lines(read_block(self.path, span)) for span in spans
        )

    def __exit__(self, *_: object) -> None:
        """Nothing is held open between lines."""


def text_lines(block: bytes) -> Iterator[str]:
    """Yield the lines of a block of :func:`read_block` as text that ends in ``\\n``."""
    return iter(io.StringIO(block.decode("utf-8")))


_worker_function: Callable[[Any], Any] | None = None


def _start_worker(function: Callable[[Any], object]) -> None:
    global _worker_function
    _worker_function = function
    begin_worker()


def _run(task: object) -> Any:
    assert _worker_function is not None
    return _worker_function(task)


@dataclass(frozen=True)
class _OnBlock(Generic[Result]):
    """Applies a function to the blocks of a file, given by their spans."""

    path: PathLike
    function: Callable[[bytes], Result]

    def __call__(self, span: Span) -> Result:
        return self.function(read_block(self.path, span))


def map_blocks(
    path: PathLike,
    function: Callable[[bytes], Result],
    num_workers: int = 1,
    label: str = "reading",
) -> Iterator[Result]:
    """Yield ``function(block)`` for the blocks of a text file, in the order of the file.

    ``function`` may keep state, but each worker process has its own copy of it and sees only some
    of the blocks.

    Args:
        path: the text file.
        function: takes a block of :func:`read_block`; picklable where processes are spawned.
        num_workers: processes; a file of a few blocks is done in this one.
        label: what is done, for the progress bar.

    Raises:
        DataError: if the file is not UTF-8.
        FairseqError: if a worker process dies.
        MissingFileError: if the file is absent or unreadable.
    """
    size = require_file(path, "text file", "Check the path.").stat().st_size
    # starting processes takes longer than reading so little
    if size <= 8 * BLOCK_BYTES:
        num_workers = 1
    yield from map_spans(
        path, _OnBlock(path, function), block_spans(path), num_workers, f"{label} {path}"
    )


def chunk_spans(path: PathLike, num_workers: int) -> list[Span]:
    """Cut a file into spans of whole lines, a few for each worker, that memory hardly notices.

    Raises:
        MissingFileError: if the file is absent or unreadable.
    """
    size = require_file(path, "text file", "Check the path.").stat().st_size
    # some sixteen spans a worker: whoever is slow holds up a small part of the whole
    chunk = min(max(size // (16 * num_workers), BLOCK_BYTES), 32 * BLOCK_BYTES)
    offsets = sorted(set(find_offsets(path, max(size // chunk, 1))))
    return list(itertools.pairwise(offsets))


def map_spans(
    path: PathLike,
    function: Callable[[Span], Result],
    spans: Iterable[Span],
    num_workers: int,
    label: str,
) -> Iterator[Result]:
    """Yield ``function(span)`` for spans that cover a file, and show how far it is."""
    spans, shown = itertools.tee(spans)
    with progress(label, os.stat(path).st_size) as show:
        results = map_tasks(function, spans, num_workers, label)
        for (_, end), result in zip(shown, results, strict=True):
            yield result
            show(end)


def map_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int, label: str
) -> Iterator[Result]:
    """Yield ``function(task)`` for each task in their order, computed by several processes.

    At most ``2 * num_workers`` tasks are under way at once.

    Args:
        function: picklable where processes are spawned.
        tasks: picklable arguments.
        num_workers: processes; one means this process.
        label: what is done, for messages.

    Raises:
        FairseqError: if a worker process dies.
    """
    if num_workers <= 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(num_workers, safe_context(), _start_worker, (function,))
    try:
        for future in _ahead((pool.submit(_run, task) for task in tasks), 2 * num_workers):
            yield future.result()
    except BrokenProcessPool as error:
        raise FairseqError(
            f"a process was killed while {label}, perhaps for lack of memory; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield ``items``, each when ``count`` of them, itself included, have been taken."""
    taken = deque(itertools.islice(items, count))
    while taken:
        yield taken.popleft()
        taken.extend(itertools.islice(items, 1))


@contextlib.contextmanager
def progress(label: str, size: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many of ``size`` bytes, or other units, are done.

    The size is None where nobody knows it.

    A bar with the time to go appears on standard error after two seconds, if that is a terminal.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None

        def show(done: int) -> None:
            nonlocal bar
            if bar is None and time.monotonic() - begun > _BAR_AFTER_SECONDS:
                bar = stack.enter_context(_progress_bar(unit))
                bar.add_task(label, total=size)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)

        yield show if sys.stderr.isatty() else lambda done: None


def _progress_bar(unit: str) -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *(
            [progress.DownloadColumn(), progress.TransferSpeedColumn()]
            if unit == "bytes"
            else [progress.MofNCompleteColumn(), progress.TextColumn(unit)]
        ),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


Tokenize = Callable[[str], list[str]]


def tokenize_line(line: str) -> list[str]:
    """Split a line at runs of Unicode white space (``\\s``, the same that ``str.split`` knows)."""
    return line.split()
