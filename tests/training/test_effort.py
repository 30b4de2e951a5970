"""Tokens and FLOPs of a run: logged, limits and milestones by them, the same after a restart."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, content, digest, make_corpus, train
from torch import Tensor

from fairseq.config.sections import OptimizationConfig
from fairseq.errors import ConfigError
from fairseq.logging.sinks import read_jsonl
from fairseq.training import effort, loop
from fairseq.training.effort import Effort, peak_of
from fairseq.training.freeze import freeze_parts, layers_of
from fairseq.training.trainer import Trainer

LAST = "checkpoint_last.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


def inner(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_jsonl(folder / "metrics.jsonl") if r["tag"] == "train_inner"]


def watch(patch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Return a list that gets what each update costs, counted here from its batches."""
    costs: list[dict[str, int]] = []
    original = Trainer.train_step

    def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        cost = {"tokens": 0, "flops": 0, "flops_electra": 0}
        model = trainer.get_model()
        for sample in samples:
            tokens_BT = sample["net_input"]["src_tokens"]
            predicted = int((sample["target"] != 1).sum())
            cost["tokens"] += int((tokens_BT != 1).sum())
            cost["flops"] += 3 * model.flops(*tokens_BT.shape, predicted)
            cost["flops_electra"] += 2 * model.flop_shape().electra(*tokens_BT.shape, predicted)
        costs.append(cost)
        return original(trainer, samples, raise_oom)

    patch.setattr(Trainer, "train_step", train_step)
    return costs


def kill_before(patch: pytest.MonkeyPatch, update: int) -> None:
    done = False

    def act(trainer: Trainer, calls: int) -> None:
        nonlocal done
        if trainer.get_num_updates() == update and not done:
            done = True
            raise KeyboardInterrupt

    Recorder(patch, act)


def test_totals_are_sums_over_updates_and_restarts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"save_interval_updates": 3, "update_freq": [2], "max_update": 5, "peak_tflops": 0.001}
    with pytest.MonkeyPatch.context() as patch:
        costs = watch(patch)
        train(config(data, tmp_path / "whole", **flags))
    kill_before(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(config(data, tmp_path / "cut", **flags))
    train(config(data, tmp_path / "cut", **flags))
    assert digest(tmp_path / "whole" / LAST) == digest(tmp_path / "cut" / LAST)
    for folder in (tmp_path / "whole", tmp_path / "cut"):
        by_update = {record["update"]: record for record in inner(folder)}
        for name in costs[0]:
            total = 0
            for update, cost in enumerate(costs, 1):
                total += cost[name]
                assert by_update[update][name] == total, (name, update)
            progress = content(folder / LAST)["extra_state"]["fairseq_lm"]["progress"]
            assert progress[name] == total
        assert all(record["mfu"] > 0 for record in list(by_update.values())[1:4])


def test_lineage_adds_to_the_operations(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "a", max_update=2))
    steps = [{"method": "finetune", "flops": 10**9, "tokens": 7}, {"method": "extract"}]
    original = loop.restore

    def restore(cfg: Any, trainer: Any, *start: Any, **also: Any) -> Any:
        trainer.lineage = steps
        return original(cfg, trainer, *start, **also)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "restore", restore)
        train(config(data, tmp_path / "b", max_update=2))
    alone, after = (inner(tmp_path / name)[-1] for name in "ab")
    assert after["flops"] == alone["flops"] + 10**9 and after["tokens"] == alone["tokens"]
    # and by the way that runs take: the weights of another one, twice
    for name, source in (("c", "a"), ("d", "c")):
        train(config(data, tmp_path / name, max_update=2, finetune_from_model=str(
            tmp_path / source / LAST)))  # fmt: skip
    third = inner(tmp_path / "d")[-1]
    assert third["flops"] == 3 * alone["flops"] and third["tokens"] == alone["tokens"]


def test_heads_and_contrasts_are_counted_too(data: Path, tmp_path: Path) -> None:
    flags = {"criterion": "contrastive_weight_tying", "contrastive_projection": True}
    with pytest.MonkeyPatch.context() as patch:
        costs = watch(patch)
        seen: list[tuple[int, float]] = []
        original = Effort.of_batch

        def of_batch(effort: Effort, sample: Any, log: Any) -> Any:
            cost = original(effort, sample, log)
            seen.append((log["sample_size"], log["negatives"] / log["sample_size"]))
            return cost

        patch.setattr(Effort, "of_batch", of_batch)
        train(config(data, tmp_path, max_update=3, **flags))
    extra = sum(3 * 2 * n * (negatives * 32 + 32 * 32) for n, negatives in seen)
    assert inner(tmp_path)[-1]["flops"] == sum(cost["flops"] for cost in costs) + extra


def test_a_teacher_is_counted_too(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "a", max_update=1, encoder_embed_dim=16))
    flags = {"criterion": "distillation", "teacher_path": str(tmp_path / "a" / LAST)}
    flags |= {"max_update": 2, "restrict_ce_to_mask": False, "alpha_ce": 0.5}
    extra = 0
    with pytest.MonkeyPatch.context() as patch:
        costs = watch(patch)
        original = Effort.of_batch

        def of_batch(effort: Effort, sample: Any, log: Any) -> Any:
            nonlocal extra
            tokens_BT = sample["net_input"]["src_tokens"]
            rows, length = tokens_BT.shape
            real, predicted = int((tokens_BT != 1).sum()), int((sample["target"] != 1).sum())
            # at all real tokens: the student's head, there and back, and the teacher, there only
            vocabulary, width = effort.shape.vocabulary, 32
            extra += 3 * 2 * (real - predicted) * (width**2 + width * vocabulary)
            entries = 2 * (4 * 16**2 + 2 * 16 * 64)
            products = rows * length * (entries + 2 * 2 * length * 16)
            extra += 2 * (products + real * (16**2 + 16 * vocabulary))
            return original(effort, sample, log)

        patch.setattr(Effort, "of_batch", of_batch)
        train(config(data, tmp_path / "b", **flags))
    assert inner(tmp_path / "b")[-1]["flops"] == sum(cost["flops"] for cost in costs) + extra


def test_the_peak_is_stated_or_measured() -> None:
    cpu = torch.device("cpu")
    assert peak_of(2.5, cpu, torch.float32, devices=4) == 1e13
    state = torch.random.get_rng_state()
    assert math.isfinite(peak := peak_of(None, cpu, torch.float32)) and peak > 1e6
    # as layers multiply: a step cannot do more than its products
    x_NK, w_MK = torch.ones(64, 1024, dtype=torch.half), torch.ones(1024, 1024, dtype=torch.half)
    torch.nn.functional.linear(x_NK, w_MK)
    started = time.perf_counter()
    torch.nn.functional.linear(x_NK, w_MK)
    rate = 2 * 64 * 1024 * 1024 / (time.perf_counter() - started)
    assert peak_of(None, cpu, torch.half) > rate / 5
    assert torch.random.get_rng_state().equal(state)


def test_a_busy_machine_does_not_lower_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    # a product of one thread waits for no other, which another process may keep from its core
    def seconds(a: Tensor, b: Tensor) -> float:
        alone = torch.get_num_threads() == 1
        return 2 * a.numel() * len(b) / (4e9 if alone else 1e8)

    monkeypatch.setattr(effort, "_seconds", seconds)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert peak_of(None, torch.device("cpu"), torch.float32) == pytest.approx(3 * 4e9)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


# -- limits and milestones -------------------------------------------------------------------------


def test_a_run_ends_with_its_tokens(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, tmp_path / "all", max_update=9))
    tokens = [record["tokens"] for record in inner(tmp_path / "all")]
    flags = {"max_tokens_total": int(tokens[4]) - 1, "save_interval_updates": 2, "max_update": 0}
    train(config(data, tmp_path / "whole", **flags))
    assert content(tmp_path / "whole" / LAST)["optimizer_history"][-1]["num_updates"] == 5
    events = [r for r in read_jsonl(tmp_path / "whole" / "events.jsonl") if r["event"] == "stop"]
    assert (
        events[-1]["reason"] == f"tokens: {tokens[4]:.0f} >= max_tokens_total: {tokens[4] - 1:.0f}"
    )
    kill_before(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(config(data, tmp_path / "cut", **flags))
    train(config(data, tmp_path / "cut", **flags))
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)
    train(config(data, tmp_path / "cut", **flags))  # nothing is left to do
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)


def test_milestones_are_saved_and_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"save_interval_updates": 1, "keep_interval_updates": 1, "keep_last_epochs": 1}
    train(config(data, tmp_path / "plain", **plain))
    tokens = [int(record["tokens"]) for record in inner(tmp_path / "plain")]
    marks = [tokens[3], tokens[4] + 1, tokens[-1] + 1]  # after updates 4 and 6; never
    flags = {**plain, "save_at_updates": [2, 6, 100], "save_at_tokens": marks}
    kill_before(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(config(data, tmp_path / "run", **flags))
    train(config(data, tmp_path / "run", **flags))
    found = {path.name for path in (tmp_path / "run").glob("checkpoint_[ut]*.pt")}
    named = {"checkpoint_update2.pt": 2, "checkpoint_update6.pt": 6}
    named |= {f"checkpoint_tokens{marks[0]}.pt": 4, f"checkpoint_tokens{marks[1]}.pt": 6}
    assert found == set(named)
    for name, update in named.items():
        state = content(tmp_path / "run" / name)
        assert state["optimizer_history"][-1]["num_updates"] == update
    assert digest(tmp_path / "run" / LAST) == digest(tmp_path / "plain" / LAST)


def test_milestones_alone_are_saved(data: Path, tmp_path: Path) -> None:
    flags = {"save_at_updates": [2], "no_epoch_checkpoints": True, "no_last_checkpoints": True}
    train(config(data, tmp_path, **flags, max_update=3, disable_validation=True))
    assert (tmp_path / "checkpoint_update2.pt").exists()


# -- frozen parts ----------------------------------------------------------------------------------

PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "embeddings": ({"freeze_embeddings": True}, r"embed_tokens|lm_head.weight"),
    "positions": ({"freeze_positions": True}, r"embed_positions"),
    "layers": ({"freeze_layers": "1"}, r"layers.1."),
    "all layers": ({"freeze_layers": "0-1", "freeze_positions": True}, r"layers|embed_positions"),
    "of clap": ({"freeze_embeddings": True, "head": "clap"}, r"embed_tokens|lm_head.weight"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("number", ["fp32", "bf16"])
def test_frozen_parts_stay_bit_by_bit(
    part: str, number: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, pattern = PARTS[part]
    more = {"bf16": number == "bf16", "weight_decay": 0.1, "save_interval_updates": 3}
    model = {"head": flags["head"]} if "head" in flags else {}
    train(config(data, tmp_path / "a", max_update=1, **more, **model))
    source = str(tmp_path / "a" / LAST)
    flags = {**more, **flags, "max_update": 5, "finetune_from_model": source}
    train(config(data, tmp_path / "whole", **flags))
    before, after = (content(tmp_path / name / LAST)["model"] for name in ("a", "whole"))
    kept = {name for name in before if before[name].equal(after[name])}
    frozen = {name for name in before if re.search(pattern, name)}
    assert frozen and kept - {"encoder.sentence_encoder.version"} == frozen
    if number == "fp32":
        kill_before(monkeypatch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(config(data, tmp_path / "cut", **flags))
        train(config(data, tmp_path / "cut", **flags))
        assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)


def test_layers_are_numbers_and_ranges() -> None:
    assert layers_of("0-3") == [0, 1, 2, 3] and layers_of("5-7, 0,2") == [0, 2, 5, 6, 7]
    for text in ("", "3-1", "a", "1,,2", "-1"):
        with pytest.raises(ConfigError, match="numbers and ranges"):
            layers_of(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_layers": "1-2"}, "there is no layer 2"),
        ({"freeze_positions": True}, "learns no positions"),
    ],
)
def test_parts_that_are_not_there_are_refused(settings: dict[str, Any], message: str) -> None:
    stack = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in "ab")}
    )
    with pytest.raises(ConfigError, match=message):
        freeze_parts(stack, OptimizationConfig(**settings))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze_parts(stack, OptimizationConfig(freeze_layers="0,1"))
