"""The helpers that plug-ins import by name."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fairseq import utils
from fairseq.errors import ConfigError

NAMES = """
item strip_pad make_positions buffered_arange softmax log_softmax get_perplexity get_activation_fn
get_available_activation_fns model_eval has_parameters set_torch_seed get_rng_state set_rng_state
apply_to_sample move_to_cuda move_to_cpu clip_grad_norm_ fill_with_neg_inf resolve_max_positions
import_user_module deprecation_warning split_paths eval_str_list eval_bool csv_str_list safe_getattr
safe_hasattr reset_logging new_arange convert_padding_direction get_incremental_state
set_incremental_state
""".split()
PAD = 1


@pytest.mark.parametrize("name", NAMES)
def test_the_names_exist(name: str) -> None:
    assert callable(getattr(utils, name)) and name in dir(utils)


def test_upper_floors_are_imported_when_they_are_asked_for() -> None:
    code = "import sys, fairseq.utils; print([m for m in sys.modules if 'fairseq.modules' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        utils.nothing  # type: ignore[attr-defined]  # noqa: B018


# -- tokens ----------------------------------------------------------------------------------------

rows = st.lists(st.lists(st.integers(2, 9), max_size=5), min_size=1, max_size=4)


@given(rows)
def test_pads_change_sides(sequences: list[list[int]]) -> None:
    width = max(map(len, sequences)) + 1
    right = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in sequences])
    left = torch.tensor([[*[PAD] * (width - len(row)), *row] for row in sequences])
    assert utils.convert_padding_direction(right, PAD, right_to_left=True).equal(left)
    assert utils.convert_padding_direction(left, PAD, left_to_right=True).equal(right)


def test_padding_that_is_as_wanted_stays() -> None:
    left = torch.tensor([[PAD, 5], [6, 7]])
    assert utils.convert_padding_direction(left, PAD, right_to_left=True).equal(left)
    full = torch.tensor([[4, 5]])
    assert utils.convert_padding_direction(full, PAD, left_to_right=True).equal(full)
    for both in (True, False):
        with pytest.raises(AssertionError):
            utils.convert_padding_direction(left, PAD, both, both)


@given(rows, st.booleans())
def test_positions_number_the_tokens(sequences: list[list[int]], left: bool) -> None:
    width = max(map(len, sequences)) + 1
    pads = [[PAD] * (width - len(row)) for row in sequences]
    numbers = [list(range(PAD + 1, PAD + 1 + len(row))) for row in sequences]

    def table(parts: list[list[int]]) -> torch.Tensor:
        pairs = zip(pads, parts, strict=True)
        return torch.tensor([p + x if left else x + p for p, x in pairs])

    assert utils.make_positions(table(sequences), PAD).equal(table(numbers))


def test_strip_pad_and_ranges() -> None:
    assert utils.strip_pad(torch.tensor([PAD, 4, PAD, 5]), PAD).tolist() == [4, 5]
    assert utils.buffered_arange(3).tolist() == [0, 1, 2]
    x = torch.zeros(2, 3)
    assert utils.new_arange(x).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert utils.new_arange(x, 4).tolist() == [0, 1, 2, 3]
    filled = utils.fill_with_neg_inf(x.half())
    assert filled.dtype == torch.float16 and filled.eq(-math.inf).all() and not x.any()


# -- gradients -------------------------------------------------------------------------------------


def parameters(*values: float, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    result = [nn.Parameter(torch.zeros(3, dtype=dtype)) for _ in values]
    for parameter, value in zip(result, values, strict=True):
        parameter.grad = torch.full_like(parameter, value)
    return result


def test_clipping_scales_all_gradients_to_the_norm() -> None:
    params = parameters(2.0, -1.0, 0.5)
    norm = utils.clip_grad_norm_(iter(params), 1.0)
    expected = math.sqrt(3 * (4 + 1 + 0.25))
    assert torch.is_tensor(norm) and float(norm) == pytest.approx(expected)
    grads = [p.grad for p in params if p.grad is not None]
    assert [float(g[0]) * expected for g in grads] == pytest.approx([2, -1, 0.5], rel=1e-5)
    assert float(utils.clip_grad_norm_(params, 1.0)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 100.0])
def test_gradients_within_the_norm_stay(max_norm: float) -> None:
    params = parameters(2.0, 1.0)
    assert float(utils.clip_grad_norm_(params, max_norm)) == pytest.approx(math.sqrt(15))
    assert params[0].grad is not None and params[0].grad.eq(2).all()


def test_half_precision_gradients_are_measured_in_single_precision() -> None:
    params = [*parameters(200.0, dtype=torch.float16), *parameters(1e30)]
    params[1].grad = None
    norm = utils.clip_grad_norm_(params, 1.0)
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(200 * math.sqrt(3))
    assert params[0].grad is not None and params[0].grad.dtype == torch.float16


def test_one_tensor_none_and_other_processes() -> None:
    (single,) = parameters(2.0)
    assert float(utils.clip_grad_norm_(single, 0)) == pytest.approx(math.sqrt(12))
    seen: list[float] = []

    def total(norm: torch.Tensor) -> torch.Tensor:
        seen.append(float(norm))
        return norm * 2

    assert float(utils.clip_grad_norm_(single, 1.0, total)) == pytest.approx(2 * math.sqrt(12))
    assert single.grad is not None and float(single.grad.norm()) == pytest.approx(0.5, rel=1e-4)
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    norm = utils.clip_grad_norm_(frozen, 1.0, total)  # takes part in the exchange all the same
    assert torch.is_tensor(norm) and norm == 0 and len(seen) == 2


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits, expected",
    [
        ((), None),
        ((None, None), None),
        ((None, 7), 7),
        ((9, 7.5, None), 7.5),
        ((None, (2000, 100, 2000), 500), (500, 100, 500)),
        ((500, (2000, None)), (500, 500)),
        (((3, 5), (4, 4)), (3, 4)),
        (({"a": 3, "b": 9}, {"a": 4, "c": 1}), {"a": 3, "b": 9, "c": 1}),
    ],
)
def test_the_smallest_limit_counts(limits: Any, expected: Any) -> None:
    assert utils.resolve_max_positions(*limits) == expected


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        (None, float, None),
        ("", float, []),
        ("[1, 2]", int, [1, 2]),
        ("0.5", float, [0.5]),
        ("1,2", float, [1.0, 2.0]),
        (3, int, [3]),
        ((4, 5), str, ["4", "5"]),
    ],
)
def test_lists_are_read_and_never_evaluated(text: Any, kind: Any, expected: Any) -> None:
    assert utils.eval_str_list(text, kind) == expected
    with pytest.raises(ConfigError):
        utils.eval_str_list("__import__('os')")


def test_other_settings() -> None:
    assert utils.eval_str_dict("{'lr': 0.1}") == {"lr": 0.1}
    assert utils.eval_str_dict(None) is None
    words = ("True", "1", "yes", "false", "0", "no", None, "maybe")
    assert [utils.eval_bool(word) for word in words] == [True] * 3 + [False] * 5
    assert utils.eval_bool(None, True) and utils.eval_bool("maybe", True)
    assert utils.csv_str_list("a,b") == ["a", "b"]
    assert utils.split_paths("a:b", ":") == ["a", "b"]
    assert utils.split_paths("s3://a|s3://b:c") == ["s3://a", "s3://b:c"]
    thing = SimpleNamespace(there=0, nothing=None)
    has = [utils.safe_hasattr(thing, name) for name in ("there", "nothing", "absent")]
    assert has == [True, False, False]
    got = [utils.safe_getattr(thing, name, 5) for name in ("there", "nothing", "absent")]
    assert got == [0, 5, 5]
    with pytest.warns(UserWarning, match="goes away"):
        utils.deprecation_warning("goes away")


def test_activations_by_name() -> None:
    for name in utils.get_available_activation_fns():
        assert utils.get_activation_fn(name)(torch.zeros(1)).tolist() == [0.0]


# -- tensors in batches ----------------------------------------------------------------------------

Pair = namedtuple("Pair", "a b")


def test_functions_reach_every_tensor_of_a_batch() -> None:
    one = torch.ones(1)
    batch = {
        "x": one,
        "list": [one, 2],
        "pair": Pair(one, "b"),
        "o": OrderedDict(y=one),
        "t": (one,),
    }
    result = utils.apply_to_sample(lambda t: t + 1, batch)
    assert result["x"] == 2 and result["list"][0] == 2 and result["list"][1] == 2
    assert isinstance(result["pair"], Pair) and result["pair"].a == 2 and result["pair"].b == "b"
    assert isinstance(result["o"], OrderedDict) and result["o"]["y"] == 2
    assert result["t"] == (2,) and one == 1
    assert utils.apply_to_sample(lambda t: t, {}) == {}


def test_moving_batches() -> None:
    batch = {"h": torch.ones(1, dtype=torch.bfloat16), "i": torch.ones(1, dtype=torch.int64)}
    moved = utils.move_to_cpu(batch)
    assert moved["h"].dtype == torch.float32 and moved["i"].dtype == torch.int64
    assert utils.move_to_device(batch, "cpu")["h"].dtype == torch.bfloat16
    assert utils.move_to_device({"x": torch.ones(2)}, "meta")["x"].device.type == "meta"


def test_numbers() -> None:
    assert utils.item(torch.tensor(3.5)) == 3.5 and utils.item(4) == 4
    assert utils.item(np.float32(2)) == 2.0
    x = torch.tensor([1.0, 2.0], dtype=torch.float16)
    for function in (utils.softmax, utils.log_softmax):
        assert function(x, dim=0).dtype == torch.float32
    assert utils.softmax(x, 0).sum() == pytest.approx(1)
    torch.testing.assert_close(utils.log_softmax(x, 0).exp(), utils.softmax(x, 0))


def test_perplexity() -> None:
    assert utils.get_perplexity(3) == 8.0
    assert utils.get_perplexity(torch.tensor(1.5)) == 2.83
    assert utils.get_perplexity(1.0, round=4, base=math.e) == 2.7183
    assert utils.get_perplexity(None) == 0.0
    assert utils.get_perplexity(1e6) == math.inf == utils.get_perplexity(math.inf)
    assert math.isnan(utils.get_perplexity(math.nan))


# -- models and generators -------------------------------------------------------------------------


def test_evaluation_mode_inside_a_block() -> None:
    model = nn.Linear(1, 1)
    for training in (True, False):
        model.train(training)
        with pytest.raises(KeyError), utils.model_eval(model):
            assert not model.training
            raise KeyError
        assert model.training is training
    assert utils.has_parameters(model) and not utils.has_parameters(nn.ReLU())


def test_seeds_and_states() -> None:
    torch.manual_seed(3)
    state = utils.get_rng_state()
    first = torch.rand(2)
    with utils.set_torch_seed(7):
        inside = torch.rand(2)
    second = torch.rand(2)
    utils.set_rng_state(state)
    assert torch.rand(2).equal(first) and torch.rand(2).equal(second)
    utils.set_torch_seed(7)
    assert torch.rand(2).equal(inside)


def test_incremental_state_is_the_modules_business() -> None:
    class Module:
        def get_incremental_state(self, state: dict[str, Any], key: str) -> Any:
            return state.get(key)

        def set_incremental_state(self, state: dict[str, Any], key: str, value: Any) -> Any:
            return {**state, key: value}

    module = Module()
    state = utils.set_incremental_state(module, {}, "k", 5)
    assert utils.get_incremental_state(module, state, "k") == 5


def test_logging_begins_afresh() -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    mine = logging.NullHandler()
    root.addHandler(mine)
    try:
        utils.reset_logging()
        assert mine not in root.handlers and root.handlers
    finally:
        root.handlers[:] = before


def test_the_home_folder_in_lists_of_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert utils.split_paths("~/a:b:~/c") == ["/home/me/a", "b", "/home/me/c"]
    assert utils.split_paths("https://x/~y|~/z") == ["https://x/~y", "/home/me/z"]
