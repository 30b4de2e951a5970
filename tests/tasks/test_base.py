"""What every task offers, whatever its data are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.criterions.base import FairseqCriterion, warn_once
from fairseq.data import ListDataset
from fairseq.errors import RegistryError
from fairseq.logging import metrics
from fairseq.tasks import TASK_REGISTRY, get_task, register_task, setup_task
from fairseq.tasks.base import FairseqTask, LegacyFairseqTask, StatefulContainer
from fairseq.tasks.masked_lm import MaskedLMTask


class Optimizer:
    """Records what it is asked to do, and whether mixed precision is on meanwhile."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.autocast: list[bool] = []
        self.steps = 0

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(float(loss.detach()))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        loss.backward()

    def step(self) -> None:
        self.steps += 1


class Model(torch.nn.Linear):
    """A model that remembers the update it was told."""

    updates = -1

    def set_num_updates(self, updates: int) -> None:
        self.updates = updates


def criterion(model: Model, sample: dict[str, Any]) -> tuple[torch.Tensor, int, dict[str, Any]]:
    return model(sample["x"]).sum(), 3, {"loss": 1.0}


@pytest.mark.parametrize("ignore", [False, True])
def test_a_training_step(ignore: bool) -> None:
    task, model, optimizer = FairseqTask(None), Model(2, 1).eval(), Optimizer()
    sample = {"x": torch.ones(1, 2)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, size, log = task.train_step(sample, model, criterion, optimizer, 5, ignore)
    assert model.training and model.updates == 5 and (size, log) == (3, {"loss": 1.0})
    assert optimizer.losses == [float(loss.detach())] and optimizer.autocast == [False]
    assert model.weight.grad is not None and model.weight.grad.any() != ignore
    assert (float(loss.detach()) == 0) is ignore
    task.optimizer_step(optimizer, model, 5)
    assert optimizer.steps == 1


def test_a_validation_step_keeps_no_graph() -> None:
    model = Model(2, 1).train()
    loss, size, _ = FairseqTask(None).valid_step({"x": torch.ones(1, 2)}, model, criterion)
    assert not loss.requires_grad and not model.training and size == 3


def test_reduce_metrics_logs_tokens_speed_and_sentences(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Any] = []

    class Criterion:
        @classmethod
        def reduce_metrics(cls, logs: list[Any]) -> None:
            calls.append(logs)

    logs = [{"ntokens": 30, "nsentences": 2}, {"ntokens": 12, "nsentences": 3}]
    task = FairseqTask(None)
    with metrics.aggregate(new_root=True) as values:
        task.reduce_metrics(logs, Criterion())
    stats = values.get_smoothed_values()
    assert (stats["wpb"], stats["bsz"]) == (42, 5) and stats["wps"] >= 0
    assert calls == [logs]
    with metrics.aggregate(new_root=True) as values:
        task.reduce_metrics([{}], Criterion())
    assert not values.get_smoothed_values() and "ntokens not found" in caplog.text


class OldCriterion(FairseqCriterion):
    """Written for the original before it had ``reduce_metrics``."""

    @staticmethod
    def aggregate_logging_outputs(logs: list[Any]) -> dict[str, Any]:
        size = sum(log["sample_size"] for log in logs)
        return {"loss": sum(log["loss"] for log in logs) / size, "depth": 7, "sample_size": size}


def test_old_criterions_and_tasks_return_their_figures(caplog: pytest.LogCaptureFixture) -> None:
    logs = [{"loss": 6.0, "sample_size": 2}, {"loss": 9.0, "sample_size": 3}]
    task = FairseqTask(None)
    with metrics.aggregate(new_root=True) as values:
        task.reduce_metrics(logs, OldCriterion(None))
    assert values.get_smoothed_values() == {"loss": 3.0, "depth": 7.0}

    class OldTask(FairseqTask):
        def aggregate_logging_outputs(self, logs: list[Any], criterion: Any) -> dict[str, Any]:
            return {**criterion.aggregate_logging_outputs(logs), "extra": 1}

    with metrics.aggregate(new_root=True) as values:
        OldTask(None).reduce_metrics(logs, OldCriterion(None))
    assert values.get_smoothed_values() == {"loss": 3.0, "depth": 7.0, "extra": 1.0}
    warn_once.cache_clear()  # another test may have been warned
    for _ in range(2):
        FairseqCriterion.reduce_metrics(logs)
    assert caplog.text.count("FairseqCriterion has no reduce_metrics") == 1


def test_state_is_made_on_first_use_and_restored() -> None:
    task, other = FairseqTask(None), FairseqTask(None)
    made: list[int] = []
    for t in (task, other):
        t.state.add_factory("seen", lambda: made.append(1) or {"a": 1})
    assert task.state_dict() == {} and not made
    task.state.seen["a"] = 2
    assert task.state.seen == {"a": 2} and made == [1]
    other.load_state_dict(task.state_dict())
    assert other.state.seen == {"a": 2} and made == [1]
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        task.state.nothing  # noqa: B018
    assert not hasattr(StatefulContainer(), "__deepcopy__")


def test_datasets_must_be_loaded_and_be_datasets() -> None:
    task = FairseqTask(None)
    with pytest.raises(KeyError, match="Dataset not loaded: train"):
        task.dataset("train")
    task.datasets["train"] = [1, 2]
    with pytest.raises(TypeError, match="FairseqDataset"):
        task.dataset("train")


class Counted(ListDataset):
    """A list that says that its batches stay the same, and counts how often they are cut."""

    can_reuse_epoch_itr_across_epochs = True
    cuts = 0

    # as a plug-in that was written for the original has it
    def batch_by_size(
        self, indices: Any, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ) -> Any:
        self.cuts += 1
        return super().batch_by_size(
            indices, max_tokens, max_sentences, required_batch_size_multiple
        )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_batches_are_cut_once_if_they_stay_the_same() -> None:
    task = FairseqTask(None)
    dataset = Counted([torch.tensor([i]) for i in range(6)], np.ones(6, dtype=np.int64))
    first = task.get_batch_iterator(dataset, max_sentences=2, epoch=3)
    assert dataset.epoch == 3
    assert task.get_batch_iterator(dataset, max_sentences=2, epoch=4) is first
    for change in ("disable_iterator_cache", "update_epoch_batch_itr"):
        assert task.get_batch_iterator(dataset, max_sentences=2, **{change: True}) is not first
    assert dataset.cuts == 3


@pytest.mark.parametrize(("data_rng", "batches"), [("fairseq-main", 2), ("fairseq-0.12", 3)])
def test_a_plug_in_cuts_batches_and_the_task_drops_the_last_small_one(data_rng, batches) -> None:
    task = FairseqTask(SimpleNamespace(data_rng=data_rng))
    dataset = Counted([torch.tensor([i]) for i in range(5)], np.ones(5, dtype=np.int64))
    found = task.get_batch_iterator(dataset, max_sentences=2, required_batch_size_multiple=2)
    assert len(found) == batches


def test_registering_tasks() -> None:
    assert get_task("masked_lm") is MaskedLMTask
    with pytest.raises(RegistryError, match="did you mean 'masked_lm'"):
        get_task("masked_ml")
    with pytest.raises(RegistryError, match="names no task"):
        setup_task(SimpleNamespace())

    class Mine(LegacyFairseqTask):
        pass

    try:
        assert register_task("test_mine")(Mine) is Mine
        assert register_task("test_mine")(type("Another", (FairseqTask,), {})) is Mine
        assert setup_task(SimpleNamespace(task="test_mine", a=1)).args.a == 1
        with pytest.raises(RegistryError, match="duplicate class name"):
            register_task("test_other")(type("Mine", (FairseqTask,), {}))
        with pytest.raises(ValueError, match="must extend FairseqTask"):
            register_task("test_third")(type("NoTask", (), {}))
    finally:
        del TASK_REGISTRY["test_mine"]
