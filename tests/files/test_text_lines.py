"""Text files as blocks: places of errors, parallel files, JSON lines, outputs."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files import line_reader
from fairseq.files.io import require_text
from fairseq.files.line_reader import LineReader, open_output


def read(reader: LineReader, place: int = 0) -> list[str]:
    return [line for block in reader.blocks() for line in reader.lines(block, place)]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aé \n\r\t\x1c\u2028"), st.integers(1, 20))
def test_lines_do_not_depend_on_the_blocks(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(line_reader, "BLOCK_BYTES", size)
        read_end, write_end = os.pipe()  # a pipe: short reads, no size
        stack.callback(os.close, read_end)
        os.write(write_end, text.encode())
        os.close(write_end)
        # as Python's text mode, in which the original reads
        expected = list(io.StringIO(text, newline=None))
        assert read(LineReader([f"/dev/fd/{read_end}"])) == [line.strip() for line in expected]


def test_bad_bytes_are_found_in_later_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_reader, "BLOCK_BYTES", 10)
    data = "größer\r\n".encode() * 2 + "größer\r".encode() * 3 + b"fine \xff no\n"
    path = tmp_path / "latin.txt"
    path.write_bytes(data)
    place = data.index(b"\xff")
    with pytest.raises(DataError, match=rf"latin.txt: not UTF-8 at byte {place} \(line 6, .*0xff"):
        read(LineReader([str(path)]))


def test_parallel_files_of_different_lengths_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_reader, "BLOCK_BYTES", 4)
    names = [str(tmp_path / name) for name in ("a", "b")]
    for counts, short, last in (((5, 3), "b", 3), ((3, 5), "a", 3), ((0, 1), "a", 0)):
        for name, count in zip(names, counts, strict=True):
            Path(name).write_text("x\n" * count)
        with pytest.raises(DataError, match=rf"{short} ends after line {last},"):
            list(LineReader(names).blocks())


def test_a_last_line_without_line_feed_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\r\ntwo")
    (tmp_path / "b").write_text("1\n2\n")
    reader = LineReader([str(tmp_path / "a"), str(tmp_path / "b")])
    assert read(reader, 0) == ["one", "two"]
    assert read(reader, 1) == ["1", "2"]


def test_jsonl_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    # white space of JSON, which ends no line
    path.write_bytes('{"text": " a\\nb ",\r"id": 1}\n\n{"text": "é"}\n'.encode())
    assert read(LineReader([str(path)], "text")) == ["a\nb", "", "é"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a JSON object"),
        ('{"body": "x", "id": 3}', r"line 2: no text in the field 'text' \(fields: body, id\)"),
        ('{"text": 3}', "line 2: no text in the field"),
        ("[1]", r"line 2: no text in the field 'text' \(fields: none\)"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read(LineReader([str(path)], "text"))


def test_missing_inputs_and_folders(tmp_path: Path) -> None:
    for name in (tmp_path / "none", tmp_path):
        with pytest.raises(MissingFileError, match="input not found"):
            list(LineReader([str(name)]).blocks())


def test_outputs_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.txt"
    with pytest.raises(RuntimeError), contextlib.ExitStack() as stack:
        open_output(str(path), stack).write(b"half")
        raise RuntimeError
    assert os.listdir(path.parent) == []
    with contextlib.ExitStack() as stack:
        open_output(str(path), stack).write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_outputs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in (tmp_path, tmp_path / "file" / "below"):
        with (
            pytest.raises(ConfigError, match="output cannot be written"),
            contextlib.ExitStack() as s,
        ):
            open_output(str(name), s)


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.ExitStack() as stack:
        open_output(str(path), stack).write(b"text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert path.is_fifo()


def test_text_in_another_encoding_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffgr\u00fc\u00dfe".encode())
    assert require_text(tmp_path / "a", "text", "") == "grüße"
    (tmp_path / "a").write_bytes("grüße".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text: .* at byte 2.*iconv"):
        require_text(tmp_path / "a", "text", "")
