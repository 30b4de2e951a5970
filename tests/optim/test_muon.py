"""Muon: its rule in numpy, torch's own, and which parameters are whose."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.errors import ConfigError
from fairseq.optim import build_optimizer
from fairseq.optim import muon as module
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from fairseq.optim.muon import FairseqMuonConfig, Muon, orthogonalized

IMPLEMENTATIONS = ["reference", *(["torch"] if module.torch_kernel() else [])]


def config(name="muon", **values):
    cfg = FairseqMuonConfig() if name == "muon" else FairseqAdamConfig()
    cfg._name, cfg.lr = name, [0.02]
    for key, value in values.items():
        assert hasattr(cfg, key), key
        setattr(cfg, key, value)
    return cfg


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embed_tokens.weight": (9, 6),
        "layers.0.fc1.weight": (8, 6),
        "layers.0.fc1.bias": (8,),
        "layers.0.fc2.weight": (6, 8),
        "lm_head.dense.weight": (6, 6),
    }
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def wave(p, number):
    """Return the gradient of turn ``number``."""
    return torch.sin(torch.arange(1.0, p.numel() + 1) * (number + 1)).view(p.shape)


def turn(optimizer, params, number):
    for p in params:
        p.grad = wave(p, number)
    optimizer.step()


def numpy_orthogonalized(x, steps):
    """The iteration on singular values: x goes to 3.4445x - 4.775x^3 + 2.0315x^5, five times."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ v


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    decay=st.sampled_from([0.0, 0.1]),
    momentum=st.sampled_from([0.0, 0.9, 0.95]),
    adjust=st.sampled_from(["original", "match_rms_adamw"]),
    steps=st.integers(1, 5),
)
def test_rule_in_fp64(rows, columns, decay, momentum, adjust, steps):
    rng = np.random.default_rng(rows * 100 + columns)
    want, buffer, lr = rng.standard_normal((rows, columns)), 0.0, 0.05
    p = torch.nn.Parameter(torch.tensor(want))
    options = {"momentum": momentum, "ns_steps": steps, "adjust_lr": adjust}
    group = [{"params": [p], "muon": True}]
    optimizer = Muon(group, lr=lr, weight_decay=decay, dtype=torch.float64, **options)
    for _ in range(3):
        g = rng.standard_normal((rows, columns))
        p.grad = torch.tensor(g)
        optimizer.step()
        buffer = momentum * buffer + (1 - momentum) * g
        direction = numpy_orthogonalized(momentum * buffer + (1 - momentum) * g, steps)
        match = adjust == "match_rms_adamw"
        factor = 0.2 * max(rows, columns) ** 0.5 if match else max(1, rows / columns) ** 0.5
        want = want * (1 - lr * decay) - lr * factor * direction
    np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-12, atol=1e-12)


def test_singular_values_go_to_about_one():
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(x, 5, torch.float64))
    assert values.min() > 0.65 and values.max() < 1.25
    assert orthogonalized(torch.zeros(3, 2), 5).eq(0).all()


@pytest.mark.skipif(module.torch_kernel() is None, reason="torch.optim.Muon is not in this torch")
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_equals_muon_of_torch_and_adam_of_ours(impl, adjust):
    ours, theirs = tensors(), tensors()
    optimizer = build_optimizer(
        config(muon_impl=impl, muon_adjust_lr=adjust, weight_decay=0.1), [ours]
    )
    names = ["layers.0.fc1.weight", "layers.0.fc2.weight"]
    matrices = [theirs.pop(name) for name in names]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust)
    adam = build_optimizer(config("adam", weight_decay=0.1), [theirs])
    for number in range(4):
        turn(optimizer, ours.values(), number)
        turn(muon, matrices, number)
        turn(adam, theirs.values(), number)
    theirs |= dict(zip(names, matrices, strict=True))
    for name, p in ours.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-6, atol=1e-6, msg=name)


def test_whose_parameters_are_whose():
    params = tensors()
    optimizer = build_optimizer(config(weight_decay_mode="matrices", weight_decay=0.1), [params])
    names = {id(p): name for name, p in params.items()}
    found = [
        (g["muon"], g["weight_decay"], [names[id(p)] for p in g["params"]])
        for g in optimizer.param_groups
    ]
    assert found == [
        (False, 0.1, ["embed_tokens.weight", "lm_head.dense.weight"]),
        (False, 0.0, ["layers.0.fc1.bias"]),
        (True, 0.1, ["layers.0.fc1.weight", "layers.0.fc2.weight"]),
    ]
    only = build_optimizer(config(muon_params="*.fc1.weight"), [params]).param_groups
    assert [len(g["params"]) for g in only if g["muon"]] == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"muon_params": "blocks."}, "--muon-params: 'blocks.' is in the name of no parameter"),
        ({"muon_params": "bias"}, "--muon-params"),  # no matrix
        ({"muon_momentum": 1.0}, "--muon-momentum"),
        ({"muon_steps": 0}, "--muon-steps"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(config(**values), [tensors()])


def test_names_are_needed(monkeypatch):
    with pytest.raises(ConfigError, match="dicts of name and tensor"):
        build_optimizer(config(), tensors().values())
    monkeypatch.setattr(module, "torch_kernel", lambda: None)
    with pytest.raises(ConfigError, match="this torch has no Muon"):
        build_optimizer(config(muon_impl="torch"), [tensors()])
    assert build_optimizer(config(), [tensors()]).optimizer.muon_kernel is None


def wrapped(kind, common, params):
    cfg = SimpleNamespace(
        optimizer=config(weight_decay=0.1),
        common=SimpleNamespace(fp16_init_scale=8, min_loss_scale=1e-4, **common),
        optimization=SimpleNamespace(update_freq=[1], param_groups="embed=lr*0.5,fc2=wd0"),
        distributed_training=SimpleNamespace(distributed_world_size=1),
    )
    return kind.build_optimizer(cfg, [params])


KINDS = [
    (FP16Optimizer, torch.float16, {}),  # not flat: shapes are needed
    (FP16Optimizer, torch.bfloat16, {"bf16": True}),
    (MemoryEfficientFP16Optimizer, torch.float16, {}),
    (MemoryEfficientFP16Optimizer, torch.bfloat16, {"bf16": True}),
    (AMPOptimizer, torch.float32, {"amp": True}),
]


@pytest.mark.parametrize(("kind", "dtype", "common"), KINDS)
def test_every_precision_computes_in_fp32_and_resumes(kind, dtype, common):
    """Beside fp32 weights that start from the same numbers and get the same gradients."""

    def update(optimizer, params, number):
        optimizer.zero_grad()
        optimizer.backward(sum((p * wave(p, number).to(p)).sum() for p in params.values()))
        optimizer.multiply_grads(0.5)
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return float(norm)

    params = tensors(dtype)
    plain = {name: torch.nn.Parameter(p.detach().float()) for name, p in params.items()}
    optimizer = wrapped(kind, common, params)
    reference = build_optimizer(
        config(weight_decay=0.1), [plain], param_groups="embed=lr*0.5,fc2=wd0"
    )
    assert [g.get("lr_scale") for g in optimizer.param_groups] == [0.5, None, None, None]
    for number in range(3):
        norms = [update(o, p, number) for o, p in ((optimizer, params), (reference, plain))]
        assert norms[0] == pytest.approx(norms[1], rel=5e-3)
    for name, p in params.items():
        torch.testing.assert_close(p.float(), plain[name].detach(), rtol=0.02, atol=0.01, msg=name)

    again = {name: torch.nn.Parameter(p.detach().clone()) for name, p in params.items()}
    second = wrapped(kind, common, again)
    second.load_state_dict(optimizer.state_dict())
    for number in range(3, 5):
        update(optimizer, params, number)
        update(second, again, number)
    assert all(torch.equal(params[name], again[name]) for name in params)
