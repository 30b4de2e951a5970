"""Reduced precision: the loss scale, overflows, master weights, bit-exact resume; on the CPU."""

from __future__ import annotations

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import torch

from fairseq.errors import CheckpointError, ConfigError, UnsupportedError
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY
from fairseq.optim.amp_optimizer import AMPOptimizer, amp_dtype
from fairseq.optim.fp16_optimizer import (
    FP16Optimizer,
    MemoryEfficientFP16Optimizer,
    build_scaler,
)
from fairseq.optim.loss_scaler import DynamicLossScaler

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KINDS = [
    (FP16Optimizer, {}),
    (FP16Optimizer, {"fp16_no_flatten_grads": True}),
    (FP16Optimizer, {"bf16": True}),
    (MemoryEfficientFP16Optimizer, {}),
    (MemoryEfficientFP16Optimizer, {"bf16": True}),
]


def config(name="adam", common=None, update_freq=(1,), workers=1, **optimizer):
    cfg = OPTIMIZER_DATACLASS_REGISTRY[name]()
    cfg._name, cfg.lr = name, [0.01]
    for key, value in optimizer.items():
        setattr(cfg, key, value)
    common = {
        "fp16_init_scale": 8,
        "fp16_scale_window": 3,
        "min_loss_scale": 1e-4,
        **(common or {}),
    }
    return SimpleNamespace(
        optimizer=cfg,
        common=SimpleNamespace(**common),
        optimization=SimpleNamespace(update_freq=list(update_freq)),
        distributed_training=SimpleNamespace(distributed_world_size=workers),
    )


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    return model.to(dtype)


def batch(turn):
    generator = torch.Generator().manual_seed(100 + turn)
    return torch.randn(6, 4, generator=generator)


def loss_of(model, turn, size=1.0):
    x = batch(turn).to(next(model.parameters()).dtype)
    return (model(x).float() ** 2).mean() * size


def step(model, optimizer, turn, size=1.0, max_norm=0.0, micro=2):
    """One update of ``micro`` batches, normalised and clipped as the trainer does."""
    optimizer.zero_grad()
    for i in range(micro):
        optimizer.backward(loss_of(model, turn * micro + i, size))
    optimizer.multiply_grads(1 / micro)
    norm = optimizer.clip_grad_norm(max_norm)
    optimizer.step()
    return norm


def half_dtype(common):
    return torch.bfloat16 if common.get("bf16") else torch.float16


# ---------------------------------------------------------------- the loss scale


def play(scaler, norms):
    """Feed gradient norms; return the scale after each."""
    scales = []
    for norm in norms:
        try:
            scaler.check_overflow(norm)
            scaler.update()
        except OverflowError:
            pass
        scales.append(scaler.loss_scale)
    return scales


inf, nan = math.inf, math.nan


def test_scale_grows_after_a_window_without_overflow():
    scaler = DynamicLossScaler(init_scale=4, scale_window=3)
    assert play(scaler, [1.0] * 7) == [4, 4, 8, 8, 8, 16, 16]
    # an overflow halves at once, and the window starts anew
    assert play(scaler, [inf, 1.0, 1.0, 1.0]) == [8, 8, 8, 16]
    assert play(scaler, [nan, inf]) == [8, 4]


def test_tolerated_overflows_do_not_halve():
    scaler = DynamicLossScaler(init_scale=4, scale_window=100, tolerance=0.5)
    # share of overflows since the start: 1/3, then 2/4
    assert play(scaler, [1.0, 1.0, inf, inf]) == [4, 4, 4, 2]


def test_threshold_is_a_floor():
    scaler = DynamicLossScaler(init_scale=4, threshold=2.0)
    assert play(scaler, [inf] * 3) == [2, 2, 2]


def test_minimum_ends_the_training():
    scaler = DynamicLossScaler(init_scale=4, min_loss_scale=1.0)
    with pytest.raises(OverflowError, match="setting loss scale to: 2.0"):
        scaler.check_overflow(inf)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"Minimum loss scale reached \(1.0\)"):
            scaler.check_overflow(torch.tensor(inf))
    assert scaler.loss_scale == 2.0


def test_scaler_state_continues():
    first = DynamicLossScaler(init_scale=4, scale_window=3, tolerance=0.4)
    play(first, [1.0, inf, 1.0])
    second = DynamicLossScaler(init_scale=4, scale_window=3, tolerance=0.4)
    second.loss_scale = first.loss_scale
    second.load_state_dict(first.state_dict())
    norms = [1.0, inf, 1.0, 1.0, 1.0, 1.0]
    assert play(second, norms) == play(first, norms)


@pytest.mark.parametrize(
    ("common", "update_freq", "workers", "window"),
    [
        ({"fp16_scale_window": None}, (1,), 1, 2**14),
        ({"fp16_scale_window": None}, (4,), 8, 512),
        ({"fp16_scale_window": None}, (2, 4), 1, 2**13),
        ({"fp16_scale_window": None}, (1,), -1, 2**14),
        ({"fp16_scale_window": 7}, (4,), 8, 7),
    ],
)
def test_default_window(common, update_freq, workers, window):
    assert build_scaler(config("sgd", common, update_freq, workers)).scale_window == window


def test_scaler_settings():
    common = {"fp16_scale_tolerance": 0.3, "threshold_loss_scale": 2.0, "min_loss_scale": 0.5}
    scaler = build_scaler(config("sgd", common))
    assert (scaler.loss_scale, scaler.tolerance) == (8, 0.3)
    assert (scaler.threshold, scaler.min_loss_scale) == (2.0, 0.5)
    assert build_scaler(config("sgd", {"bf16": True})) is None


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize(("cls", "common"), KINDS)
@pytest.mark.parametrize("max_norm", [0.0, 0.05])
def test_updates_follow_fp32(cls, common, max_norm):
    full = make_model()
    half = copy.deepcopy(full).to(half_dtype(common))
    full.load_state_dict(half.state_dict())
    reference = torch.optim.SGD(full.parameters(), lr=0.1)
    optimizer = cls.build_optimizer(
        config("nag", common, lr=[0.1], momentum=0.0), half.parameters()
    )
    for turn in range(4):
        reference.zero_grad()
        for i in range(2):
            (loss_of(full, 2 * turn + i) / 2).backward()
        want = torch.nn.utils.clip_grad_norm_(full.parameters(), max_norm or 1e9)
        reference.step()
        norm = step(half, optimizer, turn, max_norm=max_norm)
        assert norm.item() == pytest.approx(want.item(), rel=0.05)
    tolerance = 0.02 if common.get("bf16") else 3e-3
    for ours, theirs in zip(half.parameters(), full.parameters(), strict=True):
        assert ours.dtype == half_dtype(common)
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance / 2)
    if optimizer.scaler is not None:
        assert optimizer.scaler.loss_scale == 16  # one window of three is over


@pytest.mark.parametrize("flat", [True, False])
def test_masters_keep_what_half_precision_drops(flat):
    """Updates of 1e-5 are below the spacing of fp16 around 1; a hundred of them are not."""
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    common = {"fp16_no_flatten_grads": not flat, "fp16_scale_window": 1000}
    cfg = config("sgd", common, lr=[1e-5])
    optimizer = FP16Optimizer.build_optimizer(cfg, [p])
    assert isinstance(optimizer.fp32_params, dict) == flat
    for _ in range(100):
        optimizer.zero_grad()
        optimizer.backward(p.float().sum())
        optimizer.step()
    masters = list(optimizer.fp32_params.values()) if flat else optimizer.fp32_params
    torch.testing.assert_close(masters[0].detach(), torch.full((3,), 0.999), rtol=1e-5, atol=0)
    assert torch.equal(p, masters[0].half()) and p[0] < 1


def test_flat_and_separate_masters_are_the_same_bits():
    models, optimizers = [], []
    for separate in (False, True):
        models.append(make_model(torch.float16))
        cfg = config("adam", {"fp16_no_flatten_grads": separate}, weight_decay=0.1)
        optimizers.append(FP16Optimizer.build_optimizer(cfg, models[-1].parameters()))
    for turn in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, turn)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)
    shapes = [[tuple(m.shape) for m in o.state_dict()["fp32_params"]] for o in optimizers]
    assert shapes == [[(43,)], [(5, 4), (5,), (3, 5), (3,)]]
    assert optimizers[0].state_dict()["state"][0]["exp_avg"].shape == (43,)


@pytest.mark.parametrize("separate", [True, False])
def test_a_parameter_without_gradient_counts_as_zero(separate):
    used, sometimes = (torch.nn.Parameter(torch.ones(2, dtype=torch.float16)) for _ in range(2))
    cfg = config("sgd", {"fp16_no_flatten_grads": separate}, lr=[0.5])
    optimizer = FP16Optimizer.build_optimizer(cfg, [used, sometimes])
    for loss in (lambda: used.sum() + 0.5 * sometimes.sum(), lambda: used.sum()):
        optimizer.zero_grad()
        optimizer.backward(loss())
        optimizer.step()
    assert torch.equal(used.detach(), torch.zeros(2).half())
    assert torch.equal(sometimes.detach(), torch.full((2,), 0.75).half())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("cls", "common"), [k for k in KINDS if "bf16" not in k[1]])
def test_overflow_skips_the_update_and_halves_the_scale(cls, common, device):
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float16, device=device))
    optimizer = cls.build_optimizer(config("adam", common), [p])

    def attempt(size):
        optimizer.zero_grad()
        optimizer.backward((p * size).sum())
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return norm

    with pytest.raises(OverflowError, match="setting loss scale to: 4.0"):
        attempt(60000.0)
    optimizer.zero_grad()
    assert p.grad is None and torch.equal(p.detach().cpu(), torch.ones(2).half())
    with pytest.raises(OverflowError, match="setting loss scale to: 2.0"):
        attempt(inf)
    assert attempt(3.0).item() == pytest.approx(3 * 2**0.5, rel=1e-4)
    assert p[0].item() < 1 and torch.isfinite(p).all()
    assert optimizer.state_dict()["state"][0]["step"] == 1
    with pytest.raises(FloatingPointError, match="Minimum loss scale"):
        for _ in range(30):
            with pytest.raises(OverflowError):
                attempt(nan)


def test_bf16_has_no_scaler_and_reports_infinite_norms():
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = FP16Optimizer.build_optimizer(config("adam", {"bf16": True}), [p])
    optimizer.zero_grad()
    optimizer.backward((p * inf).sum())
    assert optimizer.clip_grad_norm(1.0).item() == inf
    assert "loss_scale" not in optimizer.state_dict()


# ---------------------------------------------------------------- state


@pytest.mark.parametrize(("cls", "common"), KINDS)
def test_resume_is_bit_exact(cls, common, tmp_path):
    cfg = config("adam", common, weight_decay=0.1)
    dtype = half_dtype(common)

    def train(model, optimizer, turns):
        for turn in turns:
            size = 1e6 if turn in (1, 6) and optimizer.scaler is not None else 1.0
            try:
                step(model, optimizer, turn, size=size, max_norm=0.5)
            except OverflowError:
                optimizer.zero_grad()

    model = make_model(dtype)
    optimizer = cls.build_optimizer(cfg, model.parameters())
    train(model, optimizer, range(4))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    train(model, optimizer, range(4, 12))

    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = make_model(dtype)
    again.load_state_dict(weights)
    second = cls.build_optimizer(cfg, again.parameters())
    second.load_state_dict(state)
    train(again, second, range(4, 12))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = optimizer.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys() and ours.get("loss_scale") == theirs.get("loss_scale")
    if optimizer.scaler is not None:
        assert ours["loss_scaler"] == theirs["loss_scaler"]
        assert ours["loss_scaler"]["last_overflow_iter"] == 6
    for a, b in zip(ours["state"].values(), theirs["state"].values(), strict=True):
        assert a["step"] == b["step"] and torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
        assert a["exp_avg"].dtype == torch.float32


def test_state_of_the_original_has_no_masters():
    """Its keys only: the masters are rebuilt from the weights, the counters start anew."""
    model = make_model(torch.float16)
    optimizer = FP16Optimizer.build_optimizer(config(), model.parameters())
    step(model, optimizer, 0)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "loss_scale", "loss_scaler", "fp32_params"}
    # the original hands all of it to torch, which looks at its own two keys only
    flat_weights = torch.nn.Parameter(torch.zeros(43))
    torch.optim.AdamW([flat_weights]).load_state_dict(copy.deepcopy(state))
    theirs = {key: state[key] for key in ("state", "param_groups")} | {"loss_scale": 2.0}
    second = FP16Optimizer.build_optimizer(config(), model.parameters())
    second.load_state_dict(theirs, {"lr": 0.5})
    assert second.scaler.loss_scale == 2.0 and second.get_lr() == 0.5 and second.scaler.iter == 0
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).float()
    assert torch.equal(second.fp32_params[torch.device("cpu")].detach(), flat)


def test_masters_of_other_weights_are_not_taken(caplog):
    model = make_model(torch.float16)
    optimizer = FP16Optimizer.build_optimizer(config(), model.parameters())
    state = copy.deepcopy(optimizer.state_dict())
    edited = make_model(torch.float16)
    with torch.no_grad():
        edited[0].bias.add_(1.0)
    second = FP16Optimizer.build_optimizer(config(), edited.parameters())
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(state)
    assert "rebuilt from the model" in caplog.text
    flat = torch.cat([p.detach().flatten() for p in edited.parameters()]).float()
    assert torch.equal(second.fp32_params[torch.device("cpu")].detach(), flat)


def test_switching_precision_is_named():
    model = make_model(torch.float16)
    flat = FP16Optimizer.build_optimizer(config(), model.parameters())
    separate = FP16Optimizer.build_optimizer(
        config(common={"fp16_no_flatten_grads": True}), model.parameters()
    )
    step(model, flat, 0)
    with pytest.raises(CheckpointError, match="--fp16-no-flatten-grads"):
        separate.load_state_dict(flat.state_dict())


# ---------------------------------------------------------------- what fits what


def test_unsuitable_optimizers_are_refused():
    params = [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float16))]
    with pytest.raises(UnsupportedError, match=r"SGD cannot train without fp32 master weights"):
        MemoryEfficientFP16Optimizer.build_optimizer(config("sgd"), params)
    with pytest.raises(ConfigError, match="add --fp16-no-flatten-grads"):
        FP16Optimizer.build_optimizer(config("adafactor"), params)
    with pytest.raises(ConfigError, match="parameter groups"):
        FP16Optimizer.build_optimizer(config("adam"), [{"params": params}])
    FP16Optimizer.build_optimizer(config("adafactor", {"bf16": True}), params)


def test_interface_reaches_the_wrapped_optimizer():
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    for cls in (FP16Optimizer, MemoryEfficientFP16Optimizer):
        optimizer = cls.build_optimizer(config("adam"), [p])
        optimizer.set_lr(0.125)
        inner = optimizer.wrapped_optimizer
        assert inner.get_lr() == optimizer.get_lr() == 0.125
        assert optimizer.optimizer is inner.optimizer
        assert optimizer.optimizer_config == inner.optimizer_config
        assert optimizer.supports_flat_params
    assert not issubclass(FP16Optimizer, MemoryEfficientFP16Optimizer)


# ---------------------------------------------------------------- automatic mixed precision


def amp_step(model, optimizer, turn, size=1.0):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=optimizer.dtype):
        loss = loss_of(model, turn) * size
    optimizer.backward(loss)
    norm = optimizer.clip_grad_norm(1.0)
    optimizer.step()
    return norm


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_amp_resumes_bit_by_bit(dtype):
    cfg = config("adam", {"amp_dtype": dtype, "amp_init_scale": 16, "amp_scale_window": 3})
    model, again = make_model(), make_model()
    optimizer = AMPOptimizer.build_optimizer(cfg, model.parameters())
    assert optimizer.scaler.is_enabled() == (dtype == "fp16")
    for turn in range(4):
        amp_step(model, optimizer, turn)
    scale = optimizer.scaler.get_scale()
    assert scale == (32 if dtype == "fp16" else 1)
    again.load_state_dict(model.state_dict())
    second = AMPOptimizer.build_optimizer(cfg, again.parameters())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for turn in range(4, 8):
        amp_step(model, optimizer, turn)
        amp_step(again, second, turn)
    assert second.scaler.get_scale() == optimizer.scaler.get_scale()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32


def test_amp_skips_an_overflow_and_ends_at_the_minimum():
    common = {"amp_dtype": "fp16", "amp_init_scale": 4, "min_loss_scale": 1.0}
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = AMPOptimizer.build_optimizer(config("adam", common), model.parameters())
    assert not torch.isfinite(amp_step(model, optimizer, 0, size=inf))
    assert optimizer.scaler.get_scale() == 2 and optimizer.next_loss_scale == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(FloatingPointError, match=r"Minimum loss scale reached \(1.0\)"):
        amp_step(model, optimizer, 0, size=inf)


def test_amp_interface_and_dtype():
    optimizer = AMPOptimizer.build_optimizer(config("adam"), make_model().parameters())
    assert optimizer.dtype == torch.bfloat16
    optimizer.set_lr(0.125)
    assert optimizer.fp32_optimizer.get_lr() == optimizer.get_lr() == 0.125
    assert optimizer.optimizer_config["eps"] == 1e-8 and optimizer.supports_flat_params
    assert amp_dtype(config("sgd", {"amp_dtype": "fp16"}), torch.device("cpu")) == torch.float16
    assert amp_dtype(config("sgd"), torch.device("mps")) == torch.float16
