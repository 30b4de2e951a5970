"""The optimizer interface, its registry, and every update rule but Adam's."""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq import optim
from fairseq.catalog import OPTIMIZERS
from fairseq.config.refused import REFUSED_WORDS
from fairseq.errors import CheckpointError, ConfigError, RegistryError, UnsupportedError
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY, OPTIMIZER_REGISTRY, build_optimizer
from fairseq.optim.base import FairseqOptimizer, LegacyFairseqOptimizer

CLASS_NAMES = {
    "adadelta": "Adadelta",
    "adafactor": "FairseqAdafactor",
    "adagrad": "Adagrad",
    "adam": "FairseqAdam",
    "adamax": "FairseqAdamax",
    "muon": "FairseqMuon",
    "nag": "FairseqNAG",
    "sgd": "SGD",
}


def make(name, params, lr=0.1, **values):
    cfg = OPTIMIZER_DATACLASS_REGISTRY[name]()
    cfg._name, cfg.lr = name, [lr]
    for key, value in values.items():
        assert hasattr(cfg, key), key
        setattr(cfg, key, value)
    return build_optimizer(cfg, params)


def parameter(values, dtype=torch.float32):
    return torch.nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())


def run(optimizer, p, gradients, rates=None):
    for turn, g in enumerate(gradients):
        if rates:
            optimizer.set_lr(rates[turn])
        p.grad = torch.as_tensor(np.float32(g)).to(p.dtype)
        optimizer.step()
    return p.detach().numpy()


floats = st.floats(-4, 4, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)


def arrays(*shape):
    size = int(np.prod(shape))
    return st.lists(floats, min_size=size, max_size=size).map(
        lambda x: np.array(x, np.float64).reshape(shape)
    )


sequences = st.lists(arrays(4), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(
    gradients=sequences, momentum=st.sampled_from([0.0, 0.9, 0.99]), decay=st.sampled_from([0, 0.1])
)
def test_nag(gradients, momentum, decay):
    rates = [0.1, 0.05, 0.2, 0.0, 0.1]
    p = parameter([1.0, -1.0, 0.5, 0.0])
    got = run(make("nag", [p], momentum=momentum, weight_decay=decay), p, gradients, rates)
    want, velocity, previous = np.array([1.0, -1.0, 0.5, 0.0]), np.zeros(4), 0.1
    for g, lr in zip(gradients, rates, strict=False):
        # momentum of the velocity in units of the current rate, looked ahead once
        velocity = momentum * velocity * (lr / previous if previous > 0 else lr) - lr * g
        want = want * (1 - lr * decay) + momentum * velocity - lr * g
        previous = lr
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(gradients=sequences, correct=st.booleans(), decay=st.sampled_from([0, 0.1]))
def test_adamax(gradients, correct, decay):
    p = parameter([1.0, -1.0, 0.5, 0.0])
    optimizer = make(
        "adamax", [p], adamax_betas="(0.8, 0.9)", weight_decay=decay, no_bias_correction=not correct
    )
    got = run(optimizer, p, gradients)
    want, m, u = np.array([1.0, -1.0, 0.5, 0.0]), np.zeros(4), np.zeros(4)
    for t, g in enumerate(gradients, start=1):
        m = 0.8 * m + 0.2 * g
        u = np.maximum(0.9 * u, abs(g))
        want = want * (1 - 0.1 * decay)
        want = want - 0.1 / (1 - 0.8**t if correct else 1) * m / (u + 1e-8)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def rms(x):
    return np.sqrt(np.mean(x * x))


def adafactor(p, gradients, lr, clip, exponent, beta1, decay, scaled):
    """Algorithms 4 and 5 of the paper in float64, v reconstructed as an outer product."""
    row = col = v = m = 0.0
    for t, g in enumerate(gradients, start=1):
        beta2 = 1 - t**exponent
        square = g * g + 1e-30
        if g.ndim > 1:
            row = beta2 * row + (1 - beta2) * square.sum(-1)
            col = beta2 * col + (1 - beta2) * square.sum(-2)
            v = row[..., :, None] * col[..., None, :] / row.sum(-1)[..., None, None]
        else:
            v = beta2 * v + (1 - beta2) * square
        update = g / np.sqrt(v)
        update = update / max(1.0, rms(update) / clip)
        rate = lr * max(1e-3, rms(p)) if scaled else lr
        update = rate * update
        if beta1 is not None:
            m = update = beta1 * m + (1 - beta1) * update
        p = p - rate * decay * p - update
    return p


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    shape=st.sampled_from([(4,), (3, 2), (2, 3, 2)]),
    beta1=st.sampled_from([None, 0.9]),
    decay=st.sampled_from([0.0, 0.1]),
    scaled=st.booleans(),
)
def test_adafactor(data, shape, beta1, decay, scaled):
    gradients = data.draw(st.lists(arrays(*shape), min_size=1, max_size=4))
    gradients = [g + 0.01 for g in gradients]  # rows of zeros would divide rounding by rounding
    start = np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    p = parameter(start)
    optimizer = make(
        "adafactor",
        [p],
        beta1=beta1,
        weight_decay=decay,
        scale_parameter=scaled,
        clip_threshold=0.5,
    )
    got = run(optimizer, p, gradients)
    want = adafactor(start, gradients, 0.1, 0.5, -0.8, beta1, decay, scaled)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_adafactor_keeps_rows_and_columns_only():
    p = parameter(torch.ones(5, 3))
    optimizer = make("adafactor", [p])
    run(optimizer, p, [np.ones((5, 3))])
    state = optimizer.state_dict()["state"][0]
    shapes = {k: tuple(v.shape) for k, v in state.items() if k != "step"}
    assert shapes == {"exp_avg_sq_row": (5,), "exp_avg_sq_col": (3,)}
    assert not optimizer.supports_flat_params


def test_adafactor_moves_a_parameter_that_is_zero():
    p = parameter([0.0, 0.0])
    run(make("adafactor", [p], scale_parameter=True), p, [[1.0, -1.0]])
    torch.testing.assert_close(p.detach(), torch.tensor([-1e-4, 1e-4]))


@pytest.mark.parametrize("flag", ["relative_step", "warmup_init"])
def test_adafactor_refuses_its_own_rate(flag):
    with pytest.raises(ConfigError, match="contradicts --lr"):
        make("adafactor", [parameter([1.0])], **{flag: True})


@pytest.mark.parametrize(
    ("name", "values", "reference", "kwargs"),
    [
        ("sgd", {"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
        ("adagrad", {}, torch.optim.Adagrad, {}),
        ("adadelta", {"adadelta_rho": 0.8}, torch.optim.Adadelta, {"rho": 0.8, "eps": 1e-6}),
    ],
)
def test_torch_does_the_rest(name, values, reference, kwargs):
    ours, theirs = parameter([1.0, 2.0]), parameter([1.0, 2.0])
    optimizer = make(name, [ours], weight_decay=0.1, **values)
    other = reference([theirs], lr=0.1, weight_decay=0.1, **kwargs)
    for _ in range(3):
        for p, o in ((ours, optimizer), (theirs, other)):
            p.grad = p.detach() * 0.5
            o.step()
    assert torch.equal(ours, theirs) and not torch.equal(ours, parameter([1.0, 2.0]))


def named(params):
    return [{f"layers.{number}.weight": p for number, p in enumerate(params)}]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_row_round_trips(name):
    shapes, generator = [(3, 2), (4,)], torch.Generator().manual_seed(0)

    def train(params, optimizer, turns):
        for turn in turns:
            for p in params:
                p.grad = torch.sin(torch.arange(1.0, p.numel() + 1) * (turn + 1)).view(p.shape)
            optimizer.step()

    whole = [parameter(torch.randn(s, generator=generator)) for s in shapes]
    optimizer = make(name, named(whole), weight_decay=0.01)
    assert type(optimizer).__name__ == CLASS_NAMES[name]
    train(whole, optimizer, range(3))
    again = [parameter(p.detach()) for p in whole]
    state = optimizer.state_dict()
    second = make(name, named(again), lr=0.7)
    second.load_state_dict(state)
    saved = state["state"].get(0, {})  # sgd without momentum has none
    before = {k: v.clone() for k, v in saved.items() if torch.is_tensor(v)}
    train(again, second, range(3, 6))
    # the state that was loaded still belongs to the first optimizer
    assert all(torch.equal(saved[k], v) for k, v in before.items())
    train(whole, optimizer, range(3, 6))
    assert all(map(torch.equal, whole, again))


@pytest.mark.parametrize("name", ["nag", "adamax", "adafactor"])
def test_scale_and_half_precision(name):
    fp32, fp16 = parameter([1.0, -0.5]), parameter([1.0, -0.5], torch.float16)
    for p in (fp32, fp16):
        optimizer = make(name, [p])
        for _ in range(3):
            p.grad = torch.tensor([0.5, -2.0], dtype=p.dtype) * 1024
            optimizer.step(scale=1024.0)
        assert optimizer.supports_memory_efficient_fp16
        tensors = [v for v in optimizer.state_dict()["state"][0].values() if torch.is_tensor(v)]
        assert tensors and all(v.dtype == torch.float32 for v in tensors)
    assert fp16.dtype == torch.float16
    torch.testing.assert_close(fp16.float(), fp32, rtol=5e-3, atol=1e-3)


def test_scale_for_an_optimizer_of_torch():
    p = parameter([1.0])
    optimizer = make("sgd", [p])
    for scale in (4.0, torch.tensor(4.0)):
        p.grad = torch.tensor([2.0])
        optimizer.step(scale=scale)
    assert p.item() == pytest.approx(1 - 2 * 0.1 * 0.5)


def test_closure_is_called_with_gradients():
    p = parameter([2.0])
    optimizer = make("nag", [p], momentum=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.optimizer.step(closure).item() == 4.0
    assert p.item() == pytest.approx(2 - 0.1 * 4)


def test_what_counts_as_parameters():
    on, off, other = parameter([1.0]), parameter([2.0]), parameter([3.0])
    off.requires_grad_(False)
    assert list(make("sgd", [on, off, other]).params) == [on, other]
    by_name = [{"a": on, "b": off}, {"c": other}]
    assert list(make("sgd", by_name).params) == [on, other]
    assert list(make("sgd", [{"params": on}]).params) == [on]  # a name, no group
    groups = make(
        "sgd", [{"params": [on, off], "weight_decay": 0.5}, {"params": [other]}]
    ).param_groups
    assert [g["params"] for g in groups] == [[on], [other]]
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    for empty in ([], [off], [{"a": off}], [{"params": [off]}]):
        with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
            make("sgd", empty)


def test_namespace_and_name_build():
    args = argparse.Namespace(optimizer="nag", lr=[0.3], momentum=0.5, unrelated=1)
    optimizer = build_optimizer(args, [parameter([1.0])])
    assert (optimizer.get_lr(), optimizer.param_groups[0]["momentum"]) == (0.3, 0.5)
    with pytest.raises(ConfigError, match="--lr has no value"):
        build_optimizer("sgd", [parameter([1.0])])


def test_unknown_missing_and_refused_names():
    p = [parameter([1.0])]
    with pytest.raises(RegistryError, match="did you mean 'adam'"):
        build_optimizer(argparse.Namespace(optimizer="adan"), p)
    with pytest.raises(RegistryError, match="optimizer is required!"):
        build_optimizer(argparse.Namespace(), p)
    for name in ("lamb", "cpu_adam", "composite"):
        with pytest.raises(UnsupportedError, match=REFUSED_WORDS[name][:20]):
            build_optimizer(argparse.Namespace(optimizer=name), p)


def test_registry():
    assert set(OPTIMIZER_REGISTRY) >= set(CLASS_NAMES)
    for name in OPTIMIZERS:
        assert issubclass(OPTIMIZER_REGISTRY[name], FairseqOptimizer)
    # a row that registers itself once more is the same row
    assert (
        optim.register_optimizer("sgd", dataclass=OPTIMIZER_DATACLASS_REGISTRY["sgd"])(
            OPTIMIZER_REGISTRY["sgd"]
        )
        is OPTIMIZER_REGISTRY["sgd"]
    )


def test_wd_is_an_alias_except_for_adam_muon_and_nag():
    aliases = {
        name: OPTIMIZER_DATACLASS_REGISTRY[name]
        .__dataclass_fields__["weight_decay"]
        .metadata.get("argparse_alias")
        for name in OPTIMIZERS
    }
    assert {name for name, alias in aliases.items() if alias is None} == {"adam", "muon", "nag"}
    assert set(aliases.values()) == {None, "--wd"}


def test_importing_the_package_imports_no_optimizer():
    code = (
        "import sys, fairseq.optim, fairseq.optim.lr_scheduler\n"
        "names = ('adam', 'adafactor', 'optimizers', 'fp16_optimizer', 'lr_schedules')\n"
        "assert not [n for n in names if 'fairseq.optim.' + n in sys.modules]\n"
        "from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer, AMPOptimizer\n"
        "assert 'AMPOptimizer' in dir(fairseq.optim)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        optim.Nonsense  # noqa: B018


def test_gradients_are_multiplied_and_clipped():
    a, b, unused = parameter([3.0]), parameter([4.0]), parameter([9.0])
    optimizer = make("sgd", [a, b, unused])
    a.grad, b.grad = torch.tensor([6.0]), torch.tensor([8.0])
    optimizer.multiply_grads(0.5)
    optimizer.multiply_grads(torch.tensor(2.0))
    assert optimizer.clip_grad_norm(0).item() == 10.0
    assert a.grad.item() == 6.0
    assert optimizer.clip_grad_norm(20).item() == 10.0
    assert a.grad.item() == 6.0
    assert optimizer.clip_grad_norm(5).item() == 10.0
    assert a.grad.item() == pytest.approx(6.0 * 5 / (10 + 1e-6), rel=1e-7)
    assert optimizer.clip_grad_norm(0, lambda norm: norm * 3).item() == pytest.approx(15, rel=1e-6)
    a.grad, b.grad = torch.tensor([3e-6]), torch.tensor([4e-6])
    optimizer.clip_grad_norm(1e-6)
    assert a.grad.item() == pytest.approx(3e-6 * 1e-6 / (5e-6 + 1e-6), rel=1e-6)
    optimizer.zero_grad()
    assert a.grad is None and optimizer.clip_grad_norm(1.0).item() == 0


def test_norm_of_half_gradients_does_not_overflow():
    half, full = parameter(torch.zeros(64), torch.float16), parameter(torch.zeros(64))
    half.grad = torch.full((64,), 30000.0, dtype=torch.float16)
    full.grad = torch.full((64,), 40000.0)
    norm = make("sgd", [half, full]).clip_grad_norm(1.0)
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(50000 * 8, rel=1e-6)
    assert half.grad[0].item() == pytest.approx(30000 / 400000, rel=1e-3)


def test_interface_of_plug_ins():
    class Bare(FairseqOptimizer):
        pass

    with pytest.raises(NotImplementedError, match="must set self._optimizer"):
        _ = Bare(None).optimizer

    class Grouped(torch.optim.SGD):
        supports_groups = True

        def step(self, closure=None, groups=None):
            self.seen = groups
            return super().step(closure)

    class PlugIn(LegacyFairseqOptimizer):
        def __init__(self, args, params):
            super().__init__(args)
            self.optimizer = Grouped(params, lr=args.lr)

    p = parameter([1.0])
    plug_in = PlugIn(argparse.Namespace(lr=0.5), [p])
    assert plug_in.args.lr == plug_in.cfg.lr == plug_in.get_lr() == 0.5
    assert not plug_in.supports_flat_params and plug_in.supports_groups
    p.grad = torch.ones(1)
    plug_in.step(groups=["a"])
    assert plug_in.optimizer.seen == ["a"] and p.item() == 0.5

    class Module:
        reduced = False

        def all_reduce_grads(self):
            self.reduced = True

    module = Module()
    plug_in.all_reduce_grads(module)
    plug_in.all_reduce_grads(torch.nn.Linear(1, 1))
    assert module.reduced


def test_groups_of_another_number_are_refused():
    a, b = parameter([1.0]), parameter([2.0])
    one = make("sgd", [a, b])
    two = make("sgd", [{"params": [a]}, {"params": [b]}])
    with pytest.raises(CheckpointError, match=r"groups of \[2\] parameters, this run of \[1, 1\]"):
        two.load_state_dict(one.state_dict())
