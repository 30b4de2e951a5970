"""Gradients that are not finite change nothing, and end the run if they go on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, train

from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.errors import FairseqError
from fairseq.training.trainer import Trainer
from tests.training.resume.cut_runs import events, updates_of


def poison(monkeypatch: pytest.MonkeyPatch, updates: set[int], value: float = math.nan) -> None:
    """Make the loss of the chosen calls not finite."""
    original, calls = MaskedLmLoss.forward, 0

    def forward(self: Any, model: Any, sample: Any, reduce: bool = True) -> Any:
        nonlocal calls
        loss, size, log = original(self, model, sample, reduce)
        if model.training:
            calls += 1
            if calls in updates:
                loss = loss * value
        return loss, size, log

    monkeypatch.setattr(MaskedLmLoss, "forward", forward)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("flags", "value"),
    [({}, NAN), ({}, INF), ({"bf16": True}, NAN), ({"fp16": True}, INF), ({"amp": True}, NAN)],
    ids=str,
)
def test_a_gradient_that_is_not_finite_changes_nothing(
    flags: dict[str, Any], value: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4, 5}, value)
    before: dict[str, Any] = {}
    checked = []

    def look(trainer: Trainer, calls: int) -> None:
        weights = [p.detach().clone() for p in trainer.parameters()]
        state = json.dumps(trainer.optimizer.state_dict()["state"], default=lambda t: t.tolist())
        if calls in (4, 5):  # before the calls that follow the bad ones
            assert trainer.get_num_updates() == 3
            assert all(map(torch.equal, weights, before["weights"]))
            assert state == before["state"]
            checked.append(calls)
        before.update(weights=weights, state=state)

    recorder = Recorder(monkeypatch, look)
    train(config(data, tmp_path, max_update=8, **flags))
    assert checked == [4, 5] and set(recorder.losses) == set(range(1, 9))
    skipped = events(tmp_path, "skipped")
    assert [event["update"] for event in skipped] == [3, 3]
    assert all("gradient" in event["reason"] for event in skipped)


def test_many_bad_gradients_in_a_row_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(7, 100)))
    with pytest.raises(FairseqError, match="10 updates in a row.*--clip-norm"):
        train(config(data, tmp_path, save_interval_updates=3))
    assert updates_of(tmp_path) == 6
    poison(monkeypatch, set(range(2, 100)))
    with pytest.raises(FloatingPointError, match="loss scale"):
        train(config(data, tmp_path / "half", fp16=True, min_loss_scale=1.0))


def test_overflows_at_the_lowest_allowed_loss_scale_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those on the way to it do not count, nor does one among good updates."""
    poison(monkeypatch, {4, 5} | set(range(7, 60)))
    calls: list[int] = []
    Recorder(monkeypatch, lambda trainer, call: calls.append(trainer.get_num_updates()))
    flags = {"fp16": True, "fp16_init_scale": 4, "threshold_loss_scale": 2.0, "batch_size": 1}
    with pytest.raises(FairseqError, match="10 updates in a row.*--bf16"):
        train(config(data, tmp_path, **flags))
    # one lowers the scale, one cannot, and ten in a row cannot either
    assert calls == [0, 1, 2, 3, 3, 3] + [4] * 10
