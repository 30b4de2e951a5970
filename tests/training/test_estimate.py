"""What a run will cost: memory by part, what is left, and that asking leaves no trace."""

from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import config, make_corpus, train
from torch import nn

from fairseq.config.sections import OptimizationConfig
from fairseq.logging.sinks import read_jsonl
from fairseq.training import estimate as estimating
from fairseq.training import pace as pacing
from fairseq.training import policy
from fairseq.training.loop import ready_to_train
from fairseq.training.memory import (
    STATUS,
    bytes_of,
    gradient_bytes,
    optimizer_bytes,
    saved_for_backward,
)
from fairseq.training.pace import Pace, Position, clock, scaled, seconds_left, updates_left
from fairseq.training.run_folder import config_as_yaml
from fairseq.training.trainer import Trainer
from fairseq_cli import train as command

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "ENOUGH", 0.0)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not STATUS.exists(), reason="the system tells no more than the peak")
def test_the_system_tells_what_is_held_and_what_was() -> None:
    # in a process of its own: here earlier tests may have left memory that is used again
    program = """
import torch
from fairseq.training.memory import peak_memory, resident_memory
before, peak = resident_memory(), peak_memory(torch.device("cpu"))
held = torch.ones(60_000_000)
grown, size = resident_memory(), held.nbytes
del held
print(before, peak, grown, size, peak_memory(torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, peak, grown, size, largest = map(int, done.stdout.split())
    assert 0 < before <= peak
    assert grown - before > 0.8 * size
    assert largest >= 0.99 * grown  # the kernel adds up its counters in batches


def test_memory_that_tensors_share_counts_once() -> None:
    table = torch.zeros(10, 4)
    assert bytes_of([table, table.T, table[3]]) == 160
    assert bytes_of([table, torch.zeros(3, dtype=torch.float16)]) == 166


def test_what_is_kept_for_the_backward_pass() -> None:
    layer = nn.Linear(8, 16, bias=False)
    inputs_BC = torch.ones(4, 8)
    with saved_for_backward(layer.parameters()) as sizes:
        hidden_BC = layer(inputs_BC)  # keeps its input, for the weight
        hidden_BC.tanh().sum().backward()  # keeps the result of tanh
    assert sum(sizes.values()) == 4 * (4 * 8 + 4 * 16)


@pytest.mark.parametrize(
    ("name", "flags", "copies"),
    [
        ("adam", {}, 2),
        ("nag", {}, 1),
        ("adamax", {}, 2),
        ("adam", {"bf16": True}, 2 * 2 + 2),  # of weights in bf16: fp32 means, a fp32 copy
        ("adam", {"bf16": True, "memory_efficient_bf16": True}, 2 * 2),
    ],
)
def test_optimizers_tell_their_size_before_they_have_it(
    data: Path, tmp_path: Path, name: str, flags: dict[str, Any], copies: int
) -> None:
    with ready_to_train(config(data, tmp_path, optimizer=name, no_save=True, **flags)) as loop:
        trainer = loop.trainer
        told = optimizer_bytes(trainer.optimizer, trainer.parameters())
        weights = bytes_of(trainer.parameters())
        assert told == copies * weights
        keeps_copies = copies == 6
        assert gradient_bytes(trainer.optimizer, trainer.parameters()) == weights * (
            3 if keeps_copies else 1
        )
        trainer.begin_epoch(1)
        trainer.train_step(next(loop.update_groups()))
        # the rule may keep its counter as a tensor
        grown = optimizer_bytes(trainer.optimizer, trainer.parameters()) or 0
        assert 0 <= grown - told <= 8 * len(trainer.parameters())


def test_factored_statistics_are_small_and_unknown_ones_unknown(data: Path, tmp_path: Path) -> None:
    for name, flags in (("adafactor", {"scale_parameter": True}), ("sgd", {"momentum": 0.9})):
        settings = {"optimizer": name, "no_save": True, **flags}
        with ready_to_train(config(data, tmp_path, **settings)) as loop:
            trainer = loop.trainer
            told = optimizer_bytes(trainer.optimizer, trainer.parameters())
            trainer.begin_epoch(1)
            trainer.train_step(next(loop.update_groups()))
            after = optimizer_bytes(trainer.optimizer, trainer.parameters())
            if name == "sgd":
                assert told is None and after == bytes_of(trainer.parameters())
            else:
                assert told == after and told < bytes_of(trainer.parameters()) / 2


# -- what is left ----------------------------------------------------------------------------------


def test_the_first_limit_ends_a_run() -> None:
    at = Position(updates=30, tokens=3000, epoch=2, left_of_epoch=10, epoch_updates=20)

    def left(**limits: Any) -> tuple[int | None, str]:
        return updates_left(OptimizationConfig(**limits), at, 100.0)

    assert left() == (None, "")
    assert left(max_update=100) == (70, "--max-update 100")
    assert left(max_epoch=4) == (10 + 2 * 20, "--max-epoch 4")
    assert left(max_tokens_total=4050) == (11, "--max-tokens-total 4050")
    assert left(max_update=100, max_epoch=4, max_tokens_total=9000)[1] == "--max-epoch 4"
    assert left(max_update=20)[0] == 0  # it is complete
    assert updates_left(OptimizationConfig(max_tokens_total=9), at, None) == (None, "")


def test_the_clock_may_end_it_earlier() -> None:
    free, hour = OptimizationConfig(), OptimizationConfig(stop_time_hours=1)
    assert seconds_left(free, None, 2.0, 0.0) is None
    assert seconds_left(free, 70, 2.0, 0.0) == 140
    assert seconds_left(hour, 70, 2.0, 3500.0) == 100
    assert seconds_left(hour, None, 2.0, 600.0) == 3000
    assert seconds_left(hour, None, 2.0, 4000.0) == 0


def test_the_pace_leaves_the_first_update_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pacing, "time", SimpleNamespace(perf_counter=lambda: now))
    pace = Pace()
    assert pace.seconds_an_update(1) is None  # however long it took
    now = 103.0
    assert pace.seconds_an_update(2) == 3.0
    now = 111.0  # a validation is part of it
    assert pace.seconds_an_update(5) == 11.0 / 4
    assert pace.seconds_an_update(0) is None  # a return to an earlier checkpoint starts anew
    now = 112.0
    assert pace.seconds_an_update(2) == 0.5


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"save_interval_updates": 4, "validate_interval_updates": 6},
        {"validate_interval_updates": 5, "validate_interval": 2},
        {"save_interval_updates": 7, "validate_after_updates": 15},
        {"disable_validation": True},
    ],
)
def test_validations_are_those_of_the_loop(
    data: Path, tmp_path: Path, flags: dict[str, Any]
) -> None:
    cfg = config(data, tmp_path, max_update=40, **flags)
    expected = {
        update
        for update in range(11, 41)
        if policy.is_time(
            cfg, policy.Moment(update, -(-update // 9), update % 9 == 0), update == 40
        )[1]
    }
    assert policy.validations_ahead(cfg, 10, 30, 9) == len(expected)
    assert policy.validations_ahead(cfg, 10, None, 9) == 0


def test_figures_for_people() -> None:
    assert [scaled(x) for x in (0, 999, 999.6, 12_345, 4.2e6, 3.14e13)] == [
        *("0 ", "999 ", "1 k", "12.3 k", "4.2 M", "31.4 T")
    ]
    assert clock(3725.4) == "1:02:05"


# -- the estimate ----------------------------------------------------------------------------------


def test_an_estimate_tells_the_cost_and_leaves_no_trace(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    flags = {"max_update": 4, "save_interval_updates": 2, "update_freq": [2]}
    cfg = config(data, folder, **flags)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config_as_yaml(cfg), encoding="utf-8")
    words = ["--config", str(recipe), "--log-file", str(tmp_path / "log"), "--profile",
             "--tensorboard-logdir", str(tmp_path / "board"), "--estimate"]  # fmt: skip
    assert command.run([*words, "--json"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]
    record = json.loads(capsys.readouterr().out)
    train(config(data, folder, **flags))
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    truth = read_jsonl(folder / "metrics.jsonl")
    inner = [line for line in truth if line["tag"] == "train_inner"]
    assert record["parameters"] == json.loads((folder / "versions.json").read_text())["parameters"]
    memory = record["memory"]
    assert memory["gradients"] == 4 * record["parameters"]
    assert memory["weights"] == pytest.approx(4 * record["parameters"], abs=64)  # and buffers
    assert memory["optimizer"] == 8 * record["parameters"]
    assert memory["activations"] > 0 and memory["peak"] > memory["weights"]
    # a mean over epochs of three updates of seven batches
    assert record["tokens_an_update"] == pytest.approx(inner[-1]["tokens"] / 4, rel=0.3)
    assert record["flops_an_update"] == pytest.approx(inner[-1]["flops"] / 4, rel=0.3)
    assert (record["updates_done"], record["updates_left"]) == (0, 4)
    # updates 2 and 4 are saved; the epoch ends after three
    assert (record["limit"], record["validations"]) == ("--max-update 4", 3)
    assert record["seconds"] >= 4 * record["seconds_an_update"]
    # of a run that goes on, what is left
    assert command.run([*words, "--max-update", "10"]) == 0
    table = capsys.readouterr().out
    assert "6 updates after 4 done" in table and f"{record['parameters']:,}" in table
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def test_what_nothing_bounds_has_no_end(data: Path, tmp_path: Path) -> None:
    free = config(data, tmp_path, max_update=0, total_num_update=9)
    told = estimating.estimate(free)
    assert told.seconds is None and told.updates_left is None
    assert "nothing bounds the run" in told.table()


def test_a_stop_signal_ends_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.train_step

    def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(trainer, samples, raise_oom)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(SystemExit) as ended:
        estimating.estimate(config(data, tmp_path / "run"))
    assert ended.value.code == 128 + signal.SIGTERM and not (tmp_path / "run").exists()


def test_json_is_the_format_of_the_estimate_alone(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run([str(data), "--config", "masked", "--json"])
    assert ended.value.code == 2 and "--estimate" in capsys.readouterr().err


# -- what a run says -------------------------------------------------------------------------------


def test_a_run_tells_its_cost_once_and_how_long_it_takes(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    clocks = SimpleNamespace(perf_counter=lambda: now)
    original = Trainer.train_step

    def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        nonlocal now
        now += 100.0
        return original(trainer, samples, raise_oom)

    monkeypatch.setattr(pacing, "time", clocks)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    caplog.set_level(logging.INFO)
    train(config(data, tmp_path, log_interval=2, log_format="simple", no_save=False))
    records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if r["tag"] == "train_inner"]
    assert {r["update"]: r.get("eta") for r in records} == {2: 700, 4: 500, 6: 300, 8: 100}
    lines = [record.getMessage() for record in caplog.records]
    assert sum("loss is in bits per predicted token" in line for line in lines) == 1
    (cost,) = [line for line in lines if "updates to go" in line]
    parameters = json.loads((tmp_path / "versions.json").read_text())["parameters"]
    assert cost.startswith(f"{parameters:,} parameters, weights {scaled(4 * parameters)}B")
    assert f"optimizer state {scaled(8 * parameters)}B" in cost
    assert "9 updates to go (--max-update 9)" in cost
    tokens, flops = (sum(r[name] for r in records[-1:]) / 8 for name in ("tokens", "flops"))
    told = cost.split("an update about ")[1].split()
    assert float(told[0]) == pytest.approx(tokens, rel=0.3)
    assert math.isclose(float(told[3]) * 1e6, flops, rel_tol=0.3), cost
    (told,) = [line for line in lines if "0:11:40 to go" in line]
    # an update takes 100 s by this clock: both figures of the line come from it
    assert float(told.split()[0]) == pytest.approx(records[0]["tokens"] / 2 / 100, abs=0.5)
    assert sum("eta=0:11:40" in line for line in lines) == 1
