"""Averaged checkpoints against plain means."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq.checkpoint.average import average_checkpoints, last_n_checkpoints, write_average
from fairseq.errors import CheckpointError, FairseqError
from fairseq.files.safe_load import safe_load
from fairseq_cli.average import main

FLAGS = argparse.Namespace(task="masked_lm", arch="roberta_base", criterion="masked_lm")


def save(path: Path, value: float, dtype: torch.dtype = torch.float32, **more: object) -> str:
    state = {
        "model": {"w": torch.full((2, 2), value, dtype=dtype), "n": torch.tensor([int(value)])}
    }
    torch.save({**state, "last_optimizer_state": {"state": {}}, **more}, path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_mean_and_types(tmp_path: Path, dtype: torch.dtype) -> None:
    paths = [save(tmp_path / f"{v}.pt", v, dtype) for v in (1.0, 2.0, 6.0)]
    model = average_checkpoints(paths)["model"]
    assert model["w"].dtype == dtype and torch.equal(model["w"], torch.full((2, 2), 3.0).to(dtype))
    assert model["n"].tolist() == [3]


def test_half_precision_is_summed_in_fp32(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.pt", 40000.0, torch.float16) for i in range(3)]
    assert torch.isfinite(average_checkpoints(paths)["model"]["w"]).all()


def test_different_parameters_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a.pt", 1.0)
    torch.save({"model": {"v": torch.zeros(1)}}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="other parameters"):
        average_checkpoints([first, str(tmp_path / "b.pt")])


def test_weights_of_the_criterion_are_averaged_too(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{v}.pt", v, criterion={"w": torch.full((3,), 2 * v)}) for v in (1.0, 3.0)
    ]
    state = average_checkpoints(paths)
    assert torch.equal(state["criterion"]["w"], torch.full((3,), 4.0))
    assert torch.equal(state["model"]["w"], torch.full((2, 2), 2.0))
    bare = save(tmp_path / "bare.pt", 1.0, criterion=None)
    assert average_checkpoints([bare, bare])["criterion"] is None
    with pytest.raises(CheckpointError, match=r"other parameters.*criterion\.w"):
        average_checkpoints([paths[0], bare])


def test_what_is_of_one_file_alone_is_left_out(tmp_path: Path) -> None:
    extra = {"ema": {"w": torch.zeros(2, 2)}, "ema_fp32_params": {"w": torch.zeros(2, 2)}, "n": 1}
    paths = [save(tmp_path / f"{v}.pt", v, extra_state=dict(extra)) for v in (1.0, 3.0)]
    write_average(paths, str(tmp_path / "mean.pt"))
    state = safe_load(tmp_path / "mean.pt")
    assert state["extra_state"] == {"n": 1} and "last_optimizer_state" not in state


def test_newest_checkpoints_of_a_folder(tmp_path: Path) -> None:
    for name in ("checkpoint1", "checkpoint2", "checkpoint10", "checkpoint_1_5", "checkpoint_2_50"):
        save(tmp_path / f"{name}.pt", 1.0)
    names = [Path(p).stem for p in last_n_checkpoints([str(tmp_path)], 2, False)]
    assert names == ["checkpoint10", "checkpoint2"]
    assert Path(last_n_checkpoints([str(tmp_path)], 1, True)[0]).stem == "checkpoint_2_50"
    assert Path(last_n_checkpoints([str(tmp_path)], 1, True, 10)[0]).stem == "checkpoint_1_5"
    with pytest.raises(CheckpointError, match="3 matching"):
        last_n_checkpoints([str(tmp_path)], 4, False)


def test_command(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save(tmp_path / f"checkpoint{epoch}.pt", float(epoch))
    out = tmp_path / "mean.pt"
    words = ["--inputs", str(tmp_path), "--num-epoch-checkpoints", "2", "--output", str(out)]
    assert main(words) == 0
    state = torch.load(out, weights_only=True)
    assert torch.equal(state["model"]["w"], torch.full((2, 2), 2.5))
    assert "last_optimizer_state" not in state


def test_the_original_s_script(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{v}.pt", v) for v in (1.0, 3.0)]
    script = Path(__file__).resolve().parents[2] / "scripts" / "average_checkpoints.py"
    words = [sys.executable, str(script), "--inputs", *paths, "--output", str(tmp_path / "mean.pt")]
    subprocess.run(words, check=True, capture_output=True)
    mean = torch.load(tmp_path / "mean.pt", weights_only=True)["model"]["w"]
    assert torch.equal(mean, torch.full((2, 2), 2.0))


@pytest.mark.parametrize(("maximize", "best"), [(False, 1.5), (True, 3.5)])
def test_the_best_are_those_of_the_metric(tmp_path: Path, maximize: bool, best: float) -> None:
    flags = argparse.Namespace(**vars(FLAGS), maximize_best_checkpoint_metric=maximize)
    for value in (1.0, 2.0, 3.0, 4.0):
        save(tmp_path / f"checkpoint.best_metric_{value}.pt", value, args=flags)
    words = ["--inputs", str(tmp_path), "--num-best-checkpoints", "2"]
    assert main([*words, "--output", str(tmp_path / "out" / "mean.pt")]) == 0
    mean = torch.load(tmp_path / "out" / "mean.pt", weights_only=False)["model"]["w"]
    assert torch.equal(mean, torch.full((2, 2), best))


REFUSED = {
    "files --checkpoint-upper-bound 2": "--checkpoint-upper-bound needs --num-epoch-checkpoints",
    "run --num-best-checkpoints 2 --checkpoint-upper-bound 2": "--checkpoint-upper-bound needs",
    "run --num-best-checkpoints 3": "run has 2 matching checkpoints, 3 are needed",
    "run run --num-best-checkpoints 2": "give exactly one run folder",
    "run/checkpoint1.pt --num-best-checkpoints 1": "checkpoint1.pt is not a run folder",
    "several --num-best-checkpoints 1": r"the best of several metrics \(a_b, loss\); name files",
    "none --num-best-checkpoints 1": "--keep-best-checkpoints N",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_choice_that_cannot_be_made_is_refused(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "run": ("checkpoint1", "checkpoint.best_loss_1.0000", "checkpoint.best_loss_2.0001"),
        "several": ("checkpoint.best_loss_1.0000", "checkpoint.best_a_b_-2.0001"),
        "none": ("checkpoint1",),
    }
    for folder, stems in names.items():
        (tmp_path / folder).mkdir()
        for stem in stems:
            save(tmp_path / folder / f"{stem}.pt", 1.0, args=FLAGS)
    inputs = words.replace("files", "run/checkpoint1.pt none/checkpoint1.pt").split()
    with pytest.raises(FairseqError, match=REFUSED[words]):
        main(["--inputs", *inputs, "--output", "mean.pt"])
    assert not (tmp_path / "mean.pt").exists()


@pytest.mark.parametrize("count", ["-1", "0", "x"])
def test_a_count_below_one_is_refused(
    tmp_path: Path, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--inputs", str(tmp_path), "--output", str(tmp_path / "mean.pt")]
    with pytest.raises(SystemExit):
        main([*words, "--num-epoch-checkpoints", count])
    assert f"'{count}' is no number of checkpoints" in capsys.readouterr().err
