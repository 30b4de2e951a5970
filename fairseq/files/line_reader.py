"""Text files as blocks of lines: what commands that go through whole corpora read and write.

A line ends at ``\\n``, ``\\r\\n`` or ``\\r``, as in Python's text mode, a line of JSON at ``\\n``
alone; white space at its ends is dropped. Text is UTF-8, and what is not is reported with its place
in the file. ``"-"`` stands for standard input or output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, TextIO

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files.io import BYTE_ORDER_MARK, atomic_write

STANDARD = "-"
BLOCK_BYTES = 1 << 18
BYTES = "latin-1"  # a character for every byte: lines are cut before they are decoded


@dataclasses.dataclass(frozen=True)
class Block:
    """The same lines of one or several parallel files, as bytes, and where they stand."""

    columns: list[bytes]
    offsets: list[int]
    first_line: int


@dataclasses.dataclass(frozen=True)
class LineReader:
    """Reads files into blocks, and blocks into stripped lines of text.

    Args:
        names: paths or ``"-"``; several are read side by side, line by line.
        jsonl_field: each line is a JSON object and its text stands in this field.
        json_lines: lines end as those of JSON.
    """

    names: Sequence[str]
    jsonl_field: str | None = None
    json_lines: bool = False

    def blocks(self) -> Iterator[Block]:
        """Yield the files' blocks.

        Raises:
            MissingFileError: if a file does not exist.
            DataError: if parallel files differ in their number of lines.
        """
        with contextlib.ExitStack() as stack:
            # "": any line end, and it stays as it is
            newline = "\n" if self.json_lines or self.jsonl_field is not None else ""
            handles = [_open_input(name, newline, stack) for name in self.names]
            offsets, line = [0] * len(handles), 1
            while head := handles[0].readlines(BLOCK_BYTES):
                rest = [list(itertools.islice(handle, len(head))) for handle in handles[1:]]
                self._require_same_length([len(head), *map(len, rest)], line)
                columns = ["".join(lines).encode(BYTES) for lines in (head, *rest)]
                block = Block(columns, list(offsets), line)
                yield block
                offsets = [a + len(data) for a, data in zip(offsets, block.columns, strict=True)]
                line += len(head)
            # the first file has ended: no other may have a line left
            self._require_same_length([len(handle.readline()) for handle in handles], line)

    def _require_same_length(self, counts: list[int], line: int) -> None:
        if len(set(counts)) > 1:
            short = counts.index(min(counts))
            raise DataError(
                f"{self.names[short]} ends after line {line - 1 + counts[short]}, other inputs go "
                "on. Several inputs are read as parallel files, line by line; encode files that "
                "are not parallel in calls of their own, or with --keep-empty"
            )

    def lines(self, block: Block, place: int) -> list[str]:
        """Return the stripped lines of the column ``place`` of a block.

        Raises:
            DataError: on bytes that are not UTF-8, or a line without its JSON field.
        """
        name, data = self.names[place], block.columns[place]
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            before = data[: error.start].decode("utf-8")
            line = block.first_line + self._feeds(before).count("\n")
            raise DataError(
                f"{name}: not UTF-8 at byte {block.offsets[place] + error.start} (line {line}, "
                f"byte 0x{data[error.start]:02x}). Convert the file, for example with iconv"
            ) from error
        # only at the head of a file; further on the mark is a character
        if block.offsets[place] == 0:
            text = text.removeprefix(BYTE_ORDER_MARK)
        text = self._feeds(text)
        lines = text.split("\n")
        # behind the last line end is no line
        if text.endswith("\n"):
            lines.pop()
        if self.jsonl_field is None:
            return [line.strip() for line in lines]
        numbered = enumerate(lines, start=block.first_line)
        return [self._field(line, f"{name}, line {number}") for number, line in numbered]

    def _feeds(self, text: str) -> str:
        """Return a text whose lines all end at a line feed."""
        if self.jsonl_field is not None or "\r" not in text:
            return text
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _field(self, line: str, where: str) -> str:
        if not line.strip():
            return ""
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not a JSON object ({error})") from error
        fields = record if isinstance(record, dict) else {}
        text = fields.get(self.jsonl_field)
        if not isinstance(text, str):
            raise DataError(
                f"{where}: no text in the field '{self.jsonl_field}' (fields: "
                f"{', '.join(fields) or 'none'}). Name the field: --jsonlines FIELD"
            )
        return text.strip()


def _open_input(name: str, newline: str, stack: contextlib.ExitStack) -> TextIO:
    if name == STANDARD:
        wrapped = io.TextIOWrapper(sys.stdin.buffer, encoding=BYTES, newline=newline)
        stack.callback(wrapped.detach)  # or it would be closed with it
        return wrapped
    if not os.path.exists(name) or os.path.isdir(name):  # a pipe is fine
        raise MissingFileError(f"input not found: {name}. Check --inputs.")
    try:
        return stack.enter_context(open(name, encoding=BYTES, newline=newline))
    except OSError as error:
        raise MissingFileError(f"input cannot be read: {name} ({error.strerror})") from error


def open_output(name: str, stack: contextlib.ExitStack) -> IO[bytes]:
    """Open the file ``name``, or standard output for ``"-"``, until ``stack`` ends.

    A file appears when ``stack`` ends without an exception; its folder is made if need be.

    Raises:
        ConfigError: if the file cannot be written.
    """
    if name == STANDARD:
        stack.callback(sys.stdout.buffer.flush)
        return sys.stdout.buffer
    try:
        if os.path.exists(name) and not os.path.isfile(name):  # a pipe or device is not replaced
            return stack.enter_context(open(name, "wb"))
        return stack.enter_context(atomic_write(name, "wb"))
    except OSError as error:
        raise ConfigError(f"output cannot be written: {name} ({error.strerror})") from error
