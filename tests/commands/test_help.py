"""Help is true: defaults are those of the code, and commands list nothing that they never read."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Callable

import pytest

from fairseq.config import options
from fairseq.config.schema import public_fields
from fairseq.config.sections import TRAINING_ALONE, CommonConfig
from fairseq.pcfg import random_sources
from fairseq_cli import pcfg

EVALUATION = {
    "validate": options.get_validation_parser,
    "eval-lm": options.get_eval_lm_parser,
    "interactive": options.get_interactive_generation_parser,
}


def shown(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the flags of the help, by destination, with their texts."""
    return {a.dest: a.help or "" for a in parser._actions if a.help != argparse.SUPPRESS}


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_lists_nothing_that_only_training_reads(name: str) -> None:
    parser = EVALUATION[name]()
    assert shown(parser).keys() & TRAINING_ALONE == set()
    assert {a.dest for a in parser._actions} >= TRAINING_ALONE  # accepted, for old scripts
    assert not [text for text in shown(parser).values() if "no effect here" in text]
    training = "log_file tensorboard_logdir disable_validation distributed_world_size compile"
    assert not shown(parser).keys() & set(training.split())  # one process evaluates, and logs here


# what all three accept, as the original does, and some never read: who lists it
WHICH_DATA = {
    "valid_subset": {"validate"},
    "gen_subset": {"eval-lm", "interactive"},
    "max_valid_steps": {"validate"},
    "num_shards": {"eval-lm", "interactive"},
    "num_workers": {"validate", "eval-lm"},
    "post_process": {"eval-lm", "interactive"},
    "quiet": {"interactive"},
}


@pytest.mark.parametrize("name", EVALUATION)
def test_a_choice_of_data_is_offered_where_it_is_taken(name: str) -> None:
    parser = EVALUATION[name]()
    listed = shown(parser).keys() & WHICH_DATA.keys()
    assert listed == {flag for flag, readers in WHICH_DATA.items() if name in readers}
    assert {a.dest for a in parser._actions} >= WHICH_DATA.keys()


def test_preprocessing_lists_its_own_flags() -> None:
    parser = options.get_preprocessing_parser()
    common = {field.name for field, _ in public_fields(CommonConfig)}
    assert shown(parser).keys() & common == set()
    assert "trainpref" in shown(parser)
    assert parser.parse_args(["--fp16", "--only-source"]).fp16


@pytest.mark.parametrize("make", [options.get_training_parser, options.get_generation_parser])
def test_minus_one_is_explained(make: Callable[[], argparse.ArgumentParser]) -> None:
    for action in make()._actions:
        text = action.help or ""
        if getattr(action, "shown_default", None) in (-1, -1.0) and "no effect" not in text:
            assert "(-1: " in text or text == argparse.SUPPRESS, (action.option_strings, text)


def test_minus_one_is_explained_in_components() -> None:
    for name in ("cosine", "inverse_sqrt", "tri_stage", "wsd"):
        parser = options.get_training_parser()
        options.add_component_flags(parser, "lr_scheduler", name)
        bare = [a for a in parser._actions if getattr(a, "shown_default", None) == -1.0]
        texts = [a.help or "" for a in bare]
        assert all("(-1: " in text or "no effect" in text for text in texts), name


def test_defaults_of_grammars() -> None:
    parser = argparse.ArgumentParser()
    pcfg._add_grammar(parser)
    makers = ("levelled_grammar", "tree_grammar", "random_hmm")
    for name in makers:
        for key, parameter in inspect.signature(getattr(random_sources, name)).parameters.items():
            if key == "seed":
                continue
            values = parameter.default
            values = values if isinstance(values, tuple) else (values,)
            (text,) = (a.help for a in parser._actions if a.dest == key)
            numbers = [float(n) for n in re.findall(r"[\d.]+", text.split("(default: ")[1])]
            assert {float(value) for value in values} <= set(numbers), (name, key, text)


@pytest.mark.parametrize("command", ["hessian", "bpe", "probe", "glue", "pcfg", "report"])
def test_a_default_is_called_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"fairseq_cli.{command}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert not re.findall(r" \((\d+|auto|valid|rademacher|lbfgs|positions)\)", text)
