"""What configurations are made of: fields, choices, parsing of values, nesting, freezing."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import enum
import pickle
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq.config.schema import (
    II,
    ChoiceEnum,
    FairseqDataclass,
    assign,
    choices_of,
    coerce,
    default_of,
    field_types,
    is_reference,
    option,
    parse_literal,
    parser_of,
    public_fields,
    without_optional,
)
from fairseq.errors import ConfigError

OptionalInt = Optional[int]  # noqa: UP045 - plug-ins write it so


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Inner(FairseqDataclass):
    depth: int = option(3, "how deep")
    names: list[str] = option(["a"], "some names")


@dataclasses.dataclass
class Outer(FairseqDataclass):
    width: int = 4
    rate: Optional[float] = None  # noqa: UP045 - plug-ins write it so
    inner: Inner = Inner()  # refused by dataclasses for unhashable defaults
    mode: Literal["x", "y"] = option("x")
    seed: int = II("common.seed")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        (" -3 ", int, -3),
        ("1e4", int, 10_000),
        ("9223372036854775807", int, 2**63 - 1),
        (3.0, int, 3),
        ("1e-3", float, 1e-3),
        (1, float, 1.0),
        ("inf", float, float("inf")),
        ("true", bool, True),
        ("False", bool, False),
        (0, bool, False),
        ("no", bool, False),
        (5, str, "5"),
        ({"lr": 1}, str, "{'lr': 1}"),
        ("1,2", list[int], [1, 2]),
        ("4", list[int], [4]),
        ("[1, 2]", list[float], [1.0, 2.0]),
        ((1, 2), list[int], [1, 2]),
        (["1e-3", 2], list[float], [1e-3, 2.0]),
        ("", list[int], []),
        ("['a','b']", list[str], ["a", "b"]),
        ("(0.1, 0.4, 0.5)", tuple[float, float, float], [0.1, 0.4, 0.5]),
        ("7", OptionalInt, 7),
        (None, int, None),
        (None, list[int], None),
        ("red", Color, "red"),
        (Color.BLUE, Color, "blue"),
        ("x", Literal["x", "y"], "x"),
        ([1, {"a": 2}], Any, [1, {"a": 2}]),
        ("${a.b}", int, "${a.b}"),
    ],
)
def test_values_are_read_as_the_type_of_their_field(text, kind, value):
    read = coerce(text, kind, "s.k")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("3.5", int, "not a whole number"),
        ("three", int, "cannot read 'three' as int"),
        ("nan", int, "not a whole number"),
        ([3], int, "cannot read"),
        ("fast", float, "cannot read 'fast' as float"),
        ("perhaps", bool, "true or false"),
        ("1.5", list[int], "not a whole number"),
        ("[1,", list[int], "not a plain value"),
        ("__import__('os').getcwd()", list[int], "not a plain value"),
        (["a", "b"], str, "write one text"),
        ("re", Color, "did you mean 'red'"),
        ("z", Literal["x", "y"], "none of x, y"),
    ],
)
def test_a_wrong_value_names_its_place(text, kind, message):
    with pytest.raises(ConfigError, match="s.k: ") as caught:
        coerce(text, kind, "s.k")
    assert message in str(caught.value)


@given(st.integers())
def test_whole_numbers_survive_as_text(number):
    assert coerce(str(number), int, "x") == number


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_lists_of_numbers_survive_as_text(numbers):
    assert coerce(str(numbers), list[float], "x") == numbers


@given(st.text(max_size=40))
def test_literals_never_run_code_and_fail_in_one_way(text):
    try:
        parse_literal(text)
    except ConfigError as error:
        assert "not a plain value" in str(error)


def test_lists_of_other_things_have_no_text_form():
    with pytest.raises(NotImplementedError):
        parser_of(list[dict])


def test_types():
    assert without_optional(OptionalInt) is int
    assert without_optional(int | None) is int
    assert without_optional(Any) is str
    assert choices_of(Literal["a", "b"] | None) == ["a", "b"]
    assert choices_of(Color) == ["red", "blue"]
    assert choices_of(int) is None
    assert is_reference("${a.b}/c") and not is_reference("$a") and not is_reference(3)


def test_choice_enums_equal_their_strings():
    Mode = ChoiceEnum(["none", "eos"])
    assert Mode.none == "none" and Mode("eos") == "eos" and str(Mode.eos) == "eos"
    assert "none" in Mode and "nothing" not in Mode
    assert {Mode.none: 1}["none"] == 1
    assert choices_of(Mode) == ["none", "eos"]
    assert coerce(Mode.eos, Mode, "x") == "eos"
    with pytest.raises(ValueError, match="other"):
        Mode("other")


def test_fields_and_helpers():
    config = Outer()
    assert [field.name for field, _ in public_fields(Outer)] == [
        "width",
        "rate",
        "inner",
        "mode",
        "seed",
    ]
    assert config._get_all_attributes()[0] == "_name"
    assert config._get_type("width") is int
    assert config._get_choices("mode") == ["x", "y"]
    assert config.inner._get_help("depth") == "how deep"
    assert config._get_default("width") == 4
    assert config._get_argparse_alias("width") is None
    assert config._get_argparse_const("width") is None
    assert config.name() is None
    assert config["width"] == config.get("width") == 4
    assert config.get("height", 9) == 9
    assert "width" in config and "height" not in config
    with pytest.raises(KeyError):
        config["height"]


def test_a_list_default_is_not_shared():
    first, second = Inner(), Inner()
    first.names.append("b")
    assert second.names == ["a"]
    assert default_of(Inner.__dataclass_fields__["names"]) == ["a"]


def test_annotations_that_only_type_checkers_understand():
    @dataclasses.dataclass
    class Odd(FairseqDataclass):
        known: int = 3
        odd: NotImported = 2.5  # type: ignore[name-defined]  # noqa: F821
        nothing: NotImported = None  # type: ignore[name-defined]  # noqa: F821

    assert field_types(Odd)["known"] is int
    assert field_types(Odd)["odd"] is float
    assert field_types(Odd)["nothing"] is str


def test_assign_reads_nested_configurations_without_touching_the_shared_default():
    config = Outer()
    assign(config, {"width": "8", "inner": {"depth": "5"}, "rate": "???", "height": 1}, "model")
    assert (config.width, config.inner.depth, config.rate) == (8, 5, None)
    assert Outer().inner.depth == 3
    with pytest.raises(ConfigError, match=r"model\.inner\.depth"):
        assign(config, {"inner": {"depth": "deep"}}, "model")


def test_from_namespace_reads_text_and_ignores_the_rest():
    config = Outer.from_namespace(argparse.Namespace(width="8", arch="a", rate=None))
    assert (config.width, config.rate, config.mode) == (8, None, "x")
    assert Outer.from_namespace(config) is config


def test_frozen_configurations_are_final_copies_are_too_replacements_are_not():
    config = Outer()
    config.freeze()
    assert config.is_frozen() and config.inner.is_frozen()
    assert not Outer().inner.is_frozen()  # the default that all share
    for target in (config, config.inner, pickle.loads(pickle.dumps(config))):
        with pytest.raises(ConfigError, match="final"):
            target._name = "x"
    changed = dataclasses.replace(config, width=5)
    changed.mode = "y"
    assert (changed.width, config.width) == (5, 4)
    assert copy.deepcopy(config) == config
