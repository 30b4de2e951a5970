"""Stored outputs of a teacher for data in several folders and files, and for packed documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_runs import CAUSAL, LAST
from tiny_run import Recorder, config, make_corpus, train

from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import DataError
from fairseq.evaluation.teacher_outputs import write_teacher_cache

DISTILLED: dict[str, Any] = {**CAUSAL, "criterion": "distillation", "dropout": 0.0}


def add_split(folder: Path, split: str, rows: list[list[int]]) -> None:
    builder = make_builder(str(folder / f"{split}.bin"), "mmap", 64)
    for row in rows:
        builder.add_item(torch.tensor([*row, 2]))
    builder.finalize(str(folder / f"{split}.idx"))


def losses(data: str | Path, folder: Path, **flags: Any) -> dict[int, float]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        train(config(Path(data), folder, **DISTILLED, **flags))
    return {update: float.fromhex(value) for update, value in recorder.losses.items()}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    train(config(make_corpus(tmp_path / "first"), tmp_path / "t", **CAUSAL, max_update=3))
    return tmp_path / "t" / LAST


def stored(teacher: Path, data: str | Path, cache: Path, **flags: Any) -> str:
    given = {"path": str(teacher), "data": str(data), "valid_subset": "train,valid"}
    write_teacher_cache({**given, "log_format": "none", **flags}, cache, k=100, temperatures=[2.0])
    return str(cache)


def test_all_folders_and_files_of_the_training_data_are_stored(
    teacher: Path, tmp_path: Path
) -> None:
    """A folder an epoch, and in the second a file ``train1``: as the training reads them."""
    second = make_corpus(tmp_path / "second", train_lines=6)
    add_split(second, "train1", [[5, 9, 13, 17], [6, 7, 8]])
    both = f"{tmp_path / 'first'}:{second}"
    flags = {"max_update": 9, "batch_size": 8}
    live = losses(both, tmp_path / "live", teacher_path=str(teacher), **flags)
    cache = stored(teacher, both, tmp_path / "cache")
    found = losses(both, tmp_path / "stored", teacher_cache=cache, **flags)
    assert len(live) == 9 and found == pytest.approx(live, abs=2e-4)


def test_packed_documents_are_other_rows_than_text_that_sees_all(
    teacher: Path, tmp_path: Path
) -> None:
    data = tmp_path / "first"
    add_split(data, "train", [[5, 6, 7], [], [8, 9, 10, 11], [12, 13], [], [14, 15, 16], [17]])
    apart = {"document_mask": True, "max_update": 2}
    blind = stored(teacher, data, tmp_path / "blind")
    with pytest.raises(DataError, match="other data"):
        losses(data, tmp_path / "refused", teacher_cache=blind, **apart)
    live = losses(data, tmp_path / "live", teacher_path=str(teacher), **apart)
    cache = stored(teacher, data, tmp_path / "cache", document_mask=True)
    found = losses(data, tmp_path / "stored", teacher_cache=cache, **apart)
    assert len(live) == 2 and found == pytest.approx(live, abs=2e-4)
