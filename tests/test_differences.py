"""Each row of docs/differences.md and of docs/migrating.md's tables names the tests that prove it.

What no other test shows stands at the end of this file.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT, text_of
from tiny_run import Recorder, config, content, make_corpus, train

from fairseq.config import options
from fairseq.evaluation import perplexity
from fairseq.logging.sinks import read_jsonl
from fairseq.tasks.base import FairseqTask
from fairseq.training.trainer import Trainer

TESTS = ROOT / "tests"
# the tables of flags and of names, which tests/test_docs.py compares with the code
GENERATED = {"flags", "names", "old", "kind"}
# `make matrix` runs the suite on the interpreters it finds
UNPROVED = {"Python 3.11 and later"}


def proofs(page: str = "") -> list[tuple[str, str, str]]:
    """Return (row, file, test) of what ``row_proofs.txt`` says of a page, or of all."""
    found, about = [], ""
    for line in text_of(TESTS / "row_proofs.txt").splitlines():
        if line.startswith("#"):
            about = line
            continue
        if not about.endswith(page):
            continue
        row, rest = line.split(" -> ")
        path, names = rest.split(": ")
        found += [(row, path, name) for name in names.split()]
    return found


def rows(name: str) -> list[str]:
    """Return the first cells of every table of a page but those that other tests compare."""
    found, heads = [], []
    for line in text_of(ROOT / "docs" / name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            heads = []
        elif heads and heads[0] not in GENERATED and not cells[0].startswith("---"):
            found.append(cells[0])
        heads = heads or (cells if line.startswith("|") else [])
    return found


def stands_for(row: str, cell: str) -> bool:
    """Tell whether a row is meant; the beginning of a cell is long enough not to be another's."""
    return row == cell or len(row) > 9 and cell.startswith(row)


@pytest.mark.parametrize("page", ["differences.md", "migrating.md"])
def test_every_row_names_its_proof(page: str) -> None:
    stated = {row for row, _, _ in proofs(page)} | UNPROVED
    found = rows(page)
    assert len(found) > 25
    assert [cell for cell in found if not any(stands_for(row, cell) for row in stated)] == []
    assert [row for row in stated - UNPROVED if not any(stands_for(row, c) for c in found)] == []


@pytest.mark.parametrize("path", sorted({path for _, path, _ in proofs()}))
def test_the_proofs_exist(path: str) -> None:
    names = {
        node.name
        for node in ast.walk(ast.parse(text_of(TESTS / path)))
        if isinstance(node, ast.FunctionDef)
    }
    wanted = {f"test_{name}" for _, file, name in proofs() if file == path}
    assert wanted <= names


# -- what no other test shows ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "bin", train_lines=24, valid_lines=12)


def test_so_many_batches_are_validated_and_a_run_has_a_best_of_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    original = FairseqTask.valid_step

    def valid_step(self: Any, *args: Any) -> Any:
        steps.append(1)
        return original(self, *args)

    monkeypatch.setattr(FairseqTask, "valid_step", valid_step)
    flags = {"batch_size_valid": 2, "max_update": 1}
    for limit, expected in ((None, 4), (1, 1), (3, 3)):
        steps.clear()
        train(config(data, tmp_path / f"{limit}", max_valid_steps=limit, **flags))
        assert len(steps) == expected
    # the first run is better: a best that outlived it would be the second one's, too
    better, worse = (
        train(config(data, tmp_path / name, max_update=4, lr=[lr]))
        for name, lr in (("good", 1e-3), ("bad", 3.0))
    )
    assert better is not None and worse is not None and better < worse
    state = content(tmp_path / "bad" / "checkpoint_last.pt")["extra_state"]
    assert state["best"] == state["val_loss"] == worse


def test_figures_go_on_between_two_epochs(data: Path, tmp_path: Path) -> None:
    flags = {"log_interval": 3, "max_update": 8}
    train(config(data, tmp_path / "whole", **flags))
    train(config(data, tmp_path / "parts", **flags, max_epoch=1))
    train(config(data, tmp_path / "parts", **flags))
    left, right = (
        [r for r in read_jsonl(tmp_path / name / "metrics.jsonl") if r["tag"] == "train_inner"]
        for name in ("whole", "parts")
    )
    updates = content(tmp_path / "parts" / "checkpoint1.pt")["optimizer_history"][-1]["num_updates"]
    assert updates % 3, "the epoch ends in the middle of an interval"
    assert [(r["update"], r["loss"], r["wpb"]) for r in left] == [
        (r["update"], r["loss"], r["wpb"]) for r in right
    ]


def test_the_curve_ends_with_the_run(data: Path) -> None:
    words = "--task masked_lm --arch roberta_tiny --criterion masked_lm --optimizer adam".split()
    words += "--lr-scheduler polynomial_decay --batch-size 4 --max-update 70".split()
    for more, expected in (([], 70), (["--total-num-update", "90"], 90)):
        parser = options.get_training_parser(argv=())
        cfg = options.parse_config(parser, [str(data), *words, *more])
        assert cfg.lr_scheduler.total_num_update == expected


@pytest.mark.parametrize("data_rng", ["philox", "fairseq-main"])
def test_every_micro_batch_and_process_has_a_stream(
    data: Path, tmp_path: Path, data_rng: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    original = FairseqTask.train_step

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        seeds.append(torch.initial_seed())
        return original(self, *args, **kwargs)

    def as_another_process(trainer: Trainer, calls: int) -> None:
        trainer.rank = 1
        trainer._seed(0)
        seeds.append(torch.initial_seed())
        trainer.rank = 0

    monkeypatch.setattr(FairseqTask, "train_step", train_step)
    Recorder(monkeypatch, as_another_process)
    train(config(data, tmp_path, max_update=2, update_freq=[2], data_rng=data_rng))
    # twice: a process that is not there and two micro-batches (an epoch of the original is shorter)
    assert len(seeds) == (6 if data_rng == "philox" else 5)
    assert len(set(seeds)) == (6 if data_rng == "philox" else 2)


def test_causal_evaluation_takes_the_checkpoints_settings(shared: Path) -> None:
    folder = shared / "compat" / "checkpoints"
    given = {"path": str(folder / "fb_lm" / "model.pt"), "data": str(folder / "data-bin")}
    given |= {"cpu": True, "log_format": "none", "num_workers": 0, "batch_size": 16}
    given["gen_subset"] = "valid"
    own, same = perplexity.evaluate(given), perplexity.evaluate({**given, "tokens_per_sample": 64})
    assert own["loss"] == same["loss"] and own["tokens"] == same["tokens"]


def test_what_migrating_says_is_absent_is_absent() -> None:
    import importlib.util
    import tomllib

    scripts = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["scripts"]
    assert "fairseq-score" not in scripts and "fairseq-train" in scripts
    for name in (
        "tasks.translation",
        "models.wav2vec",
        "model_parallel",
        "models.transformer_align",
    ):
        assert importlib.util.find_spec(f"fairseq.{name}") is None


def test_components_that_are_said_to_be_absent_are_unknown() -> None:
    text = text_of(ROOT / "docs" / "migrating.md")
    kinds = {"tasks": "task", "architectures": "arch", "text encoders (`--bpe`)": "bpe"}
    for title, flag in {**kinds, "tokenizers": "tokenizer"}.items():
        (cell,) = re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", text, re.M)
        names = re.findall(r"`(\w+)`", cell.partition("are new")[0].partition(";")[0])
        assert len(names) > 1 and not set(names) & set(options.known_names(flag))


def test_a_checkpoint_in_shards_is_refused() -> None:
    from fairseq.errors import CheckpointError
    from fairseq.hub.load import load_model_ensemble

    with pytest.raises(CheckpointError, match="in 2 shards cannot be loaded"):
        load_model_ensemble(["checkpoint-shard0.pt"], num_shards=2)
