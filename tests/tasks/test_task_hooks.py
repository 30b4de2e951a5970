"""What a run calls on a task that has it: after validation, and after a checkpoint is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import config, content, make_corpus, train

from fairseq.models.roberta import RobertaModel
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.training.trainer import Trainer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Give the task both hooks; return what they were called with."""
    seen: list[tuple[Any, ...]] = []

    def post_validate(task: Any, model: Any, stats: dict[str, Any], agg: Any) -> None:
        assert isinstance(model, RobertaModel) and not model.training
        assert stats["loss"] == agg.get_smoothed_values()["loss"]
        stats["from_the_task"] = 10.0 - len(seen)
        seen.append(("post_validate", stats["from_the_task"]))

    def post_save(task: Any, path: str, num_updates: int) -> None:
        state = content(Path(path))
        assert state["optimizer_history"][-1]["num_updates"] == num_updates
        last = Path(path).with_name("checkpoint_last.pt")
        assert last.samefile(path)
        seen.append(("post_save", Path(path).name, num_updates, state["extra_state"]["val_loss"]))

    monkeypatch.setattr(MaskedLMTask, "post_validate", post_validate, raising=False)
    monkeypatch.setattr(MaskedLMTask, "post_save", post_save, raising=False)
    return seen


def a_run(folder: Path, **flags: Any) -> None:
    data = make_corpus(folder / "data", train_lines=8)
    flags = {"max_update": 4, "total_num_update": 4, "save_interval_updates": 3, **flags}
    # the hook may add what decides on the best checkpoint
    train(config(data, folder / "run", best_checkpoint_metric="from_the_task", **flags))


def test_hooks_are_called_in_turn(calls: list[Any], tmp_path: Path) -> None:
    a_run(tmp_path)
    assert calls == [
        ("post_validate", 10.0),
        ("post_save", "checkpoint1.pt", 2, 10.0),
        ("post_validate", 8.0),
        ("post_save", "checkpoint_2_3.pt", 3, 8.0),
        ("post_validate", 6.0),
        ("post_save", "checkpoint2.pt", 4, 6.0),
    ]


def test_a_process_that_writes_nothing_calls_nothing(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "should_save_checkpoint_on_current_rank", False)
    a_run(tmp_path)
    assert [name for name, *_ in calls] == ["post_validate"] * 3
