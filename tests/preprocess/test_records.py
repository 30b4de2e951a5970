"""JSON lines, Parquet and datasets folders as texts of fairseq-preprocess."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fairseq.errors import ConfigError, DataError
from fairseq.files import line_reader
from fairseq.preprocess.encode import train_byte_level
from fairseq.preprocess.records import records_of
from fairseq_cli import preprocess
from tests.files.test_columns import parquet, saved


def corpus(count: int = 400) -> list[str]:
    drawn = random.Random(0)
    words = [f"wörd{n}" for n in range(50)]
    return [
        "\n".join(" ".join(drawn.choices(words, k=6)) for _ in range(1 + n % 3))
        for n in range(count)
    ]


def plain(path: Path, texts: list[str]) -> str:
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def jsonl(path: Path, texts: list[Any], key: str = "text") -> str:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def run(out: Path, *words: str) -> dict[str, bytes]:
    """Preprocess; return every file that does not tell the time or the place."""
    preprocess.run(["--only-source", "--destdir", str(out), *words])
    assert not [path.name for path in out.glob(".*")]
    names = ("dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx", "tokenizer.json")
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def source(kind: str, folder: Path, texts: list[str]) -> str:
    if kind == "jsonl":
        return jsonl(folder / "in.jsonl", texts)
    return (
        parquet(folder / "in.parquet", texts) if kind == "parquet" else saved(folder / "d", texts)
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_every_kind_gives_the_bytes_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(line_reader, "BLOCK_BYTES", 500)
    texts = corpus()
    expected = run(tmp_path / "plain", "--trainpref", plain(tmp_path / "in.txt", texts))
    name = source(kind, tmp_path, texts)
    for workers in ("1", "2", "3"):
        found = run(tmp_path / workers, "--trainpref", name, "--workers", workers)
        assert found == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_text_is_cut_into_pieces_on_the_way(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tokenizers")
    texts, model = corpus(), str(tmp_path / "t.json")
    train_byte_level([plain(tmp_path / "in.txt", texts)], 300, model)
    from fairseq_cli import bpe

    name, encoded = source(kind, tmp_path, texts), str(tmp_path / "in.bpe")
    flags = ["--bpe", "byte_level", "--tokenizer-file", model, "--keep-empty"]
    bpe.main(["encode", *flags, "--inputs", str(tmp_path / "in.txt"), "--outputs", encoded])
    words = ["--byte-level-tokenizer", model]
    two_steps = run(tmp_path / "a", "--trainpref", encoded, "--validpref", encoded, *words)
    one_step = run(tmp_path / "b", "--trainpref", name, "--validpref", encoded, *words)
    assert one_step == two_steps and "tokenizer.json" in one_step


def test_text_that_was_not_cut_into_pieces_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    texts, model = corpus(20), str(tmp_path / "t.json")
    raw, name = plain(tmp_path / "in.txt", texts), jsonl(tmp_path / "in.jsonl", texts)
    train_byte_level([raw], 300, model)
    words = ["--byte-level-tokenizer", model]
    for train, valid in ((raw, raw), (name, raw)):
        with pytest.raises(DataError, match="in.txt holds 'wörd.*fairseq-bpe encode"):
            run(tmp_path / "a", "--trainpref", train, "--validpref", valid, *words)
        assert not list((tmp_path / "a").glob("dict.txt"))
    assert run(tmp_path / "a", "--trainpref", name, "--validpref", name, *words)


def test_parts_of_one_folder(tmp_path: Path) -> None:
    texts = [f"one {n}" for n in range(100)]
    folder = saved(tmp_path / "d", texts)
    words = ["--trainpref", f"{folder}:train(:0.9)", "--validpref", f"{folder}:(0.9:)"]
    found = run(tmp_path / "parts", *words)
    names = [plain(tmp_path / n, t) for n, t in (("a", texts[:90]), ("b", texts[90:]))]
    assert found == run(tmp_path / "two", "--trainpref", names[0], "--validpref", names[1])


def test_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    lines = ['{"text": "a b\\nc"}', "{", "", '{"body": 1}', '{"text": " "}', '{"text": "d"}']
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="in.jsonl, line 2: not JSON"):
        run(tmp_path / "no", "--trainpref", str(source))
    assert not (tmp_path / "no" / "dict.txt").exists()
    run(tmp_path / "out", "--trainpref", str(source), "--skip-bad-records")
    log = (tmp_path / "out" / "preprocess.log").read_text()
    assert (
        f"{source}: 6 records read, 2 documents (left out: 1 blank line, 1 empty text, "
        "1 no text under 'text', 1 not JSON), 3 lines"
    ) in log
    assert f"{source}: 4 sents" in log  # an empty line parts the documents


def test_what_is_read_as_records(tmp_path: Path) -> None:
    text, records = plain(tmp_path / "a:b.txt", ["x"]), jsonl(tmp_path / "c.jsonl", ["x"])
    assert records_of(text, None, True) is None and records_of("none.txt", None, False) is None
    found = records_of(records, "body", False)
    assert found is not None and found.options.text_key == "body"
    found = records_of(f"{tmp_path}:train(0:0.5)", None, True)
    assert found is not None and (found.name, found.options.split) == (
        str(tmp_path),
        "train(0:0.5)",
    )
    with pytest.raises(ConfigError, match="--split belongs to"):
        records_of(f"{records}:train", None, False)


def test_the_column_is_named(tmp_path: Path) -> None:
    name = parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match="no column 'body', only id, text. Name"):
        run(tmp_path / "out", "--trainpref", name, "--text-key", "body")
    assert not [p for p in (tmp_path / "out").iterdir() if p.name != "preprocess.log"]
