"""The optimizer's state after growth: kept in the corner, zero elsewhere, and what that does."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.errors import FairseqError
from tests import tiny_run

LAST = "checkpoint_last.pt"
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0, "disable_validation": True}
WIDE = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carried")
    data = tiny_run.make_corpus(folder / "data")
    tiny_run.train(tiny_run.config(data, folder / "small", max_update=4, **PLAIN))
    return folder


def grown(folder: Path, run: Path, method: str, **flags: Any) -> Any:
    given = {**PLAIN, "grow_from": str(folder / "small" / LAST), "grow_method": method, **flags}
    return tiny_run.config(folder / "data", run, **given)


def watched(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, dict[str, Any]]]:
    """Return, before each update of a run, the optimizer's state of each parameter, and itself."""
    found: list[dict[str, dict[str, Any]]] = []

    def look(trainer: Any, calls: int) -> None:
        inner = trainer.optimizer.optimizer
        found.append({})
        for name, param in trainer.get_model().named_parameters():
            state = {**inner.state.get(param, {}), "itself": param.detach()}
            found[-1][name] = {k: x.clone() if torch.is_tensor(x) else x for k, x in state.items()}

    with monkeypatch.context() as patch:
        tiny_run.Recorder(patch, look)
        tiny_run.train(cfg)
    return found


@pytest.mark.parametrize(
    ("method", "layers"),
    [("fpi", {0: 0, 1: 1}), ("interpolate", {0: 0, 2: 1}), ("copy", {0: 0, 1: 1})],
)
@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_the_state_is_kept_in_the_corner_and_zero_elsewhere(
    method: str, layers: dict[int, int], decay: str, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """S' = [S, 0]; layers that are later copies, or fresh, have no state."""
    tuned = {"weight_decay": 0.1, "weight_decay_mode": decay}  # one group of parameters, or two
    small = {**PLAIN, **tuned, "total_num_update": 4}
    tiny_run.train(tiny_run.config(folder / "data", tmp_path / "small", max_update=2, **small))
    source = tmp_path / "source.pt"
    shutil.copy(tmp_path / "small" / LAST, source)
    going_on = tiny_run.config(folder / "data", tmp_path / "small", max_update=3, **small)
    saved = watched(going_on, monkeypatch)[0]
    flags = {**WIDE, **tuned, "encoder_layers": 4, "grow_from": str(source), "max_update": 1}
    cfg = grown(folder, tmp_path / "run", method, grow_optimizer="asymmetric", **flags)
    seen = 0
    for name, state in watched(cfg, monkeypatch)[0].items():
        match = re.fullmatch(r"(.*layers\.)(\d+)(\..*)", name)
        if match is not None and int(match[2]) not in layers:
            assert set(state) == {"itself"}, name
            continue
        own = name if match is None else f"{match[1]}{layers[int(match[2])]}{match[3]}"
        for key in ("exp_avg", "exp_avg_sq"):
            corner = tuple(slice(size) for size in saved[own][key].shape)
            assert state[key][corner].equal(saved[own][key]) and state[key].any(), name
            state[key][corner] = 0
            assert not state[key].any(), name
        assert state["step"] == saved[own]["step"] == 2
        seen += 1
    assert seen == len(saved)


def test_the_first_step_is_adams_with_the_count_that_was_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps); t is 5 here, and 1 in new layers."""
    flags = {**WIDE, "encoder_layers": 3, "max_update": 2, "lr": [0.01], "warmup_updates": 0}
    flags |= {"weight_decay": 0.0, "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6}
    cfg = grown(folder, tmp_path / "run", "fpi", grow_optimizer="asymmetric", **flags)
    before, after = watched(cfg, monkeypatch)
    for layer, t in ((0, 5), (1, 5), (2, 1)):
        for part in ("fc1.weight", "self_attn.out_proj.bias"):
            name = f"encoder.sentence_encoder.layers.{layer}.{part}"
            state, p = after[name], before[name]["itself"].double()
            root = state["exp_avg_sq"].double().sqrt() + 1e-6
            rate = 0.01 * math.sqrt(1 - 0.98**t) / (1 - 0.9**t)
            wanted = p - rate * state["exp_avg"].double() / root
            torch.testing.assert_close(state["itself"].double(), wanted, rtol=1e-5, atol=1e-7)
            assert state["step"] == t


def test_copies_part_only_if_their_states_differ(folder: Path, tmp_path: Path) -> None:
    """Every hidden channel twice, without noise: equal for ever, or apart after one update."""
    gap = {}
    for policy in ("reset", "asymmetric"):
        run = tmp_path / policy
        tiny_run.train(grown(folder, run, "enlarge", grow_optimizer=policy, max_update=2, **WIDE))
        weight = tiny_run.content(run / LAST)["model"][
            "encoder.sentence_encoder.layers.0.fc1.weight"
        ]
        gap[policy] = float((weight[:64] - weight[64:]).abs().max())
    assert gap["reset"] < 1e-5 < 1e-4 < gap["asymmetric"], gap


def test_a_run_that_goes_on_does_not_carry_again(folder: Path, tmp_path: Path) -> None:
    def run(name: str, updates: int) -> str:
        flags = {"grow_optimizer": "asymmetric", **WIDE, "max_update": updates}
        tiny_run.train(grown(folder, tmp_path / name, "fpi", total_num_update=4, **flags))
        return tiny_run.digest(tmp_path / name / LAST)

    whole = run("whole", 4)
    run("parts", 2)
    assert run("parts", 4) == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grow_method": "random"}, "layer 0 of the source is no part of the grown model"),
        ({"optimizer": "adafactor"}, "trained with FairseqAdam, this run has FairseqAdafactor"),
        ({"bf16": True}, "this run has"),
        ({"weight_decay": 0.1, "weight_decay_mode": "matrices"}, "settings of the optimizer"),
        ({"grow_from": None, "grow_method": None}, "--grow-optimizer needs --grow-from"),
    ],
)
def test_what_cannot_be_carried(
    flags: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    given = {**WIDE, "max_update": 1, "grow_optimizer": "asymmetric", "grow_method": "fpi", **flags}
    with pytest.raises(FairseqError, match=message):
        tiny_run.train(
            grown(folder, tmp_path / "run", **{"method": given.pop("grow_method"), **given})
        )
    assert not list(tmp_path.glob("run/*.pt"))


def test_factored_states_are_refused(folder: Path, tmp_path: Path) -> None:
    small = {"optimizer": "adafactor", "max_update": 2, "lr": [0.01], **PLAIN}
    small |= {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    tiny_run.train(tiny_run.config(folder / "data", tmp_path / "small", **small))
    flags = {**small, **WIDE, "grow_from": str(tmp_path / "small" / LAST)}
    cfg = grown(folder, tmp_path / "run", "fpi", grow_optimizer="asymmetric", **flags)
    with pytest.raises(FairseqError, match="it is not per coordinate"):
        tiny_run.train(cfg)
