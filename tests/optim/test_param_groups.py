"""Parameter groups by name: what rules say, what they reach, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from fairseq.catalog import OPTIMIZERS
from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY, build_optimizer
from fairseq.optim.base import FairseqOptimizer
from fairseq.optim.param_groups import fits, read_rules

NAMES = ["embed.weight", "layers.0.fc.weight", "layers.0.norm.weight", "layers.1.norm.weight"]


def tensors():
    return {name: torch.nn.Parameter(torch.ones(2, 2)) for name in NAMES}


def make(rules, params=None, name="adam", **values):
    cfg = OPTIMIZER_DATACLASS_REGISTRY[name]()
    cfg._name, cfg.lr = name, [0.1]
    for key, value in values.items():
        setattr(cfg, key, value)
    return build_optimizer(cfg, [params or tensors()], param_groups=rules)


def test_rules_are_read():
    assert read_rules("embed = lr*0.1, norm=wd0,layers.[01].fc*=lr*2e-1") == [
        ("embed", {"lr_scale": 0.1}),
        ("norm", {"weight_decay": 0.0}),
        ("layers.[01].fc*", {"lr_scale": 0.2}),
    ]
    assert read_rules("") == [] == read_rules(" ,")
    assert fits("norm", NAMES[2]) and fits("layers.1.*", NAMES[3])
    assert not fits("layers.1.*", NAMES[2]) and not fits("*.norm", NAMES[2])


def test_groups_and_their_settings():
    params = tensors()
    optimizer = make("embed=lr*0.1,norm=wd0,layers.1=lr*3", params, weight_decay=0.01)
    found = [
        (g["lr"], g["weight_decay"], [n for n in NAMES if any(params[n] is p for p in g["params"])])
        for g in optimizer.param_groups
    ]
    assert found == [
        (0.1 * 0.1, 0.01, NAMES[:1]),
        (0.1, 0.01, NAMES[1:2]),
        (0.1, 0.0, NAMES[2:3]),
        (0.1 * 3.0, 0.0, NAMES[3:]),
    ]
    optimizer.set_lr(0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5 * 0.1, 0.5, 0.5, 1.5]
    assert optimizer.get_lr() == 0.5
    everything = make("e=lr*0.25")
    everything.set_lr(0.3)
    assert len(everything.param_groups) == 1 and everything.get_lr() == pytest.approx(0.3)


def test_the_later_rule_wins_and_a_rule_wins_over_the_mode():
    optimizer = make("layers=wd0.1,norm=wd0.2", weight_decay=0.5)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.1, 0.2]
    params = {"norm.weight": torch.nn.Parameter(torch.ones(2)), **tensors()}
    rules, settings = "norm.weight=wd0.3", {"weight_decay": 0.5, "weight_decay_mode": "matrices"}
    assert make(rules, params, **settings).param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_follows_the_rules(name):
    """A group of factor 0.5 moves as the same parameters alone at half the rate."""
    both, alone = tensors(), tensors()
    grouped = make("embed=lr*0.5,embed=wd0.3", both, name)
    plain = make("", {key: p for key, p in alone.items() if key != "embed.weight"}, name)
    half = {"embed.weight": alone["embed.weight"]}
    if name == "muon":  # an embedding is Adam's
        half_optimizer = make("", half, "adam", weight_decay=0.3)
    else:
        half_optimizer = make("", half, name, weight_decay=0.3)
    half_optimizer.set_lr(0.05)
    for number in range(3):
        for params in (both, alone):
            for p in params.values():
                p.grad = torch.sin(torch.arange(4.0) + number).view(2, 2)
        for optimizer in (grouped, plain, half_optimizer):
            optimizer.step()
    for key in NAMES:
        assert torch.equal(both[key], alone[key]), key
    assert not torch.equal(both[NAMES[0]], both[NAMES[1]])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("embed", "cannot read 'embed'"),
        ("=wd0", "cannot read"),
        ("embed=", "cannot read"),
        ("embed=lr+1", "cannot read"),
        ("embed=freeze", "cannot read 'embed=freeze'; rules look like"),
        ("embed=wd-1", "cannot read"),
        ("embed=lr*0", "above 0"),
        ("embd=wd0", "'embd' is in the name of no parameter .* these are embed.weight, "),
    ],
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(ConfigError, match=message):
        make(rules)


def test_what_rules_need():
    cfg = OPTIMIZER_DATACLASS_REGISTRY["sgd"]()
    cfg._name, cfg.lr = "sgd", [0.1]
    with pytest.raises(ConfigError, match="dicts of name and tensor"):
        build_optimizer(cfg, tensors().values(), param_groups="embed=wd0")
    frozen = tensors()
    frozen["embed.weight"].requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that is trained"):
        build_optimizer(cfg, [frozen], param_groups="embed=wd0")


def test_an_optimizer_without_decay_says_so(monkeypatch):
    from fairseq.optim import OPTIMIZER_REGISTRY

    class WithoutDecay(FairseqOptimizer):
        def __init__(self, cfg, params):
            super().__init__(cfg)
            self._optimizer = torch.optim.Rprop(params)

    monkeypatch.setitem(OPTIMIZER_REGISTRY, "bare", WithoutDecay)
    cfg = OPTIMIZER_DATACLASS_REGISTRY["sgd"]()
    cfg._name, cfg.lr = "bare", [0.1]
    with pytest.raises(ConfigError, match="bare has no weight decay"):
        build_optimizer(cfg, [tensors()], param_groups="embed=wd0")


def test_state_and_overrides():
    rules = "embed=lr*0.5,norm=wd0"
    first = make(rules, weight_decay=0.1)
    first.set_lr(0.4)
    state = first.state_dict()
    second = make(rules, weight_decay=0.7)
    second.load_state_dict(state, {"lr": 0.2, "weight_decay": 0.3})
    assert [g["lr"] for g in second.param_groups] == [0.1, 0.2, 0.2]
    assert [g["weight_decay"] for g in second.param_groups] == [0.3, 0.3, 0.0]
    with pytest.raises(CheckpointError, match="--param-groups"):
        make("").load_state_dict(state)
    assert all("by_rule" not in g and "lr_scale" not in g for g in make("").param_groups)
