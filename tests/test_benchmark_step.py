"""The arithmetic of the benchmark of whole steps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks.step import (
    Case,
    cases,
    gemm_flops,
    interpreter,
    original_command,
    train_command,
    verdict,
)
from fairseq.config.options import get_training_parser, parse_config


def test_ahead_is_said_only_where_the_interval_excludes_one() -> None:
    assert verdict([1.1] * 10)["so"] == "fairseq-train is ahead"
    assert verdict([0.9] * 10)["so"] == "fairseq-train is behind"
    tenth = [0.9, 0.95, *[1.1] * 8]  # the two extremes of ten are left out
    assert verdict(tenth) == {"ratio": 1.1, "interval": [0.95, 1.1], "so": "cannot be told"}
    assert verdict([2.0] * 5)["interval"] is None


def test_operations_are_those_of_the_usual_formula() -> None:
    tokens, width, predicted, vocabulary = 4096, 256, 614, 8001
    matrices = 4 * 12 * width**2
    head = predicted * (vocabulary * width + width**2)
    want = 6 * (tokens * matrices + 4 * 2 * tokens * 128 * width + head)
    assert gemm_flops(Case("masked", vocabulary, 0.1, 1)) == pytest.approx(want)


@pytest.mark.parametrize("case", list(cases())[:16], ids=lambda case: case.name)
def test_commands_are_understood(case: Case) -> None:
    config = parse_config(get_training_parser(), train_command(case, Path("data-bin")))
    assert config.common.log_interval == case.steps


def test_the_original_is_told_the_same_in_its_own_words() -> None:
    case = Case("masked", 8001, 0.1, 2)
    ours, its = train_command(case, Path("data-bin")), original_command(case, Path("data-bin"))
    assert "--device" not in its and its.count("--cpu") == 1
    assert set(ours) - set(its) == {"--device", "cpu"}
    settings = [parse_config(get_training_parser(), words) for words in (ours, its)]
    here, there = (x.changed(common=x.common.changed(device="cpu", cpu=True)) for x in settings)
    assert here == there


def test_an_interpreter_is_found_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert interpreter("bin/python") == str(tmp_path / "bin/python")
    with pytest.raises(argparse.ArgumentTypeError, match="no program bin/snake"):
        interpreter("bin/snake")
