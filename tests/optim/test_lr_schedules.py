"""Learning-rate schedules: the original's tables, the formulas written again, state and errors."""

from __future__ import annotations

import csv
import json
import math
import shlex

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.catalog import LR_SCHEDULERS
from fairseq.config.registry import REGISTRIES
from fairseq.config.schema import coerce, field_types
from fairseq.errors import ConfigError, RegistryError
from fairseq.optim import build_optimizer, lr_formulas
from fairseq.optim.lr_scheduler import (
    LR_SCHEDULER_DATACLASS_REGISTRY,
    LR_SCHEDULER_REGISTRY,
    FairseqLRScheduler,
    build_lr_scheduler,
)
from fairseq.optim.optimizers import SGDConfig

COLUMNS = [
    "polynomial_decay",
    "polynomial_decay_nowarmup",
    "polynomial_decay_force_anneal3",
    "cosine",
    "cosine_default_period",
    "inverse_sqrt",
    "fixed",
    "fixed_warmup",
    "fixed_list_anneal",
    "tri_stage",
    "tri_stage_scales",
    "triangular",
    "triangular_shrink",
    "step",
    "reduce_lr_on_plateau",
    "manual",
]


def make_optimizer(lr=0.5):
    config = SGDConfig()
    config._name, config.lr = "sgd", [lr]
    return build_optimizer(config, [torch.nn.Parameter(torch.zeros(2))])


def make(name, optimizer=None, lr=0.001, **settings):
    """Build a schedule from values given as flags would give them."""
    config = LR_SCHEDULER_DATACLASS_REGISTRY[name]()
    config._name = name
    kinds = field_types(type(config))
    for field, value in {"lr": lr, **settings}.items():
        setattr(config, field, coerce(value, kinds[field], field))
    return build_lr_scheduler(config, optimizer or make_optimizer())


def from_flags(flags):
    """Read ``--lr-scheduler NAME --flag value --switch``."""
    words = shlex.split(flags.replace('"', '\\"'))
    settings, name = {}, None
    while words:
        flag = words.pop(0).removeprefix("--").replace("-", "_")
        value = words.pop(0) if words and not words[0].startswith("--") else True
        settings[flag] = value
    name = settings.pop("lr_scheduler")
    fields = {**settings}
    if "max_update" in fields and name == "polynomial_decay":
        fields["total_num_update"] = fields.pop("max_update")
    return make(name, **fields)


def run(schedule, updates=60, per_epoch=10, losses=(5, 4, 4, 4, 3, 3)):
    """Drive a schedule like the trainer; return the rate after 0, 1, 2, ... updates."""
    schedule.step_begin_epoch(1)
    rates = [schedule.step_update(0)]
    for n in range(1, updates + 1):
        rates.append(schedule.step_update(n))
        epoch, rest = divmod(n, per_epoch)
        if rest == 0:
            schedule.step(epoch, losses[epoch - 1])
            schedule.step_begin_epoch(epoch + 1)
            schedule.step_update(n)
    return rates


@pytest.mark.parametrize("column", COLUMNS)
def test_table_of_the_original(shared, column):
    folder = shared / "compat/train_log"
    flags = json.loads((folder / "lr_schedules_flags.json").read_text())
    assert set(flags) == set(COLUMNS)
    with open(folder / "lr_schedules.csv", newline="") as handle:
        golden = [float(row[column]) for row in csv.DictReader(handle)]
    assert run(from_flags(flags[column])) == pytest.approx(golden, rel=1e-12, abs=1e-15)


def test_force_anneal_applies_the_factor_again():
    rates = run(make("polynomial_decay", lr=1, total_num_update=20, force_anneal=2), 9, 3)
    expected = {3: 0.85, 4: 0.68, 6: 0.595, 7: 0.38675}
    assert {n: rates[n] for n in expected} == pytest.approx(expected, rel=1e-12)


def test_force_anneal_resumes_where_it_was():
    whole = make("polynomial_decay", lr=1, total_num_update=20, force_anneal=2)
    rates = run(whole, 9, 3)
    first = make("polynomial_decay", lr=1, total_num_update=20, force_anneal=2)
    run(first, 4, 3)
    again = make("polynomial_decay", lr=1, total_num_update=20, force_anneal=2)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    again.optimizer.set_lr(first.optimizer.get_lr())
    again.step_begin_epoch(2)
    assert [again.step_update(n) for n in (4, 5, 6)] == pytest.approx(rates[4:7], rel=1e-12)


def test_polynomial_list_is_read_one_entry_ahead():
    schedule = make("polynomial_decay", lr=[1.0, 0.5, 0.25], total_num_update=100)
    assert schedule.step_update(0) == 1.0
    assert [schedule.step_begin_epoch(e) for e in (1, 2, 3)] == [0.5, 0.25, 0.25]


@given(
    n=st.integers(0, 3000),
    warmup=st.integers(1, 500),
    rest=st.integers(1, 2000),
    power=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_polynomial_formula(n, warmup, rest, power):
    total, lr, end = warmup + rest, 0.01, 0.001
    if n <= warmup:
        expected = lr * n / warmup
    else:
        expected = end + (lr - end) * max(0.0, (total - n) / rest) ** power
    got = lr_formulas.polynomial_decay(n, warmup, total, lr, end, power)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-14)


@given(n=st.integers(0, 5000), warmup=st.integers(0, 50), period=st.integers(1, 200))
def test_cosine_with_growing_periods_walks_the_periods(n, warmup, period):
    lr, low, shrink, t_mult = 0.01, 0.001, 0.5, 2
    got = lr_formulas.cosine(n, warmup, period, lr, low, low, t_mult, shrink)
    if n < warmup:
        assert got == pytest.approx(low + (lr - low) * n / warmup)
        return
    done, length, index = n - warmup, period, 0
    while done >= length:
        done, length, index = done - length, length * t_mult, index + 1
    top, bottom = lr * shrink**index, low * shrink**index
    expected = bottom + (top - bottom) * math.cos(math.pi * done / (2 * length)) ** 2
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t_mult", [1, 1.5, 2, 3, 5, 7])
def test_cosine_restarts_at_its_highest_rate(t_mult):
    """However the logarithm of a power is rounded."""
    for period in (1, 2, 3, 10, 1000):
        begin = 0
        for restart in range(9):
            if begin == int(begin):
                got = lr_formulas.cosine(int(begin), 0, period, 0.01, 0.001, 0, t_mult, 0.5)
                assert got == pytest.approx(0.01 * 0.5**restart), (period, begin)
            begin += period * t_mult**restart


@given(n=st.integers(0, 400), half=st.integers(1, 60))
def test_triangular_is_a_triangle(n, half):
    got = lr_formulas.triangular(n, 2 * half, 0.1, 1.1)
    phase = n % (2 * half)
    height = phase / half if phase <= half else 2 - phase / half
    assert got == pytest.approx(0.1 + height, abs=1e-9)


@given(n=st.integers(1, 10_000), warmup=st.integers(1, 5000))
def test_inverse_sqrt_formula(n, warmup):
    got = lr_formulas.inverse_sqrt(n, warmup, 0.01)
    expected = 0.01 * n / warmup if n < warmup else 0.01 * (warmup / n) ** 0.5
    assert got == pytest.approx(expected, rel=1e-12)


@given(
    n=st.integers(0, 3000),
    warmup=st.integers(1, 500),
    stable=st.integers(0, 1000),
    decay=st.integers(1, 1000),
    shape=st.sampled_from(["linear", "1-sqrt"]),
)
def test_wsd_formula(n, warmup, stable, decay, shape):
    lr, low, total = 0.01, 0.001, warmup + stable + decay
    left = min(max((total - n) / decay, 0.0), 1.0)  # share of the decay that is to come
    expected = low + (lr - low) * (left if shape == "linear" else 1 - math.sqrt(1 - left))
    if n < warmup:
        expected = lr * n / warmup
    got = lr_formulas.wsd(n, warmup, warmup + stable, total, lr, low, shape=shape)
    assert got == pytest.approx(expected, rel=1e-12)


def test_wsd_by_updates_by_share_and_without_end():
    flags = {"lr": 1.0, "warmup_updates": 2, "total_num_update": 10, "end_learning_rate": 0.2}
    rates = [0, 0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    assert run(make("wsd", decay_updates=4, **flags), 12) == pytest.approx(rates, rel=1e-12)
    assert run(make("wsd", decay_updates=0.4, **flags), 12) == pytest.approx(rates, rel=1e-12)
    roots = [1 - 0.8 * (k / 4) ** 0.5 for k in range(5)]
    schedule = make("wsd", decay_updates=4, decay_shape="1-sqrt", **flags)
    assert run(schedule, 10)[6:] == pytest.approx(roots, rel=1e-12)
    assert run(make("wsd", decay_updates=0, lr=1.0), 60)[1:] == [1.0] * 60
    schedule = make("wsd", decay_updates=0, lr=1.0, warmup_updates=4, warmup_init_lr=0.2)
    assert schedule.step_update(1) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("done", "total", "jumps"), [(6, 100, False), (6, 8, False), (7, 100, True), (7, 8, True)]
)
def test_a_decay_joins_the_stable_part_or_says_that_it_does_not(done, total, jumps, caplog):
    first = make("wsd", total_num_update=10, decay_updates=4)
    run(first, done)
    state = json.loads(json.dumps(first.state_dict()))
    make("wsd", total_num_update=10, decay_updates=4).load_state_dict(state)
    assert not caplog.records
    make("wsd", total_num_update=total, decay_updates=1.5).load_state_dict(state)
    assert [record.getMessage()[:14] for record in caplog.records] == ["the rate jumps"] * jumps


def test_tri_stage_by_shares_of_max_update():
    by_steps = make("tri_stage", warmup_steps=10, hold_steps=40, decay_steps=50)
    by_shares = make("tri_stage", phase_ratio="(0.1, 0.4, 0.5)", max_update=100)
    assert run(by_shares) == run(by_steps)


def test_tri_stage_without_decay_ends_at_the_final_rate():
    schedule = make("tri_stage", warmup_steps=2, hold_steps=2)
    assert schedule.step_update(3) == 0.001
    assert schedule.step_update(4) == pytest.approx(0.00001)


def test_plateau_can_look_for_a_maximum():
    schedule = make("reduce_lr_on_plateau", maximize_best_checkpoint_metric=True)
    schedule.step_update(1)
    schedule.optimizer.set_lr(1.0)
    assert [schedule.step(e, score) for e, score in ((1, 50), (2, 60), (3, 55))] == [1, 1, 0.1]


def test_plateau_resumes_with_its_patience():
    rates = []
    for resume in (False, True):
        schedule = make("reduce_lr_on_plateau", lr_patience=1)
        schedule.optimizer.set_lr(1.0)
        schedule.step(1, 5.0)
        schedule.step(2, 5.0)
        if resume:
            state = json.loads(json.dumps(schedule.state_dict()))
            schedule = make("reduce_lr_on_plateau", lr_patience=1)
            schedule.optimizer.set_lr(1.0)
            schedule.load_state_dict(state)
        rates.append(schedule.step(3, 5.0))
    assert rates == [0.1, 0.1]


def test_manual_keeps_a_rate_until_the_next_number():
    schedule = make("manual", lr=1.0, epoch2lr='{"2-4": 0.5, "6,8": 0.25}')
    got = [schedule.step_begin_epoch(e) for e in range(1, 10)]
    assert got == [1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    schedule = make("manual", lr=1.0, update2lr='{"1-100000000": 0.5, "3": 0.1}')
    assert [schedule.step_update(n) for n in (1, 2, 3, 4, 10**9)] == [0.5, 0.5, 0.1, 0.5, 0.5]


class Recorder(FairseqLRScheduler):
    def step_begin_epoch(self, epoch):
        return epoch + 0.5

    def step(self, epoch, val_loss=None):
        return val_loss

    def step_update(self, num_updates):
        return num_updates + 0.25


def test_pass_through_hands_everything_on():
    optimizer = make_optimizer()
    optimizer.lr_scheduler = Recorder(None, optimizer)
    config = LR_SCHEDULER_DATACLASS_REGISTRY["pass_through"]()
    config._name = "pass_through"
    schedule = build_lr_scheduler(config, optimizer)
    assert (schedule.step_begin_epoch(1), schedule.step(1, 3.0)) == (1.5, 3.0)
    assert schedule.step_update(7) == 7.25
    schedule.load_state_dict({"best": 2.0})
    assert optimizer.lr_scheduler.best == 2.0 and schedule.state_dict() == {"best": 2.0}


@pytest.mark.parametrize("name", sorted(set(LR_SCHEDULERS) - {"pass_through"}))
def test_state_goes_through_json_and_back(name):
    settings = {
        "polynomial_decay": {"total_num_update": 50},
        "cosine": {"lr_period_updates": 10},
        "tri_stage": {"decay_steps": 10},
        "triangular": {"max_lr": 1},
        "manual": {"epoch2lr": '{"2": 0.5}'},
        "reduce_lr_on_plateau": {"lr_shrink": 0.5},
        "wsd": {"total_num_update": 50},
    }.get(name, {})
    first, second = make(name, **settings), make(name, **settings)
    run(first, 20)
    state = first.state_dict()
    second.load_state_dict(json.loads(json.dumps(state)))
    assert second.state_dict() == state
    if name in ("fixed", "manual"):
        assert set(state) == {"lr"}
    else:
        assert state["best"] == 4


@pytest.mark.parametrize(
    "name", ["cosine", "inverse_sqrt", "tri_stage", "triangular", "step", "wsd"]
)
def test_several_rates_are_refused(name):
    with pytest.raises(ConfigError, match="takes one learning rate"):
        make(name, lr=[0.1, 0.2])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("inverse_sqrt", {"warmup_updates": 0}, "--warmup-updates .* at least 1"),
        ("polynomial_decay", {"total_num_update": 0}, "--max-update"),
        ("polynomial_decay", {}, "--total-num-update has no value"),
        ("cosine", {"max_update": 10, "warmup_updates": 10}, "--lr-period-updates"),
        ("cosine", {"min_lr": 0.001, "max_update": 10}, "must be greater"),
        ("cosine", {"lr_period_updates": 2, "t_mult": 0.5}, "--t-mult .* at least 1"),
        ("tri_stage", {}, "no length"),
        ("tri_stage", {"phase_ratio": "(0.5, 0.4, 0.2)", "max_update": 10}, "sum up to 1"),
        ("triangular", {}, "--max-lr"),
        ("triangular", {"max_lr": 0.0001}, "must be greater"),
        ("manual", {"epoch2lr": '{"a": 1}'}, "--epoch2lr"),
        ("manual", {"update2lr": "[1]"}, "--update2lr"),
        ("manual", {"epoch2lr": "{'1': -0.1}"}, "--epoch2lr: '1': -0.1 .* at least 0"),
        ("manual", {"update2lr": "{'1': 1e999}"}, "--update2lr: '1': inf .* finite"),
        ("manual", {"update2lr": "{'1,3-1': 0.1}"}, "--update2lr: '3-1': 0.1 .* its first"),
        ("manual", {"update2lr": "__import__('os')"}, "not a plain value"),
        ("wsd", {}, "--total-num-update has no value"),
        ("wsd", {"total_num_update": 0}, "do not fit into 0"),
        ("wsd", {"total_num_update": 9, "warmup_updates": 5, "decay_updates": 5}, "do not fit"),
        ("wsd", {"total_num_update": 9, "decay_updates": -1}, "--decay-updates .* at least 0"),
        ("pass_through", {}, "has none"),
        ("fixed", {"lr": []}, "--lr is empty"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    if name == "pass_through":
        config = LR_SCHEDULER_DATACLASS_REGISTRY[name]()
        config._name = name
        with pytest.raises(ConfigError, match=message):
            build_lr_scheduler(config, make_optimizer())
        return
    with pytest.raises(ConfigError, match=message):
        make(name, **settings)


def test_registry():
    assert REGISTRIES["lr_scheduler"]["default"] == "fixed"
    for name in LR_SCHEDULERS:
        assert issubclass(LR_SCHEDULER_REGISTRY[name], FairseqLRScheduler)
        assert name in LR_SCHEDULER_DATACLASS_REGISTRY
    with pytest.raises(RegistryError, match="did you mean 'cosine'"):
        LR_SCHEDULER_REGISTRY["cosin"]
    with pytest.raises(ConfigError, match="FairseqOptimizer"):
        LR_SCHEDULER_REGISTRY["fixed"](make("fixed").cfg, torch.optim.SGD([torch.zeros(1)], 0.1))


def test_step_period_has_both_spellings():
    field = LR_SCHEDULER_DATACLASS_REGISTRY["step"].__dataclass_fields__["lr_deacy_period"]
    assert field.metadata["argparse_alias"] == "--lr-decay-period" and field.default == 25000


@pytest.mark.parametrize("name", ["inverse_sqrt", "reduce_lr_on_plateau"])
def test_the_state_of_another_schedule_may_lack_the_best_loss(name):
    schedule = make(name)
    best = schedule.state_dict()["best"]
    schedule.load_state_dict({"lr": 0.1})  # of fixed and manual
    assert schedule.state_dict()["best"] == best
