"""Files of fairseq 0.12.2, whose encoder layers keep copies of their projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import config, content, digest, make_corpus, train

from fairseq.checkpoint.unused_weights import drop_unused_weights
from fairseq.hub.load import load_model_ensemble

COPIED = {
    "in_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "out_proj": ["self_attn.out_proj"],
    "fc1": ["fc1"],
    "fc2": ["fc2"],
}


def as_the_release_writes(state: dict[str, Any], tied: bool = True) -> dict[str, Any]:
    """Put the copies at the head of each layer; the optimizer counts them and has no state."""
    model: dict[str, torch.Tensor] = {}
    new_number, copies = [], 0
    for name, value in state["model"].items():
        prefix, _, part = name.partition(".self_attn.k_proj.weight")
        if name.endswith(".self_attn.k_proj.weight") and not part:
            for copy, sources in COPIED.items():
                for kind in ("weight", "bias"):
                    parts = [state["model"][f"{prefix}.{source}.{kind}"] for source in sources]
                    model[f"{prefix}.{copy}_{kind}"] = torch.zeros_like(torch.cat(parts))
                    copies += 1
        model[name] = value
        if not name.endswith((".version", "encoder.lm_head.weight") if tied else ".version"):
            new_number.append(len(new_number) + copies)
    optimizer = state["last_optimizer_state"]
    (group,) = optimizer["param_groups"]
    assert len(group["params"]) == len(new_number)
    moved = {new: optimizer["state"][old] for old, new in enumerate(new_number)}
    group = {**group, "params": list(range(len(new_number) + copies))}
    return {
        **state,
        "model": model,
        "last_optimizer_state": {"state": moved, "param_groups": [group]},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("release")
    data = make_corpus(folder / "data")
    train(config(data, folder / "run", max_update=4))
    return data, folder / "run" / "checkpoint_last.pt"


def test_a_run_of_the_release_goes_on(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, path = run
    foreign = tmp_path / "foreign.pt"
    torch.save(as_the_release_writes(content(path)), foreign)
    for name, start in (("own", path), ("foreign", foreign)):
        train(config(data, tmp_path / name, restore_file=str(start)))
    own, other = (tmp_path / name / "checkpoint_last.pt" for name in ("own", "foreign"))
    assert digest(own) == digest(other) != digest(path)


def test_a_run_with_a_head_of_its_own_goes_on(run: tuple[Path, Path], tmp_path: Path) -> None:
    untied = {"untie_weights_roberta": True}
    train(config(run[0], tmp_path / "first", max_update=4, **untied))
    path, foreign = tmp_path / "first" / "checkpoint_last.pt", tmp_path / "foreign.pt"
    torch.save(as_the_release_writes(content(path), tied=False), foreign)
    for name, start in (("own", path), ("foreign", foreign)):
        train(config(run[0], tmp_path / name, restore_file=str(start), **untied))
    own, other = (tmp_path / name / "checkpoint_last.pt" for name in ("own", "foreign"))
    assert digest(own) == digest(other) != digest(path)


def test_a_model_of_the_release_is_loaded(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, path = run
    state = as_the_release_writes(content(path))
    torch.save(state, tmp_path / "foreign.pt")
    (model,), _ = load_model_ensemble(
        [str(tmp_path / "foreign.pt")], arg_overrides={"data": str(data)}
    )
    mine = model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in content(path)["model"].items())
    # a state dict without its file, too
    assert model.load_state_dict(state["model"])


def test_flat_vectors_and_averages_lose_the_same_pieces(run: tuple[Path, Path]) -> None:
    plain = content(run[1])
    state = as_the_release_writes(plain)
    kept = [
        value
        for name, value in plain["model"].items()
        if not name.endswith((".version", "lm_head.weight"))
    ]
    pieces = [
        value
        for name, value in state["model"].items()
        if not name.endswith((".version", "lm_head.weight"))
    ]
    flat = {"step": 4, "exp_avg": torch.cat([piece.flatten() for piece in pieces])}
    state["last_optimizer_state"] = {"state": {0: flat}, "param_groups": [{"params": [0]}]}
    state["extra_state"] = {"ema": dict(state["model"])}
    drop_unused_weights(state)
    assert list(state["model"]) == list(state["extra_state"]["ema"]) == list(plain["model"])
    assert torch.equal(flat["exp_avg"], torch.cat([piece.flatten() for piece in kept]))
    assert state["last_optimizer_state"]["param_groups"] == [{"params": [0]}]


def test_a_state_of_another_model_is_left_alone(run: tuple[Path, Path]) -> None:
    state = as_the_release_writes(content(run[1]))
    state["last_optimizer_state"]["param_groups"][0]["params"] = [0, 1, 2]
    drop_unused_weights(state)
    assert state["last_optimizer_state"]["param_groups"][0]["params"] == [0, 1, 2]
