"""Texts on the command line: continued by causal models, filled by masked ones."""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.errors import ConfigError, DataError
from fairseq.hub.continue_text import text_writer
from fairseq.hub.fill_text import MaskFiller
from fairseq.models.roberta import RobertaModel
from fairseq.training import loop
from fairseq_cli import generate, interactive
from tests import tiny_run
from tests.hub.test_generation import by_kind, lm  # noqa: F401 - the fixture


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Train a masked model for a few updates; return the flags that name it."""
    folder = tmp_path_factory.mktemp("masked")
    data = tiny_run.make_corpus(folder / "data-bin")
    torch.set_num_threads(1)
    loop.run_training(tiny_run.config(data, folder / "run"))
    return ["--path", str(folder / "run" / "checkpoint_last.pt"), "--cpu"]


TEXT = "w3 w6 <mask> w12 w15"


def test_one_mask_is_filled_as_by_the_hub(masked: list[str], capsys: Any) -> None:
    assert generate.run([*masked, "--text", TEXT, "--nbest", "7"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == TEXT and lines.pop() == ""
    path = Path(masked[1])
    hub = RobertaModel.from_pretrained(
        str(path.parent), path.name, str(path.parents[1] / "data-bin")
    )
    expected = [f"  {share:.3f}  {text}" for text, share, _ in hub.fill_mask(TEXT, topk=7)]
    assert lines == expected


def test_several_masks_against_every_filling(masked: list[str]) -> None:
    filler = text_writer({"path": masked[1], "cpu": True, "nbest": 10_000}, guess=True)
    assert isinstance(filler, MaskFiller)
    text = "w3 <mask> w9 <mask> w15"
    (found,) = filler.continue_lines([text])
    hub, dictionary = filler.hub, filler.hub.task.source_dictionary
    tokens = hub.encode_masked(text)
    places = [2, 4]

    def bits(ids: torch.Tensor, place: int) -> torch.Tensor:
        with torch.no_grad():
            logits = hub.model.eval()(ids[None])[0][0, place]
        return torch.log_softmax(logits, -1) / math.log(2)

    allowed = hub.fillable().nonzero()[:, 0].tolist()
    best = [max(float(bits(tokens, place)[index]) for index in allowed) for place in places]
    first, second = places if best[0] >= best[1] else places[::-1]
    scores = {}
    for one in allowed:
        filled = tokens.clone()
        filled[first] = one
        alone, given = bits(tokens, first)[one], bits(filled, second)
        for other in allowed:
            words = {first: dictionary[one], second: dictionary[other]}
            scores[f"w3 {words[2]} w9 {words[4]} w15"] = float(alone + given[other])
    for hypothesis in found.hypotheses:
        total = sum(hypothesis.positional_scores)
        assert total == pytest.approx(scores[hypothesis.text], abs=1e-3)
    ranked = [sum(one.positional_scores) for one in found.hypotheses]
    assert len(ranked) == len(scores) and ranked == sorted(ranked, reverse=True)


def test_a_narrow_beam_keeps_no_text_twice(masked: list[str]) -> None:
    filler = text_writer({"path": masked[1], "cpu": True, "nbest": 4}, guess=True)
    (found,) = filler.continue_lines(["<mask> <mask> <mask>"])
    texts = [one.text for one in found.hypotheses]
    assert len({*texts}) == 4 and all(len(text.split()) == 3 for text in texts)


def test_lines_and_json_of_a_masked_model(masked: list[str], capsys: Any) -> None:
    argv = [*masked, "--text", TEXT, "--text", "w1 <mask>", "--nbest", "2"]
    generate.run([*argv, "--format", "fairseq"])
    kinds = by_kind(capsys.readouterr().out)
    assert kinds["S"] == [["0", TEXT], ["1", "w1 <mask>"]]
    assert len(kinds["H"]) == len(kinds["D"]) == len(kinds["P"]) == 4
    generate.run([*argv, "--json"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in records] == [fields[2] for fields in kinds["D"]]
    assert [record["id"] for record in records] == [0, 0, 1, 1]


def test_a_causal_model_continues(lm: dict[str, Any], capsys: Any) -> None:  # noqa: F811
    argv = ["--path", lm["path"], "--cpu", "--text", "w3 w6", "--max-len-b", "6"]
    generate.run([*argv, "--beam", "2"])
    (line,) = capsys.readouterr().out.splitlines()
    generate.run([lm["data"], *argv, "--beam", "2", "--format", "fairseq"])
    kinds = by_kind(capsys.readouterr().out)
    assert kinds["D"][0][2] == line and line.startswith("w3 w6")
    generate.run([*argv, "--beam", "3", "--nbest", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1.", "2."]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_interactive_is_readable_on_a_terminal(
    masked: list[str],
    lm: dict[str, Any],  # noqa: F811
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    prompts = tmp_path / "in.txt"
    prompts.write_text(f"{TEXT}\nno mask here\n")
    data = str(Path(masked[1]).parents[1] / "data-bin")
    argv = [data, *masked, "--input", str(prompts)]
    interactive.run(argv)
    kinds = by_kind(capsys.readouterr().out)
    assert kinds["S"][0] == ["0", TEXT] and len(kinds["H"]) == 5  # none for the second line
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    interactive.run(argv)
    shown = screen.getvalue().splitlines()
    assert shown[0] == TEXT and shown[6:] == ["", "no mask here", ""]
    monkeypatch.setattr(sys, "stdout", again := Terminal())
    interactive.run([*argv, "--format", "fairseq"])
    kept = [line for line in again.getvalue().splitlines() if line[0] != "W"]
    assert kept == [f"{k}-" + "\t".join(f) for k, f in ordered(kinds)]


def ordered(kinds: dict[str, list[list[str]]]) -> list[tuple[str, list[str]]]:
    """The fields in the order in which they were printed, without seconds."""
    found = []
    for number in range(len(kinds["S"])):
        mine = {k: [f for f in kinds[k] if f[0] == str(number)] for k in "SHDP"}
        found += [("S", f) for f in mine["S"]]
        groups = zip(mine["H"], mine["D"], mine["P"], strict=True)
        found += list(itertools.chain.from_iterable(zip("HDP", g, strict=True) for g in groups))
    return found


def test_what_cannot_be_filled(masked: list[str], lm: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(DataError, match="the model takes 16: shorten it"):
        generate.run([*masked, "--text", "w1 " * 20 + "<mask>"])
    two = ["--path", f"{masked[1]}:{masked[1]}", "--cpu"]
    with pytest.raises(ConfigError, match="not by an ensemble"):
        generate.run([*two, "--text", TEXT])
    with pytest.raises(ConfigError, match="--path is missing"):
        generate.run(["--text", TEXT])
