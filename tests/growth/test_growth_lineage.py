"""What a grown model has cost: every way to the same weights counts the same runs, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from fairseq.export.add_head import add_head
from fairseq_cli import grow

LAST = "checkpoint_last.pt"
BIG = {
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 3,
}
SIZES = [f"--{name.replace('_', '-')}={value}" for name, value in BIG.items()]


def trained(folder: Path, name: str, **flags: Any) -> Path:
    tiny_run.train(tiny_run.config(folder / "data", folder / name, **{"max_update": 2, **flags}))
    return folder / name / LAST


def record(path: Path) -> dict[str, Any]:
    kept: dict[str, Any] = tiny_run.content(path)["extra_state"]["fairseq_lm"]
    return kept


def own(path: Path) -> int:
    """Return the operations of a run alone."""
    return int(record(path)["progress"]["flops"])


def shown(path: Path) -> float:
    """Return the operations that a run tells in the end."""
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").open()]
    return float([row for row in rows if row["tag"] == "train_inner"][-1]["flops"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lineage")
    tiny_run.make_corpus(folder / "data")
    trained(folder, "small")
    trained(
        folder, "operator", arch="ligo_roberta", ligo_source=str(folder / "small" / LAST), **BIG
    )
    return folder


def test_by_the_command_as_in_one_step(folder: Path) -> None:
    small, wide = folder / "small" / LAST, folder / "wide.pt"
    command = [str(small), "--out", str(wide), "--method", "fpi", *SIZES]
    assert grow.main([*command, "--data", str(folder / "data")]) == 0
    one = trained(folder, "one", grow_from=str(small), grow_method="fpi", **BIG)
    two = trained(folder, "two", finetune_from_model=str(wide), **BIG)
    assert shown(one) == shown(two) == own(small) + own(one)
    first, second = record(two)["lineage"]
    assert [first] == record(one)["lineage"] == record(wide)["lineage"]
    assert (second["method"], second["source"], second["updates"]) == ("finetune", "wide.pt", 0)
    # what makes sure that ids mean the same words
    assert record(wide)["dictionaries"] == record(small)["dictionaries"]


def test_an_operator_begins_with_its_source(folder: Path, tmp_path: Path) -> None:
    """Also where it goes on, and in what it grows: the source, the operator, then the run."""
    small, operator = (folder / name / LAST for name in ("small", "operator"))
    assert [step["method"] for step in record(operator)["lineage"]] == ["ligo"]
    assert record(operator)["lineage"][0]["flops"] == own(small)
    assert shown(operator) == own(small) + own(operator)
    before = record(operator)["lineage"]
    flags = {"arch": "ligo_roberta", "ligo_source": str(small), "max_update": 3, **BIG}
    assert record(trained(folder, "operator", **flags))["lineage"] == before
    grown = trained(folder, "grown", grow_from=str(operator), **BIG)
    assert [step["method"] for step in record(grown)["lineage"]] == ["ligo", "ligo"]
    assert shown(grown) == own(small) + own(operator) + own(grown)
    for name, words in (
        ("alone.pt", [str(operator)]),
        ("with.pt", [str(small), "--operator", str(operator), "--method", "ligo"]),
    ):
        out = tmp_path / name
        assert grow.main([*words, "--out", str(out), "--data", str(folder / "data")]) == 0
        assert record(out)["lineage"] == record(grown)["lineage"]


def test_a_head_that_is_added_keeps_what_was_paid(folder: Path, tmp_path: Path) -> None:
    headless = trained(folder, "headless", **tiny_run.HEADLESS)
    add_head(headless, tmp_path / "head.pt", "tied", data=folder / "data")
    (step,) = record(tmp_path / "head.pt")["lineage"]
    assert (step["method"], step["source"], step["flops"]) == ("add_head", LAST, own(headless))
    tuned = trained(
        folder, "tuned", finetune_from_model=str(tmp_path / "head.pt"), head="clap",
        clap_normalize=False,
    )  # fmt: skip
    assert shown(tuned) == own(headless) + own(tuned)
