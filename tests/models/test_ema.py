"""The moving average against the formula written out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fairseq.config.sections import EMAConfig
from fairseq.files.safe_load import safe_load
from fairseq.hub.load import load_model_ensemble_and_task
from fairseq.models.ema import EMA


def drift(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))


def test_average_follows_the_formula() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, EMAConfig(ema_decay=0.9))
    expected = model.weight.detach().clone()
    for seed in range(5):
        drift(model, seed)
        ema.step(model, seed + 1)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
        torch.testing.assert_close(ema.get_model().weight, expected)
    assert not ema.get_model().weight.requires_grad


def test_a_tied_table_moves_once() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    for fp32 in (False, True):
        ema = EMA(model, EMAConfig(ema_decay=0.9, ema_fp32=fp32))
        before = model[0].weight.detach().clone()
        drift(model, 1)
        ema.step(model)
        expected = 0.9 * before + 0.1 * model[0].weight
        for value in ema.get_model().state_dict().values():
            torch.testing.assert_close(value, expected.detach())


def test_start_update_copies_until_then() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, EMAConfig(ema_decay=0.9, ema_start_update=3))
    for update in (1, 2):
        drift(model, update)
        ema.step(model, update)
        assert torch.equal(ema.get_model().weight, model.weight)
        assert ema.get_decay() == 0.0
    drift(model, 3)
    ema.step(model, 3)
    assert ema.get_decay() == 0.9
    assert not torch.equal(ema.get_model().weight, model.weight)


def test_update_freq_skips_steps() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, EMAConfig(ema_decay=0.5, ema_update_freq=2))
    before = ema.get_model().weight.clone()
    drift(model, 1)
    ema.step(model)
    assert torch.equal(ema.get_model().weight, before)
    ema.step(model)
    torch.testing.assert_close(ema.get_model().weight, 0.5 * before + 0.5 * model.weight)


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_half_precision_keeps_small_steps(dtype: torch.dtype, fp32: bool) -> None:
    """1 + 2^-9 steps vanish in half precision unless the average is kept in fp32."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    ema = EMA(model, EMAConfig(ema_decay=0.999, ema_fp32=fp32))
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        ema.step(model)
    exact = 2 - 0.999**1000
    assert abs(float(ema.get_model().weight) - exact) < 0.02


@pytest.mark.parametrize("older", [False, True])
def test_the_average_of_half_precision_goes_on(older: bool) -> None:
    """Also from a file that holds the rounded weights alone."""
    model = nn.Linear(3, 2).to(torch.bfloat16)
    ema = EMA(model, EMAConfig(ema_decay=0.999))
    for seed in range(3):
        drift(model, seed)
        ema.step(model)
    state = copy.deepcopy(ema.state())
    other = EMA(copy.deepcopy(model), EMAConfig(ema_decay=0.999))
    other.load_state({"ema": state["ema"]} if older else state)
    sums = other.state()["ema_fp32_params"]
    assert all(x.dtype == torch.float32 for x in sums.values())
    assert older != all(x.equal(sums[name]) for name, x in state["ema_fp32_params"].items())


def test_state_round_trip_and_reverse() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, EMAConfig(ema_decay=0.9, ema_fp32=True))
    drift(model, 1)
    ema.step(model)
    other = EMA(copy.deepcopy(model), EMAConfig(ema_decay=0.9, ema_fp32=True))
    other.load_state(ema.state())
    drift(model, 2)
    for average in (ema, other):
        average.step(model)
    assert torch.equal(ema.get_model().weight, other.get_model().weight)
    fresh = other.reverse(nn.Linear(3, 2))
    assert torch.equal(fresh.weight, ema.get_model().weight)


def test_checkpoint_without_average_starts_a_new_one(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 2)
    EMA(model, EMAConfig()).load_state({})
    assert "no moving average" in caplog.text


@pytest.mark.parametrize("fp32", [False, True])
def test_an_average_of_the_original_without_final_norm(
    fp32: bool, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The original forgets the decoder's last norm in what it saves of the average."""
    path = shared / "compat/interchange/lm_prenorm_learned_ema/checkpoint_last.pt"
    data = {"data": str(shared / "compat/checkpoints/data-bin")}
    (model,), _, _ = load_model_ensemble_and_task([str(path)], data)
    saved = safe_load(path)["extra_state"]["ema"]
    ema = EMA(model, EMAConfig(store_ema=True, ema_decay=0.9, ema_fp32=fp32))
    ema.load_state({"ema": saved})
    assert "lacks decoder.layer_norm.weight, decoder.layer_norm.bias" in caplog.text
    own, norm = ema.get_model().state_dict(), "decoder.layer_norm.weight"
    assert torch.equal(own[norm], model.state_dict()[norm])
    kept = "decoder.layers.1.fc1.weight"
    assert torch.equal(own[kept], saved[kept]) and not torch.equal(
        own[kept], model.state_dict()[kept]
    )
    before = {name: own[name].clone() for name in (norm, kept)}
    drift(model, 1)
    ema.step(model, 13)
    for name, old in before.items():
        expected = 0.9 * old + 0.1 * model.state_dict()[name]
        torch.testing.assert_close(ema.get_model().state_dict()[name], expected)
