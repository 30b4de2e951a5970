"""Optimizers' knobs together: each pair trains, and cut in half ends with the same bits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairseq.errors import ConfigError
from tests import tiny_run

Knobs = dict[str, Any]
GROUPS = "embed=lr*0.1,norm=wd0,*.fc1.weight=lr*2,fc1.weight=wd0.3"
DECODER = {
    "task": "language_modeling",
    "criterion": "cross_entropy",
    "arch": "transformer_lm",
    "decoder_layers": 2,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2,
    "share_decoder_input_output_embed": True,
    "max_target_positions": 16,
}
VALUES: dict[str, tuple[Any, ...]] = {
    "optimizer": ("muon", "adam", "adafactor", "sgd"),
    "schedule": (
        {"lr_scheduler": "wsd", "decay_updates": 2},
        {"lr_scheduler": "wsd", "decay_updates": 0.5, "decay_shape": "1-sqrt"},
        {"lr_scheduler": "cosine"},
    ),
    "precision": (
        {},
        {"bf16": True},
        {"memory_efficient_bf16": True},
        {"fp16": True},
        {"memory_efficient_fp16": True},
        {"amp": True},
    ),
    "param_groups": ("", GROUPS),
    "clip_norm": (0.0, 0.5),
    "model": ({}, DECODER, {"encoder_normalize_before": True, "head": "clap"}),
    "mode": ("all", "matrices"),
    "adjust": ("match_rms_adamw", "original"),
}
# the optimizers whose flag it is; for the others it is not drawn
ONLY = {"mode": ("muon", "adam"), "adjust": ("muon",)}
FLAGS = {"mode": "weight_decay_mode", "adjust": "muon_adjust_lr"}
COMMON: Knobs = {
    "lr": [1e-3],
    "weight_decay": 0.1,
    "warmup_updates": 1,
    "total_num_update": 4,
    "disable_validation": True,
    "fp16_init_scale": 4,
}
Index = dict[str, int]


def pairs_of(index: Index) -> set[tuple[tuple[str, int], ...]]:
    return set(itertools.combinations(sorted(index.items()), 2))


def covering() -> list[Index]:
    """Return a few combinations (places in VALUES) in which every pair that makes sense occurs."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        index = {name: int(rng.integers(len(values))) for name, values in VALUES.items()}
        optimizer = VALUES["optimizer"][index["optimizer"]]
        drawn.append({n: i for n, i in index.items() if optimizer in ONLY.get(n, (optimizer,))})
    pairs = list(map(pairs_of, drawn))
    wanted, chosen = set().union(*pairs), []
    while wanted:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & wanted))
        chosen.append(drawn[best])
        wanted -= pairs[best]
    return chosen


def flags_of(index: Index) -> Knobs:
    flags = dict(COMMON)
    for name, place in index.items():
        value = VALUES[name][place]
        flags |= value if isinstance(value, dict) else {FLAGS.get(name, name): value}
    if flags["lr_scheduler"] == "cosine":
        flags["lr_period_updates"], _ = 3, flags.pop("total_num_update")
    return flags


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus") / "data", train_lines=24)


COVERING = covering()


@pytest.mark.parametrize("index", COVERING, ids=lambda i: "-".join(map(str, i.values())))
def test_every_pair_trains_and_resumes(index: Index, data: Path, tmp_path: Path) -> None:
    flags = flags_of(index)
    frugal = any(flags.get(f"memory_efficient_{kind}") for kind in ("bf16", "fp16"))
    if flags["optimizer"] == "sgd" and frugal:
        with pytest.raises(ConfigError, match="cannot train without fp32 master weights"):
            tiny_run.train(tiny_run.config(data, tmp_path, max_update=4, **flags))
        return
    if flags["optimizer"] == "adafactor" and flags.get("fp16") and not flags["param_groups"]:
        with pytest.raises(ConfigError, match="--fp16-no-flatten-grads"):
            tiny_run.train(tiny_run.config(data, tmp_path, max_update=4, **flags))
        return
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tiny_run.train(tiny_run.config(data, whole, **{**flags, "max_update": 4}))
    for end in (2, 4):
        tiny_run.train(tiny_run.config(data, cut, **{**flags, "max_update": end}))
    last = "checkpoint_last.pt"
    assert tiny_run.digest(cut / last) == tiny_run.digest(whole / last)
    found = tiny_run.content(cut / last)
    assert all(tensor.isfinite().all() for tensor in found["model"].values())
    groups = found["last_optimizer_state"]["param_groups"]
    assert any("lr_scale" in group for group in groups) == bool(flags["param_groups"])


def test_the_combinations_are_few() -> None:
    assert len(COVERING) < 40
