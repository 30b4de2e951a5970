"""Stored outputs of a teacher: data in several places, packed documents, cut and shared runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_runs import CAUSAL, LAST
from tiny_run import Recorder, config, digest, make_corpus, train

from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import DataError
from fairseq.evaluation.teacher_outputs import write_teacher_cache
from tests.distributed.test_distributed import assert_same, finish, start

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


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as its files are concerned."""


def test_a_cut_run_ends_with_the_same_bits(teacher: Path, tmp_path: Path) -> None:
    """Cut between two checkpoints, in the middle of an epoch and of dropout's draws."""
    data, cache = tmp_path / "first", stored(teacher, tmp_path / "first", tmp_path / "cache")
    flags = {**DISTILLED, "teacher_cache": cache, "dropout": 0.1, "save_interval_updates": 2,
             "keep_interval_updates": 1, "update_freq": [2], "max_update": 6}  # fmt: skip
    train(config(data, tmp_path / "whole", **flags))

    def kill(trainer: Any, calls: int) -> None:
        if trainer.get_num_updates() == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, kill)
        with pytest.raises(Killed):
            train(config(data, tmp_path / "cut", **flags))
    train(config(data, tmp_path / "cut", **flags))
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)


def test_two_processes_are_one(teacher: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "odd", train_lines=79)
    # SGD: Adam makes steps of the rounding of zero gradients
    flags = {**DISTILLED, "teacher_cache": stored(teacher, corpus, tmp_path / "cache"),
             "required_batch_size_multiple": 1, "optimizer": "sgd", "lr": [0.1],
             "max_update": 9}  # fmt: skip
    assert finish(start(corpus, tmp_path / "one", 1, update_freq=[4], **flags)) == [0]
    assert finish(start(corpus, tmp_path / "two", 2, update_freq=[2], **flags)) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")
