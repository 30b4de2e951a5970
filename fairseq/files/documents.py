"""Corpora as documents: JSON lines, plain or gzipped, Parquet files, saved ``datasets`` folders.

A record is a document, its text stands under a key. A reader cuts a corpus into blocks, few of
which are in memory at a time, and turns a block into texts; the second part may happen in another
process.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from fairseq.errors import ConfigError, DataError
from fairseq.files import columns, line_reader
from fairseq.files.io import require_file
from fairseq.files.line_reader import Block, LineReader

SUFFIXES = (".jsonl", ".jsonl.gz")
SKIP = "leave such records out with --skip-bad-records"
BLANK, EMPTY = "blank line", "empty text"
SPLIT = re.compile(r"([^():]*)(?:\(([^():]*):([^():]*)\))?")


@dataclasses.dataclass(frozen=True)
class DocumentOptions:
    """How documents are found.

    Attributes:
        text_key: the field or column of the text; ``a.b`` is the field b of a.
        skip_bad: leave records without text out instead of raising.
        split: of columns, ``name`` or ``name(lo:hi)``; ``train``, or all rows where there are no
            splits, if None.
        remedy: what a message says is to be done with records without text.
    """

    text_key: str = "text"
    skip_bad: bool = False
    split: str | None = None
    remedy: str = SKIP


class BadRecord(DataError):
    """A record without text; ``reason`` says in short why."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Texts:
    """The documents of a block, its size in bytes, and why how many records hold none.

    ``bad`` counts records that were skipped on request, ``blank`` lines without any record.
    """

    texts: list[str]
    size: int
    bad: Counter[str] = dataclasses.field(default_factory=Counter)
    blank: int = 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a dataset, and the number of the first one, from 0."""

    records: list[dict[str, Any]]
    first: int


def lines_of(text: str) -> list[str]:
    """Return the lines of a document, stripped, without empty ones: those part documents."""
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def choose_options(
    inputs: Sequence[str],
    text_key: str | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    jsonl_field: str | None = None,
) -> DocumentOptions | None:
    """Return how inputs are read as documents, None if a ``LineReader`` reads them.

    Args:
        inputs: paths or ``"-"``. Folders, Parquet files and names in ``.jsonl`` or ``.jsonl.gz``
            hold documents.
        text_key: key of the text; if given, all inputs hold documents.
        skip_bad: leave records without text out.
        split: split of a datasets folder, fractions of the rows of a Parquet file.
        jsonl_field: the field of ``--jsonlines``, which makes each record a single line.

    Raises:
        ConfigError: if flags and inputs do not fit together.
    """
    folders = [name for name in inputs if columns.holds_columns(name)]
    if jsonl_field is not None:
        if text_key is not None or skip_bad or split is not None or folders:
            raise ConfigError(
                "--jsonlines makes each record one line; for documents drop it, and name the field "
                "with --text-key"
            )
        return None
    if split is not None and len(folders) < len(inputs):
        raise ConfigError("--split belongs to datasets folders and Parquet files")
    text = [name for name in inputs if name not in folders and not name.endswith(SUFFIXES)]
    if text_key is None and len(text) == len(inputs):
        if skip_bad:
            raise ConfigError("--skip-bad-records belongs to JSON lines: add --text-key text")
        return None
    if text_key is None and text:
        raise ConfigError(
            f"{text[0]} is read as plain text, other inputs as JSON lines: encode them in calls of "
            "their own, or say --text-key if all are JSON lines"
        )
    return DocumentOptions(text_key or "text", skip_bad, split)


def text_of(record: object, key: str, where: str, remedy: str = SKIP) -> str:
    """Return the text under ``key``, a field of that very name or a path ``a.b``.

    Args:
        record: an object of JSON, a row.
        key: the key.
        where: its place, for messages.
        remedy: what to do with such records, for messages.

    Raises:
        DataError: if there is no text.
        ConfigError: if there are token ids.
    """
    fields, value = record if isinstance(record, Mapping) else {}, record
    # a field whose own name has a dot wins over a path
    for part in [key] if key in fields else key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(number, int) for number in value):
        raise ConfigError(
            f"{where}: '{key}' holds token ids, not text. Which tokenizer they belong to is not "
            "written there, and packed rows have lost the borders of documents. Encode the column "
            f"of the text instead (fields: {', '.join(fields)}), or the corpus it was made from"
        )
    raise BadRecord(
        f"{where}: no text under '{key}' (fields: {', '.join(map(str, fields)) or 'none'}). Name "
        f"the key with --text-key, or {remedy}",
        f"no text under '{key}'",
    )


def _readable(
    records: Iterable[Any], read: Callable[[Any], str], skip_bad: bool
) -> tuple[list[str], Counter[str]]:
    """Return the texts of records, and why how many of them have none, if that is allowed."""
    texts, bad = [], Counter[str]()
    for record in records:
        try:
            texts.append(read(record))
        except BadRecord as error:
            if not skip_bad:
                raise
            bad[error.reason] += 1
    return texts, bad


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one file or folder."""

    name: str
    options: DocumentOptions

    @property
    def names(self) -> list[str]:
        """Return the name as a list, as of readers of several files."""
        return [self.name]


class JsonLines(_Reader):
    """A file of JSON lines, gzipped if its name ends in ``.gz``; empty lines are passed over."""

    def blocks(self) -> Iterator[Block]:
        """Yield blocks of whole lines.

        Raises:
            MissingFileError: if the file does not exist.
            DataError: if it is no sound gzip file.
        """
        if not self.name.endswith(".gz"):
            yield from LineReader([self.name], json_lines=True).blocks()
            return
        path = require_file(self.name, "input", "Check --inputs.")
        offset, line = 0, 1
        with gzip.open(path, "rb") as handle:
            while True:
                try:
                    # whole lines of about so many bytes
                    lines = handle.readlines(line_reader.BLOCK_BYTES)
                except (OSError, EOFError, zlib.error) as error:
                    raise DataError(
                        f"{self.name}: damaged gzip file, in or after line {line} ({error})"
                    ) from error
                if not lines:
                    return
                yield Block([b"".join(lines)], [offset], line)
                offset, line = offset + sum(map(len, lines)), line + len(lines)

    def texts(self, block: Block) -> Texts:
        """Return the texts of a block.

        Raises:
            DataError: on a line that is no JSON object with a text, unless such lines are skipped.
            ConfigError: if the key holds token ids.
        """
        data = block.columns[0]
        # not splitlines(), which also parts at a lone carriage return
        lines = data.removesuffix(b"\n").split(b"\n")
        numbered = [(n, line) for n, line in enumerate(lines, block.first_line) if line.strip()]
        texts, bad = _readable(
            numbered,
            lambda one: self._text(one[1], f"{self.name}, line {one[0]}"),
            self.options.skip_bad,
        )
        return Texts(texts, len(data), bad, len(lines) - len(numbered))

    def _text(self, line: bytes, where: str) -> str:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadRecord(
                f"{where}: not JSON in UTF-8 ({error}). Mend the line, or {self.options.remedy}",
                "not JSON",
            ) from error
        text = text_of(record, self.options.text_key, where, self.options.remedy)
        if b"\\u" in line:  # an escape may be half a pair, which no file of text can hold
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text


def parse_split(split: str) -> tuple[str, Fraction, Fraction]:
    """Read ``name``, ``name(lo:hi)``, ``name(:hi)`` or ``name(lo:)``, fractions of the rows.

    Raises:
        ConfigError: unless 0 <= lo < hi <= 1.
    """
    match = SPLIT.fullmatch(split.strip())
    try:
        # left out, the second group is 0 and the third 1; fractions, as 0.9999 of n must not round
        low, high = [Fraction(match[place] or place - 2) for place in (2, 3)] if match else (0, 0)
    except (ValueError, ZeroDivisionError):
        low = high = Fraction(0)
    if not match or not 0 <= low < high <= 1:
        raise ConfigError(
            f"--split {split}: expected a name, or a name and fractions of its rows with "
            "0 <= lo < hi <= 1, such as 'train(0:0.9999)' or 'train(0.9999:)'"
        )
    return match[1].strip(), Fraction(low), Fraction(high)


class Table(_Reader):
    """A Parquet file, a folder of such, or one that ``save_to_disk`` of ``datasets`` wrote."""

    def blocks(self) -> Iterator[Rows]:
        """Yield the rows of the split; of n rows those from floor(lo n) to before floor(hi n).

        Raises:
            MissingFileError: if there is no such file, or the folder holds no dataset.
            ConfigError: if the package is missing, or there is no such split.
            DataError: if the files are damaged, or there is no such column.
        """
        split, low, high = parse_split(self.options.split or "")
        table = columns.open_columns(self.name, split)
        key, names = self.options.text_key, table.column_names
        column = key if key in names else key.split(".")[0]
        if column not in names:
            raise DataError(
                f"{self.name}: there is no column '{key}', only {', '.join(names)}. Name the one "
                "of the text with --text-key"
            )
        count = len(table)
        start = int(low * count)
        records: list[dict[str, Any]] = []
        size = 0
        for values in table.values(column, start, int(high * count)):
            records += [{column: value} for value in values]
            size += sum(len(value) for value in values if isinstance(value, str))
            # short texts are bounded by their number, as what each row needs besides is not counted
            if size >= line_reader.BLOCK_BYTES or len(records) >= 1000:
                yield Rows(records, start)
                start, records, size = start + len(records), [], 0
        if records:
            yield Rows(records, start)

    def texts(self, block: Rows) -> Texts:
        """Return the texts of a block; errors as in :meth:`JsonLines.texts`."""
        key, remedy = self.options.text_key, self.options.remedy
        texts, bad = _readable(
            enumerate(block.records, start=block.first),
            lambda one: text_of(one[1], key, f"{self.name}, row {one[0]}", remedy),
            self.options.skip_bad,
        )
        return Texts(texts, sum(len(text.encode(errors="replace")) for text in texts), bad)


def reader_of(name: str, options: DocumentOptions) -> JsonLines | Table:
    """Return the reader of a file, of standard input (``"-"``) or of a datasets folder."""
    return Table(name, options) if columns.holds_columns(name) else JsonLines(name, options)
