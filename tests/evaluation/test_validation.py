"""A training run and fairseq-validate print the same figures, whatever the precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import config, content, make_corpus, train

from fairseq.evaluation import validate
from fairseq.logging.meters import exact
from fairseq.tasks.masked_lm import MaskedLMTask

FIGURES = ("loss", "ppl", "wpb", "bsz")
PRECISIONS = {
    "fp32": {},
    "bf16": {"bf16": True},
    "amp": {"amp": True},
    "ema": {"store_ema": True, "ema_decay": 0.5},
    "ema of bf16": {"bf16": True, "store_ema": True, "ema_decay": 0.5, "ema_fp32": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data", valid_lines=10)


def trained(data: Path, folder: Path, **flags: Any) -> dict[str, Any]:
    """Train; return the figures of the last validation, as the run folder keeps them."""
    train(config(data, folder, **flags))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [record for record in records if record.get("tag") == "valid"][-1]


def evaluated(data: Path, folder: Path, **more: Any) -> dict[str, Any]:
    path = str(folder / "checkpoint_last.pt")
    given = {"path": path, "data": str(data), "cpu": True, "log_format": "none", **more}
    return {name: float(exact(value)) for name, value in validate(given)["valid"].items()}


def of_the_average(task: Any, sample: Any, model: Any, criterion: Any, ema_model: Any) -> Any:
    return criterion(ema_model.eval(), sample)


@pytest.mark.parametrize("flags", PRECISIONS.values(), ids=PRECISIONS)
def test_both_commands_print_the_same(
    flags: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "store_ema" in flags:
        taught = MaskedLMTask.train_step
        monkeypatch.setattr(MaskedLMTask, "uses_ema", True)
        monkeypatch.setattr(MaskedLMTask, "valid_step", of_the_average)
        monkeypatch.setattr(
            MaskedLMTask, "train_step", lambda *args, ema_model, **more: taught(*args, **more)
        )
    printed, found = trained(data, tmp_path, **flags), evaluated(data, tmp_path)
    assert {name: found[name] for name in FIGURES} == {name: printed[name] for name in FIGURES}
    dtype = torch.bfloat16 if "bf16" in flags else torch.float32
    assert {x.dtype for x in content(tmp_path / "checkpoint_last.pt")["model"].values()} == {dtype}


def test_subsets_that_training_joins_are_joined_again(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    for end in ("bin", "idx"):
        shutil.copy(folder / f"train.{end}", folder / f"valid1.{end}")
    printed = trained(folder, tmp_path / "run", combine_valid_subsets=True)
    found, alone = (
        evaluated(folder, tmp_path / "run", combine_valid_subsets=joined)
        for joined in (True, False)
    )
    assert {name: found[name] for name in FIGURES} == {name: printed[name] for name in FIGURES}
    assert evaluated(folder, tmp_path / "run")["loss"] == found["loss"] != alone["loss"]


@pytest.mark.parametrize("name", ["bf16", "amp", "ema"])
def test_the_precision_is_seen_in_the_figures(name: str, data: Path, tmp_path: Path) -> None:
    flags = PRECISIONS[name]
    trained(data, tmp_path, **flags)
    as_trained = evaluated(data, tmp_path)["loss"]
    other = evaluated(data, tmp_path, **dict.fromkeys(flags, False))["loss"]
    # an average that no task asks for changes nothing
    assert (as_trained == other) is (name == "ema")


def test_hooks_of_the_task_add_figures_to_both(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def post_validate(task: Any, model: Any, stats: dict[str, Any], agg: Any) -> None:
        stats["twice_the_loss"] = 2 * float(agg["loss"].avg)

    def begin(task: Any, epoch: int, model: Any) -> None:
        seen.append(epoch)

    monkeypatch.setattr(MaskedLMTask, "post_validate", post_validate)
    monkeypatch.setattr(MaskedLMTask, "begin_valid_epoch", begin)
    printed, found = trained(data, tmp_path, max_update=2), evaluated(data, tmp_path)
    assert found["twice_the_loss"] == printed["twice_the_loss"] == 2 * found["loss"]
    assert seen == [1, 1]
