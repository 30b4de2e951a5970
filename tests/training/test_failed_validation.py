"""A validation that fails costs nothing of what was trained before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import Recorder, config, content, digest, make_corpus, train

from fairseq.errors import ConfigError, DataError
from fairseq.training.trainer import Trainer

EPOCH = 6  # updates of an epoch
LAST = "checkpoint_last.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.mark.parametrize(
    ("at", "flags"),
    [(EPOCH, {}), (4, {"validate_interval_updates": 4}), (9, {}), (EPOCH, {"save_interval": 9})],
    ids=["epoch end", "interval", "end of the run", "nothing to save"],
)
def test_a_restart_ends_with_the_bits_of_a_run_whose_validation_did_not_fail(
    at: int, flags: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, tmp_path / "whole", **flags))
    valid_step, failed = Trainer.valid_step, []

    def fails_once(trainer: Trainer, sample: Any, raise_oom: bool = False) -> Any:
        if trainer.get_num_updates() == at and not failed:
            failed.append(at)
            raise RuntimeError("a bug of a plug-in")
        return valid_step(trainer, sample, raise_oom)

    monkeypatch.setattr(Trainer, "valid_step", fails_once)
    with pytest.raises(RuntimeError, match="a bug of a plug-in"):
        train(config(data, tmp_path / "cut", **flags))
    seen = Recorder(monkeypatch)
    train(config(data, tmp_path / "cut", **flags))
    assert min(map(int, seen.losses), default=at + 1) == at + 1
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)


def test_a_metric_that_does_not_exist_does_not_cost_the_epoch(data: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time the first thing is the validation
        with pytest.raises(ConfigError, match="--best-checkpoint-metric accuracy is not reported"):
            train(config(data, tmp_path, best_checkpoint_metric="accuracy"))
        state = content(tmp_path / LAST)
        assert state["optimizer_history"][-1]["num_updates"] == EPOCH
    assert train(config(data, tmp_path)) is not None


def test_samples_that_do_not_fit_are_refused_before_the_first_update(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Recorder(monkeypatch)
    short = {"max_positions": 8, "tokens_per_sample": 8, "sample_break_mode": "eos"}
    with pytest.raises(DataError, match="max_positions=8; .* Skip them with --skip-invalid-size"):
        train(config(data, tmp_path, **short))
    assert not seen.losses
    fits = {**short, "skip_invalid_size_inputs_valid_test": True, "max_update": 2}
    train(config(data, tmp_path, **fits))
