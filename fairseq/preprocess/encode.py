"""The corpus side of encoding: train a tokenizer, encode and decode whole files.

Files are read in blocks of lines or documents and written in order, so memory does not grow with
the corpus; blocks are spread over worker processes. Outputs appear under their names when they are
complete.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, ClassVar

from fairseq.data.encoders import TextEncoder
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files.documents import (
    BLANK,
    EMPTY,
    DocumentOptions,
    JsonLines,
    Table,
    lines_of,
    reader_of,
)
from fairseq.files.io import PathLike, atomic_write
from fairseq.files.line_reader import STANDARD, Block, LineReader, open_output
from fairseq.files.text_blocks import map_tasks, progress
from fairseq.lazy import require_library

logger = logging.getLogger(__name__)

LONGEST_WORD = 1000
_TOO_LONG = re.compile(rf"(\S{{{LONGEST_WORD}}})(?=\S)")


@dataclasses.dataclass
class Summary:
    """What a pass over files did; ``bytes_read`` is the size of the inputs, unpacked.

    Where records are read, ``records`` lines or rows gave ``documents``; ``left_out`` says why how
    many of them gave none, and ``skipped`` how many of these were bad.
    """

    lines: int = 0
    written: int = 0
    dropped: int = 0
    records: int = 0
    documents: int = 0
    skipped: int = 0
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    bytes_read: int = 0
    seconds: float = 0.0

    def add(self, other: Summary) -> None:
        """Add the counts of ``other``."""
        left_out = collections.Counter(self.left_out) + collections.Counter(other.left_out)
        self.left_out = dict(sorted(left_out.items()))
        for field in dataclasses.fields(self):
            if field.name != "left_out":
                total = getattr(self, field.name) + getattr(other, field.name)
                setattr(self, field.name, total)

    def of_records(self) -> str:
        """Return how many records were read, and what became of them."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        left_out = f" (left out: {reasons})" if reasons else ""
        return f"{self.records:,} records read, {self.documents:,} documents{left_out}"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done to every block of lines; sent once to each worker process."""

    reader: LineReader
    bpe: TextEncoder
    decode: bool = False
    keep_empty: bool = False
    separator: ClassVar[bytes] = b""

    def __call__(self, block: Block) -> tuple[list[bytes], Summary]:
        """Return the outputs' bytes for a block, one per file, and its counts."""
        columns = [self.reader.lines(block, place) for place in range(len(block.columns))]
        count = len(columns[0])
        if not self.keep_empty:
            columns = _full(columns)
        convert = self.bpe.decode if self.decode else self.bpe.encode
        results = [[convert(line) for line in column] for column in columns]
        # a line may come to nothing, of control characters alone
        if not self.keep_empty:
            results = _full(results)
        summary = Summary(
            lines=count,
            written=len(results[0]),
            dropped=count - len(results[0]),
            tokens=sum(map(_count_pieces, columns if self.decode else results)),
            bytes_read=sum(map(len, block.columns)),
        )
        texts = ["".join([line + "\n" for line in column]) for column in results]
        return [text.encode("utf-8", errors="replace") for text in texts], summary


@dataclasses.dataclass(frozen=True)
class DocumentJob:
    """What is done to every block of documents; an empty line parts two of them."""

    reader: JsonLines | Table
    bpe: TextEncoder
    separator: ClassVar[bytes] = b"\n"

    def __call__(self, block: Any) -> tuple[list[bytes], Summary]:
        """Return the bytes of a block's documents, and its counts."""
        read = self.reader.texts(block)
        encode = self.bpe.encode
        # a line may come to nothing, of control characters alone: it must not part the document
        coded = [list(filter(None, map(encode, lines_of(text)))) for text in read.texts]
        documents = [lines for lines in coded if lines]
        lines = sum([text.count("\n") + 1 for text in read.texts])
        written = sum(map(len, documents))
        summary = Summary(
            lines=lines,
            written=written,
            dropped=lines - written,
            records=len(read.texts) + read.bad.total() + read.blank,
            documents=len(documents),
            skipped=read.bad.total(),
            left_out={**read.bad, BLANK: read.blank, EMPTY: len(read.texts) - len(documents)},
            tokens=sum(map(_count_pieces, documents)),
            bytes_read=read.size,
        )
        text = "\n".join(["".join([line + "\n" for line in lines]) for lines in documents])
        return [text.encode("utf-8", errors="replace")], summary


AnyJob = Job | DocumentJob


def _full(columns: list[list[str]]) -> list[list[str]]:
    """Return parallel lines without those that are empty in any of the columns."""
    full = [group for group in zip(*columns, strict=True) if all(group)]
    return [[group[place] for group in full] for place in range(len(columns))]


def _count_pieces(lines: list[str]) -> int:
    return sum([line.count(" ") + 1 for line in lines if line])


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _map_blocks(job: AnyJob, workers: int) -> Generator[tuple[list[bytes], Summary], None, None]:
    """Yield ``job(block)`` in the order of the blocks, few of which are in memory at a time."""
    blocks: Iterator[Any] = job.reader.blocks()
    head = list(itertools.islice(blocks, 2))
    # a single block is not worth a process
    workers = workers if len(head) > 1 else 1
    yield from map_tasks(job, itertools.chain(head, blocks), workers, "converting text")


def _total_size(names: Sequence[str]) -> int | None:
    if not all(os.path.isfile(name) and not name.endswith(".gz") for name in names):
        return None
    return sum(os.path.getsize(name) for name in names)


def _check_names(inputs: Sequence[str], outputs: Sequence[str], workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, found {workers}")
    if not inputs or len(inputs) != len(outputs):
        raise ConfigError(
            f"--inputs names {len(inputs)} files and --outputs {len(outputs)}; each input needs "
            "its output"
        )
    if list(inputs).count(STANDARD) > 1:
        raise ConfigError("standard input ('-') can be read once only: check --inputs")
    if len({os.path.abspath(name) for name in outputs}) < len(outputs):
        raise ConfigError("two outputs have the same name: check --outputs")


def _convert(jobs: Sequence[AnyJob], outputs: Sequence[str], workers: int) -> Summary:
    """Run ``jobs`` one after the other; together they read as many files as are written."""
    start, total = time.monotonic(), Summary()
    names = [name for job in jobs for name in job.reader.names]
    _check_names(names, outputs, workers)
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress("converting text", _total_size(names)))
        targets = iter([open_output(name, stack) for name in outputs])
        for job in jobs:
            files = list(itertools.islice(targets, len(job.reader.names)))
            results = stack.enter_context(contextlib.closing(_map_blocks(job, workers)))
            of_job, separator = Summary(), b""
            for texts, count in results:
                for file, text in zip(files, texts, strict=True):
                    file.write(separator + text if text else b"")
                    separator = job.separator if text else separator
                of_job.add(count)
                show(total.bytes_read + of_job.bytes_read)
            if of_job.skipped and not of_job.documents:
                raise DataError(
                    f"{job.reader.names[0]}: none of its {of_job.skipped:,} records has a text "
                    "under the key; check --text-key, or see the first one's fault without "
                    "--skip-bad-records"
                )
            total.add(of_job)
    total.seconds = time.monotonic() - start
    return total


def encode_files(
    bpe: TextEncoder,
    inputs: Sequence[str],
    outputs: Sequence[str],
    keep_empty: bool = False,
    workers: int = 1,
    jsonl_field: str | None = None,
    documents: DocumentOptions | None = None,
) -> Summary:
    """Encode text files line by line, or documents, with an empty line between two of them.

    Args:
        bpe: the encoder; with several workers it is pickled.
        inputs: paths or ``"-"``; with ``documents`` also folders of datasets.
        outputs: one path or ``"-"`` for each input.
        keep_empty: an empty line stays an empty line, and each input is a file of its own. Without
            it the inputs are parallel files, and a group of lines is dropped if any is empty or
            has no pieces.
        workers: processes that encode; the result does not depend on it.
        jsonl_field: each line is a JSON object and its text stands in this field.
        documents: inputs are records, one document each, and every input is a file of its own.

    Raises:
        ConfigError: if names and flags do not fit together.
        MissingFileError: if an input does not exist.
        DataError: on text that is not UTF-8 or not JSON, or parallel files of different lengths.
    """
    if documents is not None:
        if keep_empty:
            raise ConfigError(
                "--keep-empty is for plain text, drop it here: an empty line always parts two "
                "documents, and empty lines inside a document are left out"
            )
        readers = [reader_of(name, documents) for name in inputs]
        return _convert([DocumentJob(reader, bpe) for reader in readers], outputs, workers)
    job = functools.partial(Job, bpe=bpe, keep_empty=keep_empty)
    groups = [[name] for name in inputs] if keep_empty else [list(inputs)]
    return _convert([job(LineReader(group, jsonl_field)) for group in groups], outputs, workers)


def decode_files(
    bpe: TextEncoder, inputs: Sequence[str], outputs: Sequence[str], workers: int = 1
) -> Summary:
    """Turn encoded files back into text; arguments and errors as in :func:`encode_files`."""
    job = functools.partial(Job, bpe=bpe, decode=True, keep_empty=True)
    return _convert([job(LineReader([name])) for name in inputs], outputs, workers)


def _lines(
    inputs: Sequence[str], jsonl_field: str | None, documents: DocumentOptions | None
) -> Iterator[tuple[list[str], int]]:
    """Yield the lines of inputs, and the bytes they take, in parts."""
    for name in inputs:
        if documents is None:
            reader = LineReader([name], jsonl_field)
            for block in reader.blocks():
                lines = reader.lines(block, 0)
                yield _without_long_words(lines, name, block.first_line), len(block.columns[0])
            continue
        records, seen = reader_of(name, documents), 1
        for rows in records.blocks():
            read = records.texts(rows)  # type: ignore[arg-type]
            lines = [line for text in read.texts for line in lines_of(text)]
            yield _without_long_words(lines, f"the text of {name}", seen), read.size
            seen += len(lines)


def _without_long_words(lines: list[str], name: str, first: int) -> list[str]:
    """Cut words that are too long for the library, whose time grows with the square of a word's.

    Args:
        lines: to look through.
        name: where they stand, for the warning.
        first: number of the first one.
    """
    result = []
    for number, line in enumerate(lines, first):
        parts = _TOO_LONG.sub(r"\1\n", line).split("\n") if len(line) > LONGEST_WORD else [line]
        if len(parts) > 1:
            logger.warning(
                "%s, line %d: a word of more than %d characters is cut for learning, since time "
                "grows with the square of the longest",
                name,
                number,
                LONGEST_WORD,
            )
        result += parts
    return result


def train_byte_level(
    inputs: Sequence[str],
    vocab_size: int,
    output: PathLike,
    min_frequency: int = 2,
    jsonl_field: str | None = None,
    documents: DocumentOptions | None = None,
) -> int:
    """Learn a byte-level BPE from text files and write it as a ``tokenizer.json``.

    Args:
        inputs: paths or ``"-"``.
        vocab_size: number of pieces wished, the 256 bytes included.
        output: the file to write.
        min_frequency: a pair seen less often is not merged.
        jsonl_field: each line is a JSON object and its text stands in this field.
        documents: inputs are records, one document each.

    Returns:
        The number of pieces; fewer than wished if the text is too small to offer more.

    Raises:
        ConfigError: if ``vocab_size`` is below 256 or the package ``tokenizers`` is missing.
        MissingFileError: if an input does not exist.
        DataError: on text that is not UTF-8 or not JSON, or no text at all.
    """
    if vocab_size < 256:
        raise ConfigError(f"--vocab-size {vocab_size}: the 256 bytes alone need 256 pieces")
    folder = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise MissingFileError(f"--output {output}: there is no folder {folder}; make it first")
    library = require_library("tokenizers", "training a tokenizer")

    empty = True

    def lines() -> Iterator[list[str]]:
        nonlocal empty
        done = 0
        with progress("reading text", _total_size(inputs)) as show:
            for part, size in _lines(inputs, jsonl_field, documents):
                empty = empty and not any(line.strip() for line in part)
                yield part
                done += size
                show(done)

    tokenizer = library.Tokenizer(library.models.BPE())
    byte_level: Callable[..., Any] = library.pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    if empty:
        raise DataError(f"--inputs {' '.join(inputs)}: there is no text to learn pieces from")
    with atomic_write(output, "w") as handle:
        handle.write(tokenizer.to_str(pretty=True) + "\n")
    return int(tokenizer.get_vocab_size())
