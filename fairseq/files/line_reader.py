"""Text files as blocks of lines: what commands that go through whole corpora read and write.

A line ends at a line feed; white space at its ends, a carriage return included, is dropped. Text is
UTF-8, and what is not is reported with its place in the file. ``"-"`` stands for standard input or
output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files.io import BYTE_ORDER_MARK, atomic_write

STANDARD = "-"
BLOCK_BYTES = 1 << 18


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
    """

    names: Sequence[str]
    jsonl_field: str | None = None

    def blocks(self) -> Iterator[Block]:
        """Yield the files' blocks.

        Raises:
            MissingFileError: if a file does not exist.
            DataError: if parallel files differ in their number of lines.
        """
        with contextlib.ExitStack() as stack:
            handles = [_open_input(name, stack) for name in self.names]
            offsets, line = [0] * len(handles), 1
            while head := handles[0].readlines(BLOCK_BYTES):
                rest = [list(itertools.islice(handle, len(head))) for handle in handles[1:]]
                self._require_same_length([len(head), *map(len, rest)], line)
                block = Block([b"".join(lines) for lines in (head, *rest)], list(offsets), line)
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
            line = block.first_line + data.count(b"\n", 0, error.start)
            raise DataError(
                f"{name}: not UTF-8 at byte {block.offsets[place] + error.start} (line {line}, "
                f"byte 0x{data[error.start]:02x}). Convert the file, for example with iconv"
            ) from error
        # only at the head of a file; further on the mark is a character
        if block.offsets[place] == 0:
            text = text.removeprefix(BYTE_ORDER_MARK)
        lines = text.split("\n")
        # behind the last line end is no line
        if data.endswith(b"\n"):
            lines.pop()
        if self.jsonl_field is None:
            return [line.strip() for line in lines]
        numbered = enumerate(lines, start=block.first_line)
        return [self._field(line, f"{name}, line {number}") for number, line in numbered]

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


def _open_input(name: str, stack: contextlib.ExitStack) -> IO[bytes]:
    if name == STANDARD:
        return sys.stdin.buffer
    if not os.path.exists(name) or os.path.isdir(name):  # a pipe is fine
        raise MissingFileError(f"input not found: {name}. Check --inputs.")
    try:
        return stack.enter_context(open(name, "rb"))
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
