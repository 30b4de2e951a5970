from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.errors import CheckpointError, FairseqError
from fairseq.logging import deferred
from fairseq.logging.meters import (
    AverageMeter,
    ConcatTensorMeter,
    DerivedMeter,
    Meter,
    MetersDict,
    StopwatchMeter,
    SumMeter,
    TimeMeter,
    safe_round,
)

FINITE = st.floats(-1e6, 1e6)
NAMES = ("baseline", "fb_baseline", "fb_lm", "fb_sentpred", "zero_clap")


@given(st.lists(st.tuples(FINITE, st.integers(1, 50)), min_size=1))
def test_average_is_the_weighted_mean(pairs):
    meter = AverageMeter()
    for value, weight in pairs:
        meter.update(value, weight)
    values, weights = zip(*pairs, strict=True)
    assert meter.avg == pytest.approx(np.average(values, weights=weights), abs=1e-6)
    assert meter.val == values[-1]
    assert meter.count == sum(weights)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(0, 50)), max_size=20))
def test_unread_values_give_what_read_ones_give(pairs):
    """Values on an accelerator are read later and together; nothing else may change."""
    at_once, later = AverageMeter(), AverageMeter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deferred, "_is_on_host", lambda tensor: False)
        for value, weight in pairs:
            at_once.update(value, weight)
            later.update(torch.tensor(value), torch.tensor(weight))
        assert later.state_dict() == at_once.state_dict()


def test_unread_values_are_private_copies_and_bounded(monkeypatch):
    monkeypatch.setattr(deferred, "_is_on_host", lambda tensor: False)
    monkeypatch.setattr(deferred, "_MAX_WAITING", 4)
    meter = AverageMeter()
    buffer = torch.ones((), requires_grad=True)
    for value in range(10):
        with torch.no_grad():
            buffer.fill_(value)
        meter.update(buffer, 2)
        assert len(meter._figures._waiting) < 4
    assert meter.sum == 2 * sum(range(10)) and meter.val == 9


def test_tensors_of_several_kinds_are_read_together(monkeypatch):
    monkeypatch.setattr(deferred, "_is_on_host", lambda tensor: False)
    meter = SumMeter()
    meter.update(torch.tensor(1.5, dtype=torch.bfloat16))
    meter.update(torch.tensor([2]))
    meter.update(np.float32(0.25))
    meter.update(None)
    assert meter.sum == 3.75


def test_average_without_weight_shows_the_latest():
    meter = AverageMeter(round=2)
    assert meter.smoothed_value is None
    meter.update(0.123, 0)
    meter.update(0.456, 0)
    meter.update(None)
    assert meter.smoothed_value == 0.46
    assert (meter.sum, meter.count) == (0, 0)


@pytest.mark.parametrize("value", [torch.zeros(3), np.zeros((2, 2))])
def test_arrays_are_refused(value):
    with pytest.raises(FairseqError, match="one number"):
        AverageMeter().update(value)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.23456, 1.23),
        (torch.tensor(1.23456), 1.23),
        (torch.tensor([1.23456]), 1.23),
        (np.float32(1.23456), 1.23),
        (np.array(1.23456), 1.23),
        (7, 7),
        (math.inf, math.inf),
        (None, None),
        ("x", "x"),
    ],
)
def test_safe_round(number, expected):
    rounded = safe_round(number, 2)
    assert (
        rounded == pytest.approx(expected) if isinstance(expected, float) else rounded == expected
    )


def test_time_meter_counts_per_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = TimeMeter(round=1)
    now[0] += 4
    meter.update(10)
    assert meter.smoothed_value == 2.5
    saved = meter.state_dict()
    assert saved == {"init": 4.0, "n": 10, "round": 1}
    now[0] += 1000  # the time between two processes does not count
    resumed = TimeMeter()
    resumed.load_state_dict(saved)
    now[0] += 1
    assert resumed.avg == 2.0


def test_stopwatch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = StopwatchMeter(round=1)
    watch.stop()  # never started
    assert (watch.sum, watch.elapsed_time) == (0, 0.0)
    watch.start()
    now[0] = 2.0
    assert watch.smoothed_value == 2.0
    calls = []
    watch.stop(n=torch.tensor(4), prehook=lambda: calls.append(now[0]))
    assert (calls, watch.sum, watch.n, watch.smoothed_value) == ([2.0], 2.0, 4, 0.5)
    watch.reset()
    now[0] = 5.0
    assert (watch.sum, watch.elapsed_time) == (0, 3.0)


def test_concat_tensor_meter():
    meter = ConcatTensorMeter(dim=1)
    assert meter.tensor.numel() == 0
    parts = [torch.randn(2, 3, requires_grad=True), torch.randn(2, 1)]
    for part in parts:
        meter.update(part)
    assert torch.equal(meter.tensor, torch.cat(parts, dim=1))
    assert not meter.tensor.requires_grad
    resumed = ConcatTensorMeter()
    resumed.load_state_dict(meter.state_dict())
    assert torch.equal(resumed.tensor, meter.tensor)
    meter.reset()
    assert meter.tensor.numel() == 0 and meter.smoothed_value == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_meters_are_ordered_by_priority_then_arrival(priorities):
    meters = MetersDict()
    for index, priority in enumerate(priorities):
        meters.add_meter(f"m{index}", AverageMeter(), priority)
    expected = [f"m{i}" for i in sorted(range(len(priorities)), key=lambda i: priorities[i])]
    assert list(meters) == expected == [key for _, key, _, _ in meters.state_dict()]
    assert list(copy.deepcopy(meters)) == expected


def test_meters_dict_refuses_reassignment_hides_and_derives():
    meters = MetersDict()
    meters["_hidden"] = (1, SumMeter())
    meters["loss"] = (10, AverageMeter())
    meters["ppl"] = (20, DerivedMeter(lambda m: 2 ** m["loss"].avg))
    meters["loss"].update(3.0)
    assert list(meters.get_smoothed_values().items()) == [("loss", 3.0), ("ppl", 8.0)]
    assert [key for _, key, _, _ in meters.state_dict()] == ["_hidden", "loss"]
    with pytest.raises(AssertionError, match="loss"):
        meters["loss"] = (10, AverageMeter())
    meters.reset()
    assert meters["loss"].count == 0
    meters.clear()
    assert not meters and not meters.priorities


def saved_meters(shared, name):
    """The ``extra_state.metrics`` of a checkpoint of the original, as plain data."""
    text = (shared / f"compat/checkpoints/{name}/structure.json").read_text()
    return json.loads(text, object_hook=_numbers_of_printed_tensors)["extra_state"]["metrics"]


def _numbers_of_printed_tensors(fields):
    is_printed = lambda value: isinstance(value, str) and value.startswith("tensor(")  # noqa: E731
    return {k: float(v[7:].rstrip(")")) if is_printed(v) else v for k, v in fields.items()}


@pytest.mark.parametrize("name", NAMES)
def test_state_of_the_original_survives_a_round_trip(shared, name):
    for rows in saved_meters(shared, name).values():
        meters = MetersDict()
        meters.load_state_dict(rows)
        again = meters.state_dict()
        assert [row[:3] for row in again] == [tuple(row[:3]) for row in rows]
        for (_, _, kind, state), (_, _, _, new_state) in zip(rows, again, strict=True):
            assert list(new_state) == list(state)
            if kind == "TimeMeter":  # its clock goes on
                assert 0 <= new_state.pop("init") - state.pop("init") < 60
            assert new_state == state


@pytest.mark.parametrize("name", NAMES)
def test_saved_figures_are_those_of_the_last_log_line(shared, name):
    folder = shared / f"compat/checkpoints/{name}"
    meters = MetersDict()
    meters.load_state_dict(saved_meters(shared, name)["train"])
    shown = {f"train_{key}": value for key, value in meters.get_smoothed_values().items()}
    line = json.loads((folder / "epoch_log.jsonl").read_text().splitlines()[-1])
    timed = {"train_wps", "train_ups", "train_train_wall"}
    assert {"train_loss", "train_gnorm", "train_wpb"} <= set(shown)
    for key in set(shown) - timed:
        assert f"{shown[key]:g}" == line[key], key


def test_tensors_in_a_checkpoint_become_numbers(shared):
    state = torch.load(shared / "compat/checkpoints/baseline/model.pt", weights_only=True)
    rows = state["extra_state"]["metrics"]["default"]
    assert any(isinstance(row[3].get("sum"), torch.Tensor) for row in rows)
    meters = MetersDict()
    meters.load_state_dict(rows)
    for _, _, _, new_state in meters.state_dict():
        assert all(isinstance(value, int | float | None) for value in new_state.values())
    loss = next(row[3] for row in rows if row[1] == "loss")
    assert meters["loss"].avg == pytest.approx(float(loss["sum"] / loss["count"]), rel=1e-6)


@pytest.mark.parametrize(
    "row",
    [
        (10, "loss", "system", {}),
        (10, "loss", "Meter", {}),
        (10, "loss", "DerivedMeter", {}),
        (10, "loss", "AverageMeter", {"val": 1}),
        (10, "loss", "AverageMeter", None),
        (10, "loss", "AverageMeter"),
        "loss",
    ],
)
def test_damaged_states_are_refused(row):
    with pytest.raises(CheckpointError, match="--reset-meters"):
        MetersDict().load_state_dict([row])


def test_own_meters_can_be_saved_and_loaded():
    class LargestMeter(Meter):
        largest = 0

        def update(self, value):
            self.largest = max(self.largest, value)

        def state_dict(self):
            return {"largest": self.largest}

        def load_state_dict(self, state_dict):
            self.largest = state_dict["largest"]

    meters, resumed = MetersDict(), MetersDict()
    meters.add_meter("largest", LargestMeter(), 1)
    meters["largest"].update(7)
    resumed.load_state_dict(meters.state_dict())
    assert resumed["largest"].largest == 7
    Meter.kinds.pop("LargestMeter")


def test_importing_does_not_import_torch():
    code = (
        "import sys; from fairseq.logging import meters, metrics, progress_bar, sinks; "
        "heavy = {'torch', 'numpy', 'rich', 'tensorboardX'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
