"""Adam: the rule with eps before bias correction, on every kernel; state of every origin."""

from __future__ import annotations

import argparse
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.errors import CheckpointError, ConfigError, UnsupportedError
from fairseq.optim import build_optimizer, lr_formulas
from fairseq.optim.adam import Adam, FairseqAdam, FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def config(**values):
    cfg = FairseqAdamConfig()
    cfg._name, cfg.lr = "adam", [0.01]
    for name, value in values.items():
        setattr(cfg, name, value)
    return cfg


def adam(params, **values):
    return build_optimizer(config(**values), params)


def parameter(values, device="cpu", dtype=torch.float32):
    return torch.nn.Parameter(torch.as_tensor(values, dtype=dtype, device=device).clone())


def expected(p, gradients, lr, beta1, beta2, eps, decay):
    """The rule, in float64 numpy, written from its definition."""
    p, m, v = np.asarray(p, np.float64), 0.0, 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        p = p * (1 - lr * decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + eps)
    return p


# magnitudes around eps = 1e-6 are where the place of eps decides
numbers = st.builds(
    lambda sign, size: sign * 10.0**size, st.sampled_from([-1, 1]), st.floats(-8, 1)
) | st.just(0.0)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@settings(max_examples=60, deadline=None)
@given(
    gradients=st.integers(1, 6).flatmap(
        lambda steps: st.lists(
            st.lists(numbers, min_size=5, max_size=5), min_size=steps, max_size=steps
        )
    ),
    decay=st.sampled_from([0.0, 0.1]),
    beta2=st.sampled_from([0.98, 0.999]),
)
def test_rule(impl, gradients, decay, beta2):
    for device in DEVICES:
        start = [0.5, -0.25, 0.0, 1.0, -2.0]
        p = parameter(start, device)
        optimizer = adam(
            [p], adam_impl=impl, adam_betas=f"(0.9, {beta2})", adam_eps=1e-6, weight_decay=decay
        )
        for g in gradients:
            p.grad = torch.tensor(g, device=device)
            optimizer.step()
        want = expected(start, np.float32(gradients), 0.01, 0.9, beta2, 1e-6, decay)
        np.testing.assert_allclose(p.detach().cpu().numpy(), want, rtol=2e-6, atol=3e-7)


def test_rule_is_not_that_of_torch():
    ours, theirs = parameter([1.0]), parameter([1.0])
    optimizer = adam([ours], adam_betas="(0.9, 0.98)", adam_eps=1e-6)
    other = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    for p, o in ((ours, optimizer), (theirs, other)):
        p.grad = torch.tensor([1e-6])
        o.step()
    # first update: lr * 1 / (1 + 1 / sqrt(0.02)) against lr / 2
    assert 1 - ours.item() == pytest.approx(0.01 / (1 + 0.02**-0.5), rel=1e-4)
    assert 1 - theirs.item() == pytest.approx(0.005, rel=1e-4)


def test_decay_of_a_row_without_gradient_equals_the_original(shared):
    """Position row 0 is never used, so 25 updates of the original only decayed it."""
    key = "encoder.sentence_encoder.embed_positions.weight"
    folder = shared / "compat/checkpoints"
    with torch.serialization.safe_globals([argparse.Namespace]):
        before = torch.load(folder / "fb_init/model.pt", weights_only=True)["model"][key][0]
        after = torch.load(folder / "fb_resume25/checkpoint_last.pt", weights_only=True)["model"]
    for impl in ("fused", "reference"):
        p = parameter(before)
        optimizer = adam([p], adam_impl=impl, adam_eps=1e-6, weight_decay=0.01)
        for n in range(25):
            optimizer.set_lr(lr_formulas.polynomial_decay(n, 20, 50, 0.002))
            p.grad = torch.zeros_like(p)
            optimizer.step()
        assert not torch.equal(after[key][0], before)
        rtol = 0 if impl == "reference" else 1e-6  # the same order of operations: the same bits
        torch.testing.assert_close(p.detach(), after[key][0], rtol=rtol, atol=0)


@pytest.fixture(scope="module")
def original(shared):
    """A full checkpoint of the original after update 25: (weights, optimizer state)."""
    path = shared / "compat/checkpoints/fb_resume25/checkpoint_last.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load(path, weights_only=True)
    weights = [w for k, w in saved["model"].items() if not k.endswith("version")]
    state = saved["last_optimizer_state"]
    # the state is in the order of parameters(): the tied output weight comes up once
    weights = [w for w in weights if w is not saved["model"].get("encoder.lm_head.weight")]
    return weights, state


def test_state_of_the_original(original):
    weights, state = original
    assert [tuple(w.shape) for w in weights] == [
        tuple(state["state"][i]["exp_avg"].shape) for i in range(len(weights))
    ]
    results = []
    for impl in ("fused", "reference"):
        params = [parameter(w) for w in weights]
        optimizer = adam(params, adam_impl=impl, lr=[5.0])
        optimizer.load_state_dict(state)
        # the hyperparameters of the checkpoint win
        assert optimizer.get_lr() == state["param_groups"][0]["lr"]
        saved = optimizer.state_dict()
        assert saved["param_groups"] == state["param_groups"]
        assert saved["state"].keys() == state["state"].keys()
        for ours, theirs in zip(saved["state"].values(), state["state"].values(), strict=True):
            assert ours.keys() == theirs.keys() and ours["step"] == 25
            assert type(ours["step"]) is int
            assert torch.equal(ours["exp_avg"], theirs["exp_avg"])
            assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])
        generator = torch.Generator().manual_seed(1)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator) * 1e-3
        optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in params]))
        assert optimizer.state_dict()["state"][0]["step"] == 26
    torch.testing.assert_close(*results, rtol=1e-6, atol=2e-7)


def train(optimizer, params, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.device)
        optimizer.step()


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_round_trip_continues_bit_by_bit(impl, tmp_path):
    shapes = [(7, 3), (5,), (), (2, 3, 4)]
    whole = [parameter(torch.ones(s)) for s in shapes]
    optimizer = adam(whole, adam_impl=impl, weight_decay=0.1)
    train(optimizer, whole, 0, 3)
    torch.save(([p.detach() for p in whole], optimizer.state_dict()), tmp_path / "state.pt")
    train(optimizer, whole, 1, 3)

    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = [parameter(w) for w in weights]
    second = adam(again, adam_impl=impl)
    second.load_state_dict(state)
    train(second, again, 1, 3)
    assert all(map(torch.equal, whole, again))


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_each_parameter_counts_its_own_updates(impl):
    always, sometimes = parameter([1.0]), parameter([1.0])
    optimizer = adam([always, sometimes], adam_impl=impl, adam_eps=1e-2)
    for turn in range(4):
        always.grad = torch.tensor([0.01])
        sometimes.grad = torch.tensor([0.01]) if turn % 2 else None
        optimizer.step()
    for p, updates in ((always, 4), (sometimes, 2)):
        want = expected([1.0], [[0.01]] * updates, 0.01, 0.9, 0.999, 1e-2, 0)
        assert p.item() == pytest.approx(want[0], rel=1e-6)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("tensor", [False, True])
def test_step_divides_gradients_by_the_scale(impl, tensor):
    p = parameter([1.0, -1.0])
    optimizer = adam([p], adam_impl=impl, adam_eps=1e-3)
    for _ in range(2):
        p.grad = torch.tensor([0.08, 0.4])
        optimizer.step(scale=torch.tensor(8.0) if tensor else 8.0)
    want = expected([1.0, -1.0], [[0.01, 0.05]] * 2, 0.01, 0.9, 0.999, 1e-3, 0)
    np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-6)


def test_memory_layout_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 4, 3, generator=generator)
    want = expected(start.numpy(), [gradient.numpy()] * 2, 0.01, 0.9, 0.999, 1e-8, 0)
    for p_t, g_t in ((False, True), (True, False), (True, True)):
        p = torch.nn.Parameter(start.t().contiguous().t() if p_t else start.clone())
        optimizer = adam([p], adam_impl="fused")
        for _ in range(2):
            p.grad = gradient.t().contiguous().t() if g_t else gradient.clone()
            optimizer.step()
            # as after torch.load of a checkpoint: means contiguous
            state = optimizer.state_dict()
            for row in state["state"].values():
                row.update({k: row[k].contiguous() for k in ("exp_avg", "exp_avg_sq")})
            optimizer.load_state_dict(state)
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-5)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_parameters_have_fp32_state(impl, dtype):
    p = parameter([1.0, 2.0], dtype=dtype)
    optimizer = adam([p], adam_impl=impl)
    p.grad = torch.tensor([1e-4, 1.0], dtype=dtype)
    optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert state["exp_avg_sq"].dtype == torch.float32
    assert state["exp_avg_sq"][0] == pytest.approx(1e-11, rel=1e-2)  # zero in half precision
    want = expected([1.0, 2.0], [p.grad.double().numpy()], 0.01, 0.9, 0.999, 1e-8, 0)
    torch.testing.assert_close(p.detach(), torch.tensor(want).to(dtype), rtol=0, atol=0)


def test_overrides_win_over_the_checkpoint():
    p = parameter([1.0])
    optimizer = adam([p], lr=[0.3])
    state = optimizer.state_dict()
    optimizer.load_state_dict(state, {"lr": 0.7, "betas": [0.8, 0.9]})
    assert optimizer.get_lr() == 0.7 and optimizer.param_groups[0]["betas"] == [0.8, 0.9]
    p.grad = torch.ones(1)
    optimizer.step()
    with pytest.raises(ConfigError, match=r"no setting 'weight_deca' \(did you mean"):
        optimizer.load_state_dict(state, {"weight_deca": 0.7})


def test_states_of_other_parameters_are_refused():
    flat, shaped = [parameter(torch.ones(6))], [parameter(torch.ones(2, 2)), parameter([1.0, 1.0])]
    other = [parameter(torch.ones(2, 3)), parameter([1.0, 1.0])]
    optimizers = [adam(params) for params in (flat, shaped, other)]
    for optimizer, params in zip(optimizers, (flat, shaped, other), strict=True):
        train(optimizer, params, 0, 1)
    with pytest.raises(CheckpointError, match=r"groups of \[1\] parameters.*--reset-optimizer"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
    with pytest.raises(CheckpointError, match=r"shape \(2, 3\), the parameter \(2, 2\)"):
        optimizers[1].load_state_dict(optimizers[2].state_dict())


def test_states_of_apex_and_torch_load():
    p = parameter([1.0, 2.0])
    theirs = torch.optim.AdamW([p], lr=0.01)
    train(theirs, [p], 0, 2)
    state = theirs.state_dict()
    apex = {
        "state": {0: {k: state["state"][0][k] for k in ("exp_avg", "exp_avg_sq")}},
        "param_groups": [
            {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}
            | {"bias_correction": True, "step": 2, "params": [0]}
        ],
    }
    for origin in (state, apex):
        q = parameter([1.0, 2.0])
        optimizer = adam([q])
        optimizer.load_state_dict(origin)
        assert optimizer.state_dict()["state"][0]["step"] == 2
        assert "step" not in optimizer.param_groups[0]
        train(optimizer, [q], 1, 1)
        assert optimizer.state_dict()["state"][0]["step"] == 3


def test_matrices_alone_decay_on_request():
    matrix, bias = parameter(torch.ones(2, 2)), parameter([1.0])
    optimizer = adam([bias, matrix], weight_decay=0.5, weight_decay_mode="matrices")
    for p in (matrix, bias):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(matrix.detach(), torch.full((2, 2), 1 - 0.01 * 0.5)) and bias.item() == 1
    optimizer.set_lr(0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_matrices_mode_under_fp16_keeps_shapes():
    cfg = types.SimpleNamespace(
        optimizer=config(weight_decay_mode="matrices", weight_decay=0.5),
        common=types.SimpleNamespace(fp16_scale_window=1),
    )
    matrix, bias = (parameter(torch.ones(s), dtype=torch.float16) for s in ((2, 2), (1,)))
    optimizer = FP16Optimizer.build_optimizer(cfg, [matrix, bias])
    optimizer.backward((matrix.sum() + bias.sum()) * 0)
    optimizer.step()
    masters = optimizer.fp32_params
    assert masters[0].unique().item() == pytest.approx(0.995) and masters[1].item() == 1


def test_choice_of_implementation():
    p = [parameter([1.0])]
    assert adam(p).optimizer.kernel.__name__ == "fused_kernel"
    assert adam(p, use_old_adam=True).optimizer.kernel is None
    assert adam(p, adam_impl="reference").optimizer.kernel is None
    meta = [torch.nn.Parameter(torch.zeros(1, device="meta"))]
    assert adam(meta).optimizer.kernel is None
    with pytest.raises(ConfigError, match="does not run on meta"):
        adam(meta, adam_impl="fused")
    with pytest.raises(ConfigError, match="CUDA only"):
        adam(p, adam_impl="apex")
    with pytest.raises(UnsupportedError, match="fp16-adam-stats"):
        adam(p, fp16_adam_stats=True)


def test_apex_is_probed(monkeypatch):
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(ConfigError, match="needs NVIDIA apex"):
        Adam([parameter([1.0])], impl="apex")


def test_apex_gets_the_corrected_eps(monkeypatch):
    """A stand-in with apex's argument order and its rule (eps after bias correction)."""

    def multi_tensor_adam(overflow, lists, lr, beta1, beta2, eps, step, adamw, correct, decay):
        assert adamw and correct and overflow.dtype == torch.int
        for g, p, m, v in zip(*lists, strict=True):
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            v.mul_(beta2).add_(g * g, alpha=1 - beta2)
            root = (v / (1 - beta2**step)).sqrt() + eps
            p.sub_(lr * (m / (1 - beta1**step) / root + decay * p))

    extension, package, apply = (types.ModuleType(n) for n in ("amp_C", "apex", "apply"))
    extension.multi_tensor_adam = multi_tensor_adam
    apply.multi_tensor_applier = lambda op, buffer, lists, *args: op(buffer, lists, *args)
    monkeypatch.setitem(sys.modules, "amp_C", extension)
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.multi_tensor_apply", apply)
    p = parameter([1.0, -1.0])
    optimizer = Adam([p], 0.01, (0.9, 0.98), 1e-3, 0.1, impl="apex")
    for _ in range(3):
        p.grad = torch.tensor([2e-3, 4.0])
        optimizer.step(scale=2.0)
    want = expected([1.0, -1.0], [[1e-3, 2.0]] * 3, 0.01, 0.9, 0.98, 1e-3, 0.1)
    np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("text", ["(0.9, 0.98)", "[0.9,0.98]", (0.9, 0.98), [0.9, 0.98]])
def test_betas_are_read_from_text_and_lists(text):
    assert adam([parameter([1.0])], adam_betas=text).param_groups[0]["betas"] == (0.9, 0.98)


@pytest.mark.parametrize("text", ["0.9", "(0.9, 0.98, 0.1)", "('a', 'b')", "f(1)", None])
def test_bad_betas_are_named(text):
    with pytest.raises(ConfigError, match=r"adam-betas|plain value"):
        adam([parameter([1.0])], adam_betas=text)


def test_class_name_and_base():
    optimizer = adam([parameter([1.0])])
    assert type(optimizer) is FairseqAdam
    assert optimizer.supports_flat_params and optimizer.supports_memory_efficient_fp16
    assert optimizer.supports_step_with_scale and not optimizer.supports_groups
