"""Schedules that follow a share of hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairseq.config import options
from fairseq.errors import ConfigError
from fairseq.training import policy, state
from fairseq.training.trainer import Trainer
from tests import tiny_run


def trainer_of(tmp_path: Path, **settings: Any) -> Trainer:
    data = tmp_path / "data-bin"
    if not data.exists():
        tiny_run.make_corpus(data)
    given = {**tiny_run.SMALL, "data": str(data), "warmup_updates": 20, "max_update": 100}
    cfg = options.make_config({**given, "total_num_update": 100, "lr": [1.0], **settings})
    from fairseq.tasks import setup_task

    task = setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def test_the_rate_follows_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(state.time, "time", lambda: now)
    trainer = trainer_of(tmp_path, lr_time_budget=2.0)
    settings = trainer.cfg.optimization
    assert "lr_time_budget: 2.0" in str(policy.reached_limit(settings, 1, 2.1))
    assert policy.reached_limit(settings, 1, 1.9) is None
    # nothing else is written, or a longer budget over a kept configuration would stop at this one
    assert settings.stop_time_hours == 0.0
    trainer.set_num_updates(77)  # however many there were
    assert trainer.get_lr() == 0
    rates = {}
    for hours in (0.2, 0.4, 1.2, 2.0, 3.0):
        now = 1000.0 + 3600 * hours
        trainer.set_num_updates(78)
        rates[hours] = trainer.get_lr()
    assert rates == pytest.approx({0.2: 0.5, 0.4: 1.0, 1.2: 0.5, 2.0: 0.0, 3.0: 0.0})


def test_hours_before_a_restart_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(state.time, "time", lambda: now)
    first = trainer_of(tmp_path, lr_time_budget=2.0)
    now += 3600
    saved = first.state_dict()["extra_state"]["previous_training_time"]
    second = trainer_of(tmp_path, lr_time_budget=2.0)
    second.state._previous_training_time = saved
    now += 720
    second.set_num_updates(1)
    assert second.hours() == pytest.approx(1.2)
    assert second.get_lr() == pytest.approx(0.5)


def test_it_needs_the_length_of_the_curve(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-update"):
        trainer_of(tmp_path, lr_time_budget=2.0, max_update=0)
