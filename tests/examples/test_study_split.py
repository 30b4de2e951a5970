"""What halves of the published method do: the claims follow from figures that are made up here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples/clap_alibi")]

import split  # noqa: E402
import studies  # noqa: E402

SUBSETS = ("valid", "valid1", "test", "test1")
BITS = {"baseline": 9.0, "alibi": 8.5, "zero mask": 9.0, "zero-clap": 9.2, "zero-clap + alibi": 7.0}
NOISE = {1: 0.0, 2: 0.01, 3: -0.01}


def result(name: str, seed: int) -> dict[str, Any]:
    """Return a run that ends at its bits; ALiBi is a tenth better in longer blocks."""
    end = BITS[name] + (NOISE[seed] if name == "zero mask" else 0)

    def at(length: int) -> dict[str, Any]:
        if length > split.LENGTH and "alibi" not in name:
            return {"refused": "positions"}
        return {subset: {"loss": end - (0.1 if length > 64 else 0)} for subset in SUBSETS}

    lengths = {str(length): at(length) for length in (64, 128, 256)}
    curve = [{"update": n, "loss": end + (20 - n) / 20} for n in range(1, 21)]
    return {"name": name, "seed": seed, "curve": curve, "seconds": 1.0, "tokens": 5, "flops": 7.0,
            "bits": {str(draw): lengths for draw in split.REDRAWS}}  # fmt: skip


@pytest.fixture
def printed() -> dict[str, str]:
    runs = [result(name, seed) for seed in studies.SEEDS for name in split.ARMS]
    floors = {subset: {"bidirectional bigram": 8.0, "unigram": 10.0} for subset in SUBSETS}
    tuned = {name: {"rate": 0.001} for name in split.ARMS}
    lines = split.tables({"results": runs, "floors": floors, "tuned": tuned}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line]
    return {row[0]: row[-1] for row in cells if len(row) == 3}


def test_the_readme_holds_the_printed_tables() -> None:
    readme = (ROOT / "examples/clap_alibi/README.md").read_text(encoding="utf-8")
    for table in split.tables(studies.read(split.RESULT)).split("\n\n"):
        assert table.strip() in readme


def test_an_arm_that_was_not_run_is_compared_with_nothing() -> None:
    names = [name for name in split.ARMS if name != "zero-clap"]
    runs = [result(name, seed) for seed in studies.SEEDS for name in names]
    floors = {subset: {"bidirectional bigram": 8.0, "unigram": 10.0} for subset in SUBSETS}
    tuned = {name: {"rate": 0.001} for name in names}
    printed = split.tables({"results": runs, "floors": floors, "tuned": tuned})
    assert "alibi is below baseline on valid" in printed
    assert "zero-clap is" not in printed and "below zero-clap " not in printed


def test_verdicts_follow(printed: dict[str, str]) -> None:
    assert printed["alibi is below baseline on valid"] == "holds"
    assert printed["zero mask is below baseline on test"] == "cannot be told"
    assert printed["zero-clap is below zero mask on test1"] == "does not hold"
    assert printed["baseline is below the bidirectional bigram on test"] == "does not hold"
    assert printed["zero-clap + alibi is below the bidirectional bigram on valid1"] == "holds"
    assert printed["alibi is better in blocks of 256 on test"] == "holds"
    assert printed["baseline in blocks of 128"] == ""


def test_shares_of_the_baselines_updates(printed: dict[str, str]) -> None:
    base = [result("baseline", 1)]
    assert split.share_of_budget([result("alibi", 1)], base) == [0.5]
    assert split.share_of_budget([result("zero-clap", 1)], base) == [None]
    assert split.share_of_budget(base, base) == [1.0]
    claim = "{} is where the baseline ends before 0.75 of its updates"
    assert printed[claim.format("alibi")] == "holds"
    assert printed[claim.format("zero-clap")] == "does not hold"
    assert printed[claim.format("baseline")] == "does not hold"


def test_a_run_is_what_its_arm_says() -> None:
    words = " ".join(split.run("zero mask", 1, 0.002, 1_024_000).words)
    assert "--lr 0.002 " in words and "--max-update 1000 " in words
    assert "--validate-interval-updates 50 " in words and "--mask-embedding zero" in words
    assert "--head" not in words and "--position" not in words
    assert len({split.run(name, 1, 0.1, 99_999).words for name in split.ARMS}) == len(split.ARMS)


def test_one_run_and_its_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "the cat sees a dog near an old house by the sea".split()
    lines = [" ".join(words[(i * j) % 12] for j in range(1, 9)) + "\n" for i in range(300)]
    sources = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(sources):
        folder.mkdir()
        for name, step in (("train", 1), ("valid", 4 + number), ("test", 5 + number)):
            (folder / f"{name}.txt").write_text("".join(lines[::step]))
    out = tmp_path / "out"
    data = studies.prepare(sources, out, 270)
    monkeypatch.setattr(split, "REDRAWS", (1,))
    run = split.run("baseline", 1, 0.001, 10, 1)
    (done,) = studies.run_all([run], data, out, split.measure)
    assert done["flops"] > 0 and done["tokens"] > 0
    checkpoint = run.folder(out) / "checkpoint_last.pt"
    floors = split.masked_bits(checkpoint, data, SUBSETS, 1)
    measured = done["bits"]["1"]["64"]
    assert set(floors) == set(measured) == set(SUBSETS)
    for subset, found in floors.items():
        assert 0 < found["bidirectional bigram"] < found["unigram"] < split.bits(done, subset)
        encoded = (out / f"{subset}.bpe").read_text(encoding="utf-8")
        pieces = len(encoded.split()) + encoded.count("\n")
        assert found["predicted"] == pytest.approx(0.15 * pieces, rel=0.2)
