"""Documents from JSON lines and datasets folders: readers, separators, workers, bad records."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files import columns, line_reader
from fairseq.files.documents import (
    DocumentOptions,
    JsonLines,
    choose_options,
    parse_split,
)
from fairseq.files.line_reader import Block
from fairseq.preprocess.encode import DocumentJob, Summary, encode_files, train_byte_level
from fairseq_cli.bpe import main

TEXTS = ["One line.\n\n  Two.  \r\nThree.", " \n ", "größer\u2028日本語", "x\n" * 40, "", "end"]


class Plain:
    """An encoder that changes nothing, but a line of tildes comes to nothing."""

    def encode(self, x: str) -> str:
        return x.replace("~", "")

    decode = encode


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_reader, "BLOCK_BYTES", 100)


def write(path: Path, records: list[Any]) -> str:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def expected(texts: list[str]) -> str:
    """The output, written down naively."""
    documents = [[line.strip() for line in text.split("\n") if line.strip()] for text in texts]
    return "\n\n".join("\n".join(lines) for lines in documents if lines) + "\n"


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_empty_line_parts_documents_whatever_the_workers(
    tmp_path: Path, small_blocks: None, name: str, workers: int
) -> None:
    texts = [f"{text} {n}" if text else text for n in range(20) for text in TEXTS]
    source = write(tmp_path / name, [{"text": text, "n": 1} for text in texts])
    out = tmp_path / "out"
    found = encode_files(
        Plain(), [source], [str(out)], workers=workers, documents=DocumentOptions()
    )
    assert out.read_text("utf-8") == expected(texts)
    assert found.documents == sum(bool(text.strip()) for text in texts)
    assert found.written == len([line for line in out.read_text("utf-8").split("\n") if line])
    assert (found.lines, found.skipped) == (sum(t.count("\n") + 1 for t in texts), 0)
    assert found.dropped == found.lines - found.written


@given(st.lists(st.text(alphabet="ab~ \n\r\té", max_size=12), max_size=12), st.integers(20, 90))
@settings(deadline=None, max_examples=40)
def test_blocks_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    source = write(folder / "in.jsonl", [{"text": text} for text in texts])
    outputs = [folder / "small", folder / "large"]
    for out, block_bytes in zip(outputs, (size, 1 << 18), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(line_reader, "BLOCK_BYTES", block_bytes)
            encode_files(Plain(), [source], [str(out)], documents=DocumentOptions())
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    lines = outputs[0].read_bytes().decode().split("\n")
    assert lines == [""] or lines[0]
    assert all(first or second for first, second in zip(lines, lines[1:], strict=False))


def test_complete_doc_finds_the_documents(tmp_path: Path) -> None:
    from fairseq.data.datasets.token_blocks import TokenBlockDataset
    from fairseq.data.storage.dictionary import Dictionary
    from fairseq_cli import preprocess

    source = write(tmp_path / "in.jsonl", [{"text": "a b\nc d e"}, {"text": "f"}, {"text": "g h"}])
    out, data = str(tmp_path / "out"), tmp_path / "bin"
    encode_files(Plain(), [source], [out], documents=DocumentOptions())
    preprocess.run(["--only-source", "--trainpref", out, "--destdir", str(data)])
    from fairseq.data.storage.load import load_indexed_dataset

    dictionary = Dictionary.load(str(data / "dict.txt"))
    lines = load_indexed_dataset(str(data / "train"), dictionary)
    blocks = TokenBlockDataset(
        lines, lines.sizes, 50, pad=1, eos=2, break_mode="complete_doc", include_targets=False
    )
    texts = [dictionary.string(block) for block in blocks]
    assert texts == ["a b c d e", "f", "g h"]


def test_keys_may_be_nested_or_hold_a_dot(tmp_path: Path) -> None:
    records = [{"a": {"b": "nested"}}, {"a.b": "literal", "a": {"b": "other"}}]
    source = write(tmp_path / "in.jsonl", records)
    out = tmp_path / "out"
    encode_files(Plain(), [source], [str(out)], documents=DocumentOptions("a.b"))
    assert out.read_text() == "nested\n\nliteral\n"


BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"text": "x"', "not JSON"),
    "no UTF-8": (b'{"text": "\xff"}', "not JSON in UTF-8"),
    "no object": (b"3", r"no text under 'text' \(fields: none\)"),
    "no key": (b'{"body": "x", "id": 1}', r"\(fields: body, id\).*--text-key"),
    "null": (b'{"text": null}', "no text"),
    "deep": (b"[" * 200_000, "not JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_records_are_named_or_skipped(tmp_path: Path, small_blocks: None, kind: str) -> None:
    line, message = BAD[kind]
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    good = [json.dumps({"text": f"good {n}"}).encode() for n in range(9)]
    source.write_bytes(b"\n".join([*good[:5], b"", line, *good[5:]]) + b"\n")
    with pytest.raises(DataError, match=rf"in.jsonl, line 7: .*{message}"):
        encode_files(Plain(), [str(source)], [str(out)], documents=DocumentOptions())
    assert not out.exists()
    options = DocumentOptions(skip_bad=True)
    found = encode_files(Plain(), [str(source)], [str(out)], workers=2, documents=options)
    assert (found.documents, found.skipped, found.records) == (9, 1, 11)
    assert found.left_out.pop("blank line") == 1
    reason = "not JSON" if "JSON" in message else "no text under 'text'"
    assert {why: count for why, count in found.left_out.items() if count} == {reason: 1}
    assert out.read_text() == expected([f"good {n}" for n in range(9)])
    with pytest.raises(DataError, match="none of its 1 records"):
        source.write_bytes(line)
        encode_files(Plain(), [str(source)], [str(out)], documents=options)


def test_marks_and_halves_of_pairs(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"text": "a\\ud800b \\ud83d\\ude00 \\u00e9"}\r\n\n')
    reader = JsonLines(str(source), DocumentOptions())
    (block,) = reader.blocks()
    assert reader.texts(block).texts == ["a\ufffdb \U0001f600 é"]


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "in.jsonl.gz", [{"text": str(n)} for n in range(9999)]))
    path.write_bytes(path.read_bytes()[:-30])
    reader = JsonLines(str(path), DocumentOptions())
    with pytest.raises(DataError, match="damaged gzip file, in or after line"):
        list(reader.blocks())
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="damaged gzip file, in or after line 1 "):
        list(reader.blocks())
    for name in ("none.jsonl", "none.jsonl.gz"):
        with pytest.raises(MissingFileError, match=name):
            list(JsonLines(str(tmp_path / name), DocumentOptions()).blocks())


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for count in (3_000, 12_000):
        source = write(tmp_path / f"{count}.jsonl.gz", [{"text": "word " * 200}] * count)
        tracemalloc.start()
        encode_files(Plain(), [source], [str(tmp_path / "out")], documents=DocumentOptions())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 10_000_000
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 8_000_000


# -- the command -----------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    source = write(tmp_path / "in.jsonl", [{"body": "a b\nc"}, {"x": 1}, {"body": "d"}])
    model, out, back = (str(tmp_path / name) for name in ("t.json", "out", "back"))
    records = ["--inputs", source, "--text-key", "body", "--skip-bad-records"]
    assert main(["train", *records, "--vocab-size", "256", "--output", model]) == 0
    capsys.readouterr()
    use = ["--bpe", "byte_level", "--tokenizer-file", model, "--workers", "1"]
    assert main(["encode", *use, *records, "--outputs", out]) == 0
    counts = "; 3 records read, 2 documents (left out: 1 no text under 'body')"
    assert counts in capsys.readouterr().err
    assert main(["encode", *use, *records, "--outputs", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["skipped"], found["written"]) == (2, 1, 3)
    assert main(["decode", *use, "--inputs", out, "--outputs", back]) == 0
    assert Path(back).read_text() == "a b\nc\n\nd\n"


def test_training_reads_documents(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    text, records = tmp_path / "text", tmp_path / "in.jsonl"
    text.write_text(expected(TEXTS), encoding="utf-8")
    write(records, [{"text": part} for part in TEXTS])
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    train_byte_level([str(text)], 300, files[0])
    train_byte_level([str(records)], 300, files[1], documents=DocumentOptions())
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"inputs": ["a.txt", "b.jsonl"]}, "a.txt is read as plain text"),
        ({"inputs": ["a.txt"], "skip_bad": True}, "--skip-bad-records belongs to JSON lines"),
        ({"inputs": ["a.jsonl"], "split": "train"}, "--split belongs to datasets folders"),
        ({"inputs": ["a.jsonl"], "jsonl_field": "x", "text_key": "y"}, "drop it"),
        ({"inputs": ["."], "jsonl_field": "x"}, "drop it"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_options(**flags)


def test_what_is_read_as_documents(tmp_path: Path) -> None:
    assert choose_options(["a.txt", "-"]) is None
    assert choose_options(["a.jsonl"], jsonl_field="text") is None
    assert choose_options(["a.jsonl", "b.jsonl.gz"]) == DocumentOptions()
    assert choose_options(["-"], text_key="t") == DocumentOptions("t")
    assert choose_options([str(tmp_path)], split="a(:0.5)").split == "a(:0.5)"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="--keep-empty is for plain text"):
        encode_files(Plain(), ["a.jsonl"], ["b"], keep_empty=True, documents=DocumentOptions())


# -- datasets folders ------------------------------------------------------------------------------


def test_splits() -> None:
    assert parse_split("train") == ("train", 0, 1)
    assert parse_split("train(0:0.9999)") == ("train", 0, Fraction(9999, 10000))
    assert parse_split("a.b-1 (0.9999:)") == ("a.b-1", Fraction(9999, 10000), 1)
    assert parse_split("(:1/3)") == ("", 0, Fraction(1, 3))
    for bad in (
        "a(0.5:0.5)",
        "a(0.6:0.5)",
        "a(0:1.1)",
        "a(-1:1)",
        "a(x:1)",
        "a(0:1",
        "a()",
        "a(1/0:)",
    ):
        with pytest.raises(ConfigError, match="--split"):
            parse_split(bad)


@given(st.integers(0, 5000), st.integers(1, 9999))
def test_two_parts_make_the_whole(rows: int, cut: int) -> None:
    _, low, high = parse_split(f"t(:0.{cut:04d})")
    _, next_low, end = parse_split(f"t(0.{cut:04d}:)")
    assert int(low * rows) == 0 and int(high * rows) == int(next_low * rows)
    assert int(end * rows) == rows


class FakeRows:
    """As much of ``fairseq.files.columns.Columns`` as is used."""

    def __init__(self, table: dict[str, list[Any]]) -> None:
        self.table, self.column_names = table, list(table)

    def __len__(self) -> int:
        return len(next(iter(self.table.values())))

    def values(self, column: str, first: int, end: int) -> Iterator[list[Any]]:
        for place in range(first, end, 7):
            yield self.table[column][place : min(place + 7, end)]


COLUMNS: dict[str, list[Any]] = {
    "text": [f"document {n}\nof two lines" for n in range(2500)],
    "meta": [{"body": f"body {n}"} for n in range(2500)],
    "packed": [[n, n + 1] for n in range(2500)],
}


def test_parts_of_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    monkeypatch.setattr(columns, "open_columns", lambda name, split: FakeRows(COLUMNS))
    folder, out = str(tmp_path), tmp_path / "out"
    for split, rows in {
        None: slice(None), "train(:0.3)": slice(750), "train(0.999:)": slice(2497, None)
    }.items():  # fmt: skip
        options = DocumentOptions(split=split)
        found = encode_files(Plain(), [folder], [str(out)], workers=2, documents=options)
        assert out.read_text() == expected(COLUMNS["text"][rows])
        assert found.documents == found.records == len(COLUMNS["text"][rows])
    encode_files(Plain(), [folder], [str(out)], documents=DocumentOptions("meta.body"))
    assert out.read_text() == expected([row["body"] for row in COLUMNS["meta"]])
    for options, error, message in (
        (DocumentOptions("body"), DataError, "no column 'body', only text, meta, packed"),
        (DocumentOptions("packed", True), ConfigError, "'packed' holds token ids, not text"),
    ):
        with pytest.raises(error, match=message):
            encode_files(Plain(), [folder], [str(out)], documents=options)


def test_rows_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = FakeRows({"text": ["a", None, "c", " "]})
    monkeypatch.setattr(columns, "open_columns", lambda name, split: rows)
    folder, out = str(tmp_path), str(tmp_path / "out")
    found = encode_files(Plain(), [folder], [out], documents=DocumentOptions(skip_bad=True))
    assert Path(out).read_text() == "a\n\nc\n"
    assert found.of_records() == (
        "4 records read, 2 documents (left out: 1 empty text, 1 no text under 'text')"
    )
    with pytest.raises(DataError, match="row 1: no text under 'text'"):
        encode_files(Plain(), [folder], [out], documents=DocumentOptions())


@given(st.lists(st.sampled_from(["", " ", "{", "3", '{"text": " "}', '{"text": "a"}', "[]"])))
@settings(deadline=None, max_examples=40)
def test_counts_add_up(lines: list[str]) -> None:
    reader = JsonLines("-", DocumentOptions(skip_bad=True))
    job = DocumentJob(reader, Plain())
    total = Summary()
    for at in range(0, len(lines), 3):
        part = "".join(line + "\n" for line in lines[at : at + 3]).encode()
        total.add(job(Block([part], [0], at + 1))[1])
    assert total.records == len(lines) == total.documents + sum(total.left_out.values())
    assert total.documents == lines.count('{"text": "a"}')
    assert total.skipped == sum(line in ("{", "3", "[]") for line in lines)
    assert total.left_out.get("blank line", 0) == sum(not line.strip() for line in lines)


# -- docs/corpora.md -------------------------------------------------------------------------------


def test_the_commands_of_the_manual_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    from documents import ROOT, blocks, command_lines, run_command, small_text

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt")
    documents = (tmp_path / "train.txt").read_text("utf-8").split("\n\n")
    records = [{"text": text} for text in documents * 60]
    for name in ("train.jsonl.gz", "valid.jsonl"):
        write(tmp_path / name, records)
    (tmp_path / "owt2.hf").mkdir()
    rows = FakeRows({"text": [record["text"] for record in records * 10]})
    monkeypatch.setattr(columns, "open_columns", lambda name, split: rows)
    _books, text, lines, wikipedia, folder, direct, training = blocks(
        ROOT / "docs" / "corpora.md", "bash"
    )
    assert "scripts/wikipedia.py" in wikipedia  # needs a dump: tests/scripts/test_wikipedia.py
    outputs = []
    for block in (text, lines, folder):  # three ways to the same folder
        shutil.rmtree("data-bin", ignore_errors=True)
        for words in command_lines(block):
            run_command(words)
        outputs.append(Path("train.bpe").read_text("utf-8"))
        assert Path("data-bin/train.idx").is_file()
    assert [output.count("\n\n") for output in outputs] == [1, 119, 1198]
    expected = Path("data-bin/train.bin").read_bytes()
    shutil.rmtree("data-bin")
    for words in command_lines(direct):
        run_command(words)
    assert Path("data-bin/train.bin").read_bytes() == expected
    for words in command_lines(training):
        run_command(words)
    assert Path("runs/documents/checkpoint_last.pt").is_file()
