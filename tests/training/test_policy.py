"""When a run saves, validates and stops, without a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq.config.sections import CheckpointConfig, FairseqConfig, OptimizationConfig
from fairseq.training import policy
from fairseq.training.policy import Moment


def settings(**values: Any) -> FairseqConfig:
    cfg = FairseqConfig()
    for name, value in values.items():
        section = next(
            s for s in (cfg.dataset, cfg.checkpoint, cfg.optimization) if hasattr(s, name)
        )
        setattr(section, name, value)
    return cfg


@pytest.mark.parametrize(
    ("values", "now", "expected"),
    [
        ({}, Moment(7, 1, False), (False, False)),
        ({}, Moment(7, 1, True), (True, True)),
        ({"save_interval": 2}, Moment(7, 1, True), (False, True)),
        ({"save_interval_updates": 5}, Moment(10, 1, False), (True, True)),
        ({"save_interval_updates": 5}, Moment(10, 1, False, updated=False), (False, False)),
        ({"validate_interval_updates": 5}, Moment(10, 1, False), (False, True)),
        ({"validate_interval_updates": 5}, Moment(0, 1, False), (False, False)),
        ({"validate_after_updates": 11, "save_interval_updates": 5}, Moment(10, 1, False), (0, 0)),
        ({"validate_after_updates": 11}, Moment(10, 1, True), (True, False)),
        ({"disable_validation": True}, Moment(10, 1, True), (True, False)),
        ({"max_epoch": 3, "save_interval": 9}, Moment(10, 3, True), (True, True)),
    ],
)
def test_what_a_moment_asks_for(
    values: dict[str, Any], now: Moment, expected: tuple[bool, bool]
) -> None:
    assert policy.is_time(settings(**values), now, at_limit=False) == expected


@given(st.integers(1, 50), st.integers(1, 5), st.booleans(), st.booleans())
def test_the_end_of_a_run_is_validated_and_saved(
    updates: int, epoch: int, end: bool, updated: bool
) -> None:
    cfg, now = settings(), Moment(updates, epoch, end, updated)
    assert policy.is_time(cfg, now, at_limit=True) == (True, True)
    assert policy.is_time(cfg, now, at_limit=False) == policy.due(cfg, now) == (end, end)


def test_limits() -> None:
    config = OptimizationConfig()
    config.max_update, config.stop_time_hours = 10, 2.0
    assert policy.reached_limit(config, 9, 2.0) is None
    assert policy.reached_limit(config, 10, 0.0) == "num_updates: 10 >= max_update: 10"
    assert "stop_time_hours" in str(policy.reached_limit(config, 9, 2.5))
    config.max_update, config.stop_time_hours = 0, 0.0
    assert policy.reached_limit(config, 10**9, 1e9) is None


@pytest.mark.parametrize("maximize", [False, True])
def test_patience_counts_what_is_no_better(maximize: bool) -> None:
    progress: dict[str, Any] = {}
    sign = -1 if maximize else 1
    counts = []
    for value in (3.0, 2.0, 2.0, math.nan, 1.0, 5.0):
        policy.note_validation(progress, sign * value, maximize)
        counts.append(progress["validations_without_progress"])
    assert counts == [0, 0, 1, 2, 0, 1] and progress["best_for_patience"] == sign * 1.0
    for patience in (0, 2):
        assert policy.validated_enough(CheckpointConfig(patience=patience), progress) is None
    assert "last 1" in str(policy.validated_enough(CheckpointConfig(patience=1), progress))


@pytest.mark.parametrize("maximize", [False, True])
def test_a_goal_of_the_metric_ends_training(maximize: bool) -> None:
    sign = -1 if maximize else 1
    settings = CheckpointConfig(
        stop_at_metric=sign * 1.0,
        best_checkpoint_metric="kl_micro",
        maximize_best_checkpoint_metric=maximize,
    )
    progress: dict[str, Any] = {}
    for value, ends in ((3.0, False), (math.nan, False), (1.5, False), (1.0, True), (2.0, True)):
        policy.note_validation(progress, sign * value, maximize)
        assert (policy.validated_enough(settings, progress) is not None) == ends
    assert "kl_micro" in str(policy.validated_enough(settings, progress))
    assert policy.validated_enough(CheckpointConfig(), progress) is None
