"""Criterions that run the model several times for one batch, on two processes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import tiny_run
from tests.distributed.test_distributed import assert_same, data, finish, losses, start  # noqa: F401

RANKING = {
    "task": "sentence_ranking",
    "criterion": "sentence_ranking",
    "num_classes": 2,
    "init_token": 0,
    "separator_token": 2,
    "max_positions": 32,
    "tokens_per_sample": None,
    "weight_decay": 0.1,  # the vocabulary head rests, and must not shrink
    "required_batch_size_multiple": 1,
    "batch_size_valid": 3,
    "disable_validation": False,
    "max_update": 4,
}


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """Sentences with two options; the eight of the validation are three batches."""
    rng, folder = random.Random(0), tmp_path / "choices"
    for number in range(3):
        tiny_run.make_corpus(folder / f"input{number}")
    (folder / "label").mkdir()
    for split, lines in (("train", 40), ("valid", 8)):
        rows = "".join(f"{rng.randrange(2)}\n" for _ in range(lines))
        (folder / "label" / f"{split}.label").write_text(rows, encoding="utf-8")
    return folder


def test_two_processes_rank_as_one(choices: Path, tmp_path: Path) -> None:
    alone, pair, answers = tmp_path / "alone", tmp_path / "pair", []
    for folder, world in ((alone, 1), (pair, 2)):
        written = tmp_path / f"{world}.txt"
        flags = {**RANKING, "update_freq": [2 // world], "save_predictions": str(written)}
        assert finish(start(choices, folder, world, **flags)) == [0] * world
        answers.append(sorted(written.read_text(encoding="utf-8").splitlines()))
    assert_same(alone, pair)
    assert answers[0] == answers[1]  # once each, although one process has a batch less


def test_a_head_that_is_asked_after_the_run(
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """DDP, looking for what has no gradient, sees the run alone and would take it for unused."""
    flags = {
        "criterion": "contrastive_weight_tying",
        "vocabulary_weight": 0.5,
        "find_unused_parameters": True,
        "required_batch_size_multiple": 1,
        "max_update": 6,
    }
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert finish(start(data, alone, 1, update_freq=[2], **flags)) == [0]
    assert finish(start(data, pair, 2, **flags)) == [0, 0]
    assert_same(alone, pair)


def test_two_runs_leave_out_other_layers(
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    rng = random.Random(0)
    (tmp_path / "train.input0").write_text(
        "".join(f"w{rng.randrange(60)} w{rng.randrange(60)}\n" for _ in range(20)), "utf-8"
    )
    (tmp_path / "train.label").write_text("0\n1\n" * 10, encoding="utf-8")
    flags = {
        "criterion": "masked_lm_adversarial",
        "adv_task_data": str(tmp_path),
        "adv_batch": 8,
        "encoder_layerdrop": 0.5,
        "max_update": 6,
    }
    assert finish(start(data, tmp_path / "run", 2, **flags)) == [0, 0]
    assert len(losses(tmp_path / "run")) == 6
