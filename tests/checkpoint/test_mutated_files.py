"""Thousands of damaged checkpoints, side files and safetensors: an error, or what was written."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from tiny_run import faults

from fairseq.checkpoint.files import load_or_newest_good, write_checkpoint
from fairseq.errors import FairseqError
from fairseq.export.model_files import read_weights, sound_folder
from fairseq.files.safe_load import safe_load
from tests.data.storage.test_mutated_data import mutate


def state(step: int) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(step)
    return {
        "model": {f"w{n}": torch.randn(30, 7, generator=drawn) for n in range(3)},
        "optimizer_history": [{"num_updates": step}],
        "cfg": {"common": {"seed": step, "name": "x" * 100}},
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def outcomes(
    path: Path, times: int, load: Callable[[], Any], written: Any
) -> collections.Counter[str]:
    """Return how many mutations of a file were refused, harmless, or silently another content.

    Any error but one of ours ends the test.
    """
    good, rng = path.read_bytes(), random.Random(times)
    found: collections.Counter[str] = collections.Counter()
    for _ in range(times):
        path.write_bytes(mutate(good, rng))
        try:
            found["the same" if same(load(), written) else "another"] += 1
        except FairseqError:
            found["refused"] += 1
    path.write_bytes(good)
    return found


@pytest.mark.parametrize("times", faults(150, 5000))
def test_checkpoints(times: int, tmp_path: Path, figure: Callable[[str, Any], None]) -> None:
    path = tmp_path / "a.pt"
    write_checkpoint(state(1), str(path), {})
    found = outcomes(path, times, lambda: safe_load(path), state(1))
    figure("mutated checkpoints", dict(found))
    assert found["another"] == 0 and found["refused"] > 0.7 * times


@pytest.mark.parametrize("times", faults(60, 1000))
def test_side_files_never_decide_what_is_loaded(
    times: int, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    """The newest good checkpoint is found whatever the file beside it says."""
    for step in (10, 20):
        path = tmp_path / f"checkpoint_1_{step}.pt"
        write_checkpoint(state(step), str(path), {"num_updates": step})
    (tmp_path / "checkpoint_last.pt").write_bytes(b"damaged")
    side = tmp_path / "checkpoint_1_20.pt.json"
    assert json.loads(side.read_text(encoding="utf-8"))["num_updates"] == 20
    last = str(tmp_path / "checkpoint_last.pt")
    found = outcomes(side, times, lambda: load_or_newest_good(last)[1], state(20))
    figure("mutated side files", dict(found))
    assert found["refused"] == 0
    # a changed number of updates is the one lie that no digest covers: it may cost an interval
    assert found["another"] < 0.1 * times


@pytest.mark.parametrize("times", faults(100, 2000))
def test_safetensors(times: int, tmp_path: Path, figure: Callable[[str, Any], None]) -> None:
    """The format has no checksum, so a flipped weight or name cannot be told; no other error."""
    weights = state(1)["model"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(weights))

    def load() -> dict[str, Any]:
        with sound_folder(tmp_path):  # as the import does
            return shaped(read_weights(tmp_path))

    found = outcomes(path, times, load, shaped(weights))
    figure("mutated safetensors", dict(found))
    assert found["refused"] > 0.3 * times


def shaped(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what the structure of a file states: all but the numbers."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
