"""Minimal pairs against one forward pass per token; ties, sets, files, the flag of two commands."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_last_word import Spelling, decoder, encoder, naive_causal, naive_masked
from test_last_word import trained as trained

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.evaluation.minimal_pairs import describe, minimal_pairs, read_pairs
from fairseq_cli import eval_lm, validate

# sets, sentences; the last three are a tie by spelling, one by unknown words, and no tie
PAIRS = [
    *(("one", f"ab {x}d efg", f"ab d{x} efg") for x in "abce"),
    *(("one", f"ab d{x} efg", f"ab {x}d efg") for x in "fghi"),
    ("two", "a  b", "a b"),
    ("two", "yy", "zz"),
    ("two", "a b c d", "d c"),
]


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_against_one_pass_per_token(make: Any, batch_size: int) -> None:
    model, task = make(position="alibi")
    naive = naive_causal if make is decoder else partial(naive_masked, rest=False)

    def log_prob(text: str) -> float:
        pieces = Spelling().encode(" ".join(text.split())).split()
        with torch.no_grad():
            return float(naive(model, task, pieces, len(pieces))[0])

    scores = [(log_prob(good), log_prob(bad)) for _, good, bad in PAIRS]
    scores[8] = scores[9] = (0.0, 0.0)
    right = [good > bad for good, bad in scores]
    assert 0 < sum(right) < len(right)
    found = minimal_pairs([model], task, Spelling(), PAIRS, batch_size)
    assert found == {
        "accuracy": sum(right) / 11,
        "pairs": 11,
        "ties": 2,
        "unknown": 1,
        "sets": {"one": sum(right[:8]) / 8, "two": sum(right[8:]) / 3},
    }
    lines = describe(found).splitlines()
    assert len(lines) == 3 and lines[2].endswith("(11 pairs, 2 ties, 1 unknown)")


def test_a_model_without_opinions_is_right_about_nothing() -> None:
    model, task = decoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = minimal_pairs([model], task, Spelling(), [("x", "a b c", "c b a")])
    assert (found["accuracy"], found["ties"]) == (0, 1)


def write(path: Path, *pairs: tuple[str, str]) -> str:
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": "x"} for good, bad in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_and_folders(tmp_path: Path) -> None:
    first = write(tmp_path / "b.jsonl", ("good", "bad"), ("fine", "poor"))
    write(tmp_path / "a.jsonl", ("yes", "no"))
    assert read_pairs(first) == [("b", "good", "bad"), ("b", "fine", "poor")]
    assert read_pairs(str(tmp_path)) == [("a", "yes", "no"), *read_pairs(first)]
    (tmp_path / "c.jsonl").write_text('{"sentence_good": "x"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl, line 1.*'sentence_bad'.*--minimal-pairs"):
        read_pairs(str(tmp_path))
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no pair"):
        read_pairs(str(tmp_path / "c.jsonl"))
    with pytest.raises(MissingFileError):
        read_pairs(str(tmp_path / "d.jsonl"))


def test_the_flag(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(trained / "pairs.jsonl", ("now cat dog", "now dog cat"), ("now cow", "now cow"))
    run = validate.run if trained.name.startswith("masked") else eval_lm.run
    words = [str(trained / "bin"), "--path", str(trained / "checkpoint_last.pt"), "--cpu"]
    capsys.readouterr()
    assert run([*words, "--minimal-pairs", pairs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["ties"]) == (2, 1)
    if run is eval_lm.run:  # it has learned which animal comes after which
        assert found["accuracy"] == 0.5
    assert run([*words, "--minimal-pairs", pairs, "--log-format", "none"]) == 0
    assert "minimal pairs: accuracy" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="one at a time"):
        run([*words, "--minimal-pairs", pairs, "--last-word", pairs])
