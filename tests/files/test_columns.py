"""Parquet files and saved datasets, written by pyarrow, read in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files import columns
from fairseq.files.columns import Columns, open_columns
from fairseq.files.documents import DocumentOptions, Table

TEXTS = [f"text {n}" for n in range(1000)]


def parquet(path: Path, texts: list[Any] = TEXTS, rows: int = 300) -> str:
    """Write row groups of 300 rows; they are read in parts of 64."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra arrow)")
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    pq.write_table(table, str(path), row_group_size=rows)
    return str(path)


def saved(folder: Path, texts: list[Any] = TEXTS, split: str | None = "train") -> str:
    """Write what ``save_to_disk`` writes: two Arrow streams and a state."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra arrow)")
    folder.mkdir(parents=True)
    half = len(texts) // 2
    files = []
    for number, part in enumerate((texts[:half], texts[half:])):
        name = f"data-0000{number}-of-00002.arrow"
        table = pa.table({"text": part})
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=130)
        files.append({"filename": name})
    state = {"_data_files": files, "_split": split, "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    return str(folder)


def rows_of(found: Columns, first: int, end: int) -> list[Any]:
    parts = list(found.values("text", first, end))
    assert all(0 < len(part) <= columns.ROWS_AT_ONCE for part in parts)
    return [value for part in parts for value in part]


@pytest.mark.parametrize("kind", ["parquet", "saved", "folder", "shards"])
def test_every_range_of_rows(tmp_path: Path, kind: str) -> None:
    if kind == "saved":
        found = open_columns(saved(tmp_path / "d"))
    elif kind == "parquet":
        found = open_columns(parquet(tmp_path / "a b.parquet"))
    else:
        names = ["a", "b"] if kind == "folder" else [f"train-0000{n}-of-00002" for n in (0, 1)]
        for name, part in zip(names, (TEXTS[:333], TEXTS[333:]), strict=True):
            parquet(tmp_path / "d" / f"{name}.parquet", part)
        if kind == "shards":
            parquet(tmp_path / "d" / "test-00000-of-00001.parquet", ["only"])
        found = open_columns(str(tmp_path / "d"))
    assert len(found) == 1000 and found.column_names[-1] == "text"
    for first, end in ((0, 1000), (0, 0), (299, 301), (333, 667), (999, 1000), (130, 640)):
        assert rows_of(found, first, end) == TEXTS[first:end]


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "several"
    for split in ("train", "test"):
        saved(folder / split, [f"{split} {n}" for n in range(4)], split)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name, first in (("", "train 0"), ("test", "test 0")):
        assert rows_of(open_columns(str(folder), name), 0, 1) == [first]
    with pytest.raises(ConfigError, match=r"no split 'tset' \(did you mean 'test'"):
        open_columns(str(folder), "tset")
    with pytest.raises(ConfigError, match="holds the split 'test', not 'train'"):
        open_columns(str(folder / "test"), "train")
    assert len(open_columns(str(folder / "test"), "test")) == 4


def test_splits_of_parquet(tmp_path: Path) -> None:
    one = parquet(tmp_path / "x" / "one.parquet", ["a"])
    for place in (one, str(tmp_path / "x")):
        assert rows_of(open_columns(place), 0, 1) == ["a"]
        with pytest.raises(ConfigError, match="train"):
            open_columns(place, "train")
    parquet(tmp_path / "x" / "test-00000-of-00001.parquet", ["b"])
    with pytest.raises(ConfigError, match="no split 'train', only test: choose"):
        open_columns(str(tmp_path / "x"))
    assert rows_of(open_columns(str(tmp_path / "x"), "test"), 0, 1) == ["b"]


def test_a_column_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    for place in (parquet(tmp_path / "a.parquet"), saved(tmp_path / "d")):
        with pytest.raises(DataError, match="no column 'body', only .*text. Name .*--text-key"):
            list(Table(place, DocumentOptions("body")).blocks())


def test_what_the_package_datasets_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "meta": [{"body": t} for t in TEXTS]})
    everything = datasets.DatasetDict({"train": rows, "test": rows.select(range(3))})
    everything.save_to_disk(str(tmp_path / "d"), num_shards={"train": 3, "test": 1})
    rows.filter(lambda row: row["text"].endswith("7")).save_to_disk(str(tmp_path / "e"))
    rows.to_parquet(str(tmp_path / "f.parquet"))
    assert rows_of(open_columns(str(tmp_path / "d")), 0, 1000) == TEXTS
    assert len(open_columns(str(tmp_path / "d"), "test")) == 3
    filtered = open_columns(str(tmp_path / "e"))
    assert rows_of(filtered, 0, 1000) == [text for text in TEXTS if text.endswith("7")]
    (block,) = Table(str(tmp_path / "f.parquet"), DocumentOptions("meta.body")).blocks()
    assert Table("f", DocumentOptions("meta.body")).texts(block).texts == TEXTS


def damaged(tmp_path: Path) -> list[str]:
    whole = Path(parquet(tmp_path / "a.parquet")).read_bytes()
    (tmp_path / "tail.parquet").write_bytes(b"PAR1" + whole[400:])
    (tmp_path / "head.parquet").write_bytes(whole[: len(whole) // 2])
    folder = saved(tmp_path / "d")
    file = Path(folder) / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-3000])
    return [str(tmp_path / "tail.parquet"), str(tmp_path / "head.parquet"), folder]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for place in damaged(tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            list(Table(place, DocumentOptions()).blocks())


@pytest.mark.parametrize(
    "state", ["{", "[]", '{"_split": 3}', '{"_split": "", "_data_files": [1]}']
)
def test_damaged_states_are_named(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match="state.json: damaged"):
        open_columns(str(tmp_path))


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFileError, match="neither one that save_to_disk"):
        open_columns(str(tmp_path))
    with pytest.raises(MissingFileError, match="none.parquet"):
        open_columns(str(tmp_path / "none.parquet"))
    outside = '{"_split": "", "_data_files": [{"filename": "../../etc/passwd"}]}'
    (tmp_path / "state.json").write_text(outside)
    with pytest.raises(MissingFileError, match=str(tmp_path / "passwd")):
        open_columns(str(tmp_path))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(columns.importlib, "import_module", refuse)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"need pyarrow .*: run pip install '\.\[arrow\]'"):
        list(Table(str(tmp_path / "x.parquet"), DocumentOptions()).blocks())


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra arrow)")
    peaks = []
    for count in (20_000, 80_000):
        name = parquet(tmp_path / f"{count}.parquet", [f"{n} " * 40 for n in range(count)], 5000)
        before, most = pa.total_allocated_bytes(), 0
        for block in Table(name, DocumentOptions()).blocks():
            assert len(block.records) <= 1000 + columns.ROWS_AT_ONCE
            most = max(most, pa.total_allocated_bytes() - before)
        peaks.append(most)
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20)
