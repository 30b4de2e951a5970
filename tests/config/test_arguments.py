"""Flags from dataclasses, on plain argparse parsers as plug-ins and the original use them."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, field

import pytest

from fairseq.config.flags import Parser, explicitly_given, make_data_optional
from fairseq.config.plugin_names import gen_parser_from_dataclass
from fairseq.config.schema import II, ChoiceEnum, FairseqDataclass


@dataclass
class Leaf(FairseqDataclass):
    data: str = field(default="here", metadata={"help": "the data"})
    num_layers: int = field(default=6, metadata={"help": "layers"})


@dataclass
class Middle(FairseqDataclass):
    leaf_one: Leaf = Leaf()
    size: int = field(default=1, metadata={"help": "size"})


@dataclass
class Root(FairseqDataclass):
    data: str = field(default="there", metadata={"help": "the data"})
    encoder: Middle = field(default=Middle())
    decoder: Leaf = field(default=Leaf())
    rate: int = field(default=0, metadata={"help": "rate"})


@dataclass
class Kinds(FairseqDataclass):
    on: bool = field(default=True, metadata={"help": "on by default"})
    off: bool = field(default=False, metadata={"help": "off by default"})
    no_way: bool = field(default=False, metadata={"help": "negated"})
    no_stop: bool = field(default=True, metadata={"help": "negated, on by default"})
    rates: list[float] = field(default_factory=lambda: [0.5], metadata={"help": "100% of rates"})
    mode: ChoiceEnum(["none", "eos"]) = field(  # type: ignore[valid-type]
        default="none", metadata={"help": "mode", "argparse_alias": "--how"}
    )
    cut: int | None = field(default=None, metadata={"help": "cut", "argparse_const": 7})
    hidden: int = II("common.seed")
    shown: int = field(default=II("common.seed"), metadata={"help": "refers to another"})
    must: str = field(default="???", metadata={"help": "must be given"})
    quiet: int = 3


def parser_for(config, *args, cls=argparse.ArgumentParser):
    parser = cls(allow_abbrev=False)
    gen_parser_from_dataclass(parser, config, *args)
    return parser


def test_a_flat_dataclass_becomes_flags_and_data_a_positional():
    parser = parser_for(Leaf(), True)
    args = parser.parse_args(["--num-layers", "10", "the/folder"])
    assert vars(args) == {"num_layers": 10, "data": "the/folder"}
    assert vars(parser.parse_args(["x"])) == {"data": "x"}
    assert parser_for(Leaf(num_layers=2)).parse_args(["x"]).num_layers == 2


def test_nested_dataclasses_are_flattened():
    args = parser_for(Middle(), True).parse_args(["--num-layers", "10", "--size", "2", "folder"])
    assert vars(args) == {"num_layers": 10, "size": 2, "data": "folder"}


def test_nested_dataclasses_get_prefixes():
    words = ["--encoder-leaf-one-data", "E", "--encoder-leaf-one-num-layers", "10"]
    words += ["--encoder-size", "20", "--decoder-data", "D", "--decoder-num-layers", "30"]
    args = parser_for(Root(), True, "").parse_args([*words, "--rate", "40", "folder"])
    assert vars(args) == {
        "encoder_leaf_one_data": "E",
        "encoder_leaf_one_num_layers": 10,
        "encoder_size": 20,
        "decoder_data": "D",
        "decoder_num_layers": 30,
        "rate": 40,
        "data": "folder",
    }


def test_a_name_clash_keeps_the_first_definition():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-layers", type=str, default="mine")
    parser.add_argument("--off", action="store_const", const="mine", default="first")
    gen_parser_from_dataclass(parser, Leaf())
    gen_parser_from_dataclass(parser, Kinds(), True)
    args = parser.parse_args(["x", "--must", "y"])
    assert (args.num_layers, args.off) == ("mine", "first")
    assert parser.parse_args(["x", "--must", "y", "--off"]).off == "mine"


def test_kinds_of_fields():
    parser = parser_for(Kinds())
    args = parser.parse_args(["--must", "x"])
    assert (args.on, args.off, args.no_way, args.no_stop) == (True, False, False, True)
    assert (args.rates, args.mode, args.cut, args.quiet) == ([0.5], "none", None, 3)
    assert args.shown is None and not hasattr(args, "hidden")
    words = ["--must", "x", "--rates", "1,2", "--how", "eos", "--cut", "--shown", "5"]
    args = parser.parse_args(words)
    assert (args.rates, args.mode, args.cut, args.shown) == ([1.0, 2.0], "eos", 7, 5)
    assert parser.parse_args(["--must", "x", "--cut", "9"]).cut == 9


def test_flags_that_are_not_given_leave_no_trace_for_presets():
    assert vars(parser_for(Kinds(), True).parse_args(["--must", "x"])) == {"must": "x"}


@pytest.mark.parametrize(
    ("flag", "name", "value", "warns"),
    [
        ("--on", "on", False, True),
        ("--no-on", "on", False, False),
        ("--off", "off", True, False),
        ("--no-off", "off", False, False),
        ("--no-way", "no_way", True, False),
        ("--way", "no_way", False, False),
        ("--no-stop", "no_stop", False, True),
        ("--stop", "no_stop", False, False),
    ],
)
def test_booleans(caplog, flag, name, value, warns):
    with caplog.at_level(logging.WARNING):
        args = parser_for(Kinds()).parse_args(["--must", "x", flag])
    assert getattr(args, name) is value
    assert ("OFF" in caplog.text) is warns


@pytest.mark.parametrize("words", [[], ["--must"], ["--must", "x", "--mode", "nine"]])
def test_wrong_command_lines_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parser_for(Kinds(), cls=Parser).parse_args(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_shows_defaults_and_the_readable_half_of_a_pair():
    text = parser_for(Kinds(), cls=Parser).format_help()
    assert "100% of rates [0.5]" in text
    assert "--no-on" in text and "  --on" not in text
    assert "--off" in text and "--no-off" not in text
    assert "--how" in text and "--hidden" not in text
    assert "--quiet" in text


def test_explicitly_given_leaves_the_parser_as_it_was():
    parser = parser_for(Kinds())
    parser.set_defaults(quiet=4, extra="e")
    before = vars(parser.parse_args(["--must", "x"]))
    assert vars(explicitly_given(parser, ["--must", "x", "--off"])) == {"must": "x", "off": True}
    assert vars(explicitly_given(parser, ["--must", "x", "--zzz"], True)) == {"must": "x"}
    assert vars(parser.parse_args(["--must", "x"])) == before
    assert before["quiet"] == 4


@pytest.mark.parametrize(
    "words", [["--num-layers", "2", "folder"], ["folder", "--num-layers", "2"]]
)
def test_an_optional_data_folder_may_stand_anywhere(words):
    parser = parser_for(Leaf())
    make_data_optional(parser)
    assert explicitly_given(parser, words).data == "folder"
    assert vars(explicitly_given(parser, ["--num-layers", "2"])) == {"num_layers": 2}


@pytest.mark.parametrize(
    ("word", "hint"), [("--num-layer", "did you mean '--num-layers'?"), ("--zzz", "see --help")]
)
def test_suggestions(capsys, word, hint):
    parser = parser_for(Leaf(), cls=Parser)
    parser.prog = "tool"
    with pytest.raises(SystemExit):
        parser.parse_args(["x", word])
    message = capsys.readouterr().err
    assert message.startswith("tool: error: unrecognized arguments") and hint in message
