from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.errors import RegistryError
from fairseq.logging import metrics
from fairseq.logging.meters import AverageMeter, SumMeter, TimeMeter


@pytest.fixture(autouse=True)
def fresh():
    metrics.reset()
    yield
    metrics.reset()


# A program is a list of steps: a number is logged, (name, new_root, program) opens a block.
PROGRAMS = st.recursive(
    st.lists(st.integers(0, 100), max_size=3),
    lambda inner: st.lists(
        st.one_of(
            st.integers(0, 100),
            st.tuples(st.sampled_from(["a", "b", None]), st.booleans(), inner),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


def run_program(program, stack, seen, blocks):
    """Run the program, and note independently which values each aggregator must see."""
    for step in program:
        if isinstance(step, int):
            metrics.log_scalar("x", step)
            for name in stack:
                seen[name].append(step)
            continue
        name, new_root, inner = step
        with metrics.aggregate(name, new_root) as meters:
            key = name or f"block {len(blocks)}"
            blocks.append((key, meters))
            inner_stack = {key} if new_root else stack | {key}
            run_program(inner, inner_stack, seen, blocks)


@given(PROGRAMS)
def test_every_aggregator_sees_what_is_logged_inside_of_it(program):
    metrics.reset()
    seen, blocks = defaultdict(list), []
    run_program(program, {"default"}, seen, blocks)
    for name, meters in [*blocks, ("default", metrics.get_meters("default"))]:
        values = seen[name]
        assert ("x" in meters) == bool(values)
        if values:
            assert meters["x"].sum == sum(values) and meters["x"].count == len(values)
    assert metrics.get_active_aggregators() == [metrics.get_meters("default")]


def test_blocks_are_left_after_an_error():
    with pytest.raises(KeyError), metrics.aggregate("a"), metrics.aggregate(new_root=True):
        raise KeyError
    assert len(metrics.get_active_aggregators()) == 1


def test_decorator_continues_a_name_and_forgets_without():
    @metrics.aggregate("named")
    def named(value):
        metrics.log_scalar("x", value)

    @metrics.aggregate()
    def unnamed(value):
        metrics.log_scalar("x", value)
        return len(metrics.get_active_aggregators())

    named(1)
    named(3)
    assert unnamed(5) == 2
    assert metrics.get_smoothed_value("named", "x") == 2
    assert metrics.get_smoothed_value("default", "x") == 3
    assert list(metrics.state_dict()) == ["default", "named"]


def test_the_name_default_is_reserved():
    with pytest.raises(AssertionError, match="default"), metrics.aggregate("default"):
        pass


def test_all_kinds_of_figures_in_order(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with metrics.aggregate("train"):
        for step in range(1, 4):
            metrics.log_start_time("train_wall", priority=800, round=0)
            now[0] += 2
            metrics.log_speed("wps", 100, priority=90, round=1)
            metrics.log_scalar("loss", torch.tensor(float(step)), weight=step, round=3)
            metrics.log_scalar("lr", step / 10, weight=0, priority=300)
            metrics.log_scalar_sum("skipped", 1, priority=400)
            metrics.log_concat_tensor("_guesses", torch.ones(step), priority=1)
            metrics.log_derived("ppl", lambda meters: 2 ** meters["loss"].avg)
            metrics.log_derived("guesses", lambda meters: meters["_guesses"].tensor.numel())
            metrics.log_custom(lambda: SumMeter(round=1), "custom", 0.25)
            metrics.log_stop_time("train_wall")
        metrics.log_stop_time("never_started")
    assert list(metrics.get_smoothed_values("train").items()) == [
        ("loss", round(14 / 6, 3)),
        ("ppl", 2 ** (14 / 6)),
        ("guesses", 6),
        ("custom", round(0.75, 1)),
        ("wps", 50.0),  # 200 tokens in the 4 seconds after the first call
        ("lr", 0.3),
        ("skipped", 3),
        ("train_wall", 6.0),
    ]


def test_reset_of_meters_and_access():
    with metrics.aggregate("train"):
        metrics.log_scalar("loss", 4.0)
        metrics.log_scalar("accuracy", 1.0)
    metrics.reset_meter("train", "loss")
    assert metrics.get_smoothed_value("train", "loss") is None
    assert metrics.get_smoothed_value("train", "accuracy") == 1.0
    assert metrics.get_smoothed_value("default", "loss") == 4.0
    metrics.reset_meters("train")
    assert metrics.get_smoothed_values("train") == {"loss": None, "accuracy": None}
    metrics.reset_meters("nobody")
    metrics.reset_meter("nobody", "loss")
    assert isinstance(metrics.get_meter("train", "loss"), AverageMeter)
    assert metrics.get_meter("train", "nothing") is None
    assert metrics.get_meter("nobody", "loss") is None and metrics.get_meters("nobody") is None
    with pytest.raises(RegistryError, match="did you mean 'train'"):
        metrics.get_smoothed_values("trein")


def test_reset_inside_of_a_block_leaves_the_default_aggregator_connected():
    with metrics.aggregate("train"):
        metrics.log_scalar("x", 1)
        metrics.reset()
        metrics.log_scalar("x", 2)
    metrics.log_scalar("x", 4)
    assert metrics.get_smoothed_value("default", "x") == 3
    assert metrics.get_meters("train") is None


def test_state_goes_on_as_if_nothing_had_happened():
    def train(values):
        for value in values:
            with metrics.aggregate("train"):
                metrics.log_scalar("loss", value, weight=3, round=5)
                metrics.log_scalar_sum("total", value)

    values = [0.1 * step for step in range(20)]
    train(values)
    expected = metrics.get_smoothed_values("train")
    metrics.reset()
    train(values[:7])
    saved = metrics.state_dict()
    metrics.reset()
    metrics.load_state_dict(saved)
    train(values[7:])
    assert metrics.get_smoothed_values("train") == expected
    assert metrics.get_smoothed_values("default") == expected


def test_loading_inside_of_a_block_keeps_it_connected():
    with metrics.aggregate("train") as train:
        metrics.log_speed("wps", 1)
        metrics.load_state_dict(metrics.state_dict())
        metrics.log_speed("wps", 5)
    assert isinstance(train["wps"], TimeMeter) and train["wps"].n == 5
