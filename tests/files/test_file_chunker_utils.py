"""Blocks of lines: every line once, wherever the file is cut."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq.errors import DataError, FairseqError, MissingFileError
from fairseq.files import text_blocks
from fairseq.files.text_blocks import Chunker, block_spans, find_offsets, map_blocks, read_block

texts = st.text(st.sampled_from("a\u00e9\u2028 \x85\x0b\n\r"), max_size=60)


def lines_as_python_reads_them(path) -> list[str]:
    with open(path, encoding="utf-8") as handle:
        return [line if line.endswith("\n") else line + "\n" for line in handle]


def write(folder, text):
    path = folder / "text"
    path.write_bytes(text.encode("utf-8"))
    return path


@given(texts, st.integers(1, 9), st.integers(1, 9))
def test_chunks_and_blocks_hold_every_line_once(tmp_path_factory, text, chunks, block):
    path = write(tmp_path_factory.mktemp("text"), text)
    offsets = find_offsets(path, chunks)
    assert len(offsets) == chunks + 1 and offsets[0] == 0
    assert offsets[-1] == path.stat().st_size and offsets == sorted(offsets)
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block)
        patch.setattr(text_blocks, "_PIECE_BYTES", 1 + block % 3)
        for start, end in zip(offsets, offsets[1:], strict=False):
            if start < end:
                with Chunker(path, start, end) as chunk:
                    lines += chunk
        blocks = b"".join(read_block(path, span) for span in block_spans(path))
    assert lines == lines_as_python_reads_them(path)
    assert blocks.decode() == "".join(lines)


def test_offsets_are_the_first_line_start_after_each_part(tmp_path):
    line = "Hello, World\n"
    path = write(tmp_path, line * 200)
    expected = [len(line) * (i * 200 // 20) + len(line) for i in range(1, 20)]
    assert find_offsets(path, 20) == [0, *expected, 200 * len(line)]


def test_chunker_without_an_end_reads_all(tmp_path):
    path = write(tmp_path, "a\nb\r\nc")
    for end in (0, -1, 6):
        with Chunker(path, 2, end) as lines:
            assert list(lines) == ["b\n", "c\n"]


def count_lines(block: bytes) -> tuple[int, int]:
    return os.getpid(), block.count(b"\n")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_file(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 64)
    path = write(tmp_path, "".join(f"{i}\n" for i in range(2000)))
    numbers = [list(part) for part in map_blocks(path, bytes.split, workers)]
    assert [int(n) for part in numbers for n in part] == list(range(2000)) and len(numbers) > 50
    by_process = list(map_blocks(path, count_lines, workers))
    assert sum(count for _, count in by_process) == 2000
    assert (os.getpid() in {pid for pid, _ in by_process}) == (workers == 1)


def die(block: bytes) -> None:
    os._exit(3)


def fail(block: bytes) -> None:
    raise KeyError("from the worker")


def test_failures_of_workers_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 64)
    path = write(tmp_path, "word\n" * 1000)
    with pytest.raises(FairseqError, match="killed while reading .*text.*fewer --workers"):
        list(map_blocks(path, die, 2))
    with pytest.raises(KeyError, match="from the worker"):
        list(map_blocks(path, fail, 2))


def test_few_blocks_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 64)
    path = write(tmp_path, "word\n" * 2000)
    taken = []
    spans = block_spans

    def counted(path):
        for span in spans(path):
            taken.append(span)
            yield span

    monkeypatch.setattr(text_blocks, "block_spans", counted)
    for done, _ in enumerate(map_blocks(path, len, 2)):
        assert len(taken) <= done + 4


@pytest.mark.parametrize("position", [0, 63, 64, 65, 500])
def test_position_of_a_byte_that_is_not_utf8(tmp_path, monkeypatch, position):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 64)
    data = bytearray("é word\n".encode() * 100)
    data[position:position] = b"\xff"
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(map_blocks(tmp_path / "text", len))
    where = int(str(caught.value).split("at byte ")[1].split()[0])
    with pytest.raises(UnicodeDecodeError) as expected:
        bytes(data).decode()
    assert where == expected.value.start and str(tmp_path / "text") in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="none"):
        list(map_blocks(tmp_path / "none", len))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("after", [0.0, 60.0])
def test_progress_is_shown_for_long_runs_on_a_terminal(tmp_path, monkeypatch, terminal, after):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_blocks, "_BAR_AFTER_SECONDS", after)
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in map_blocks(write(tmp_path, "word\n" * 200), len, label="counting"):
        time.sleep(0.002)
    assert ("counting" in stream.getvalue()) == (terminal and after == 0.0)


def test_progress_of_an_unknown_size_is_shown(monkeypatch):
    monkeypatch.setattr(text_blocks, "_BAR_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with text_blocks.progress("reading", None) as show:
        show(3_000_000)
    assert "reading" in stream.getvalue() and "3.0/? MB" in stream.getvalue()
