"""What a checkpoint claims, against what it holds, before anything is built from it."""

from __future__ import annotations

import argparse
import copy
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairseq.checkpoint.layout import config_of, upgrade_state
from fairseq.errors import CheckpointError
from fairseq.files.safe_load import safe_load
from fairseq.files.tensor_sizes import check_sizes
from fairseq.hub.load import load_model_ensemble_and_task

HUGE = 10**9


@pytest.fixture(scope="module", params=["fb_baseline", "fb_lm"])
def source(request: Any, shared: Path) -> tuple[dict[str, Any], str]:
    """Return a checkpoint of the original, and the folder of its data."""
    folder = shared / "compat/checkpoints"
    return safe_load(folder / f"{request.param}/model.pt"), str(folder / "data-bin")


def claiming(state: dict[str, Any], section: str, **claims: Any) -> dict[str, Any]:
    changed = {**state, "cfg": copy.deepcopy(state["cfg"])}
    if isinstance(changed["cfg"][section], argparse.Namespace):
        changed["cfg"][section] = vars(changed["cfg"][section])
    changed["cfg"][section].update(claims)
    return changed


@pytest.mark.parametrize(
    "part", ["layers", "embed_dim", "ffn_embed_dim", "max_positions", "attention_heads"]
)
def test_sizes_that_no_tensor_has(part: str, source: Any, tmp_path: Path) -> None:
    state, data = source
    side = "encoder" if "encoder.lm_head.weight" in state["model"] else "decoder"
    name = "max_positions" if side == "encoder" else "max_target_positions"
    name = name if part == "max_positions" else f"{side}_{part}"
    torch.save(claiming(state, "model", **{name: HUGE}), tmp_path / "a.pt")
    begin = time.monotonic()
    with pytest.raises(Exception, match=rf"{name} is {HUGE}|{HUGE} attention heads") as caught:
        load_model_ensemble_and_task([str(tmp_path / "a.pt")], {"data": data})
    assert "fairseq.errors" in str(type(caught.value)) and time.monotonic() - begin < 20


def test_true_sizes_pass(source: Any) -> None:
    state = upgrade_state({**source[0]})
    config = config_of(state)
    check_sizes(config, {})  # nothing to compare with: a plug-in's names may be others
    assert config.distributed_training.distributed_world_size == -1


def test_nothing_about_processes_comes_from_a_file(source: Any) -> None:
    state = claiming(source[0], "dataset", num_workers=64, data_buffer_size=10**6)
    state["cfg"]["distributed_training"] = {
        "distributed_world_size": 512, "distributed_init_method": "tcp://10.0.0.1:1",
    }  # fmt: skip
    config = config_of(upgrade_state(state))
    assert (config.dataset.num_workers, config.dataset.data_buffer_size) == (1, 10)
    assert config.distributed_training.distributed_world_size == -1
    assert config.distributed_training.distributed_init_method is None
    assert config_of(upgrade_state(state), {"num_workers": 3}).dataset.num_workers == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.zeros(4, 1).expand(4, 10**11),
        lambda: torch.zeros(10**4).as_strided((10**6, 10**4), (0, 1)),
        lambda: torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (10**12,)),
        lambda: torch.empty(10**12, device="meta"),
    ],
    ids=["expanded", "rows", "strided", "sparse", "meta"],
)
@pytest.mark.parametrize("place", ["model", "last_optimizer_state"])
def test_a_tensor_that_is_not_in_the_file(place: str, make: Any, tmp_path: Path) -> None:
    torch.save({"model": {}, place: {"w": make()}}, tmp_path / "a.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="was refused"):
        safe_load(tmp_path / "a.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_small_expanded_tensors_load(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1000), "v": torch.arange(6).view(2, 3).T}, tmp_path / "a")
    found = safe_load(tmp_path / "a")
    assert found["w"].sum() == 1000 and found["v"].shape == (3, 2)


def test_an_operator_is_as_large_as_the_model_it_makes() -> None:
    model = SimpleNamespace(encoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=96)
    config = SimpleNamespace(model=model, task=SimpleNamespace())
    tensors = {
        "operator.depth": torch.zeros(3, 2),
        "operator.width": torch.zeros(96, 64),
        "source.encoder.sentence_encoder.layers.0.fc1.weight": torch.zeros(64, 32),
    }
    check_sizes(config, tensors)
    model.encoder_layers = 10**9
    with pytest.raises(CheckpointError, match="encoder_layers is 1000000000"):
        check_sizes(config, tensors)
