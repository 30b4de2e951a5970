"""What is taken from checkpoint files and written as such, under the names of old."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import config, content, make_corpus, train
from torch import nn

from fairseq import checkpoint
from fairseq.checkpoint import (
    get_maybe_sharded_checkpoint_filename,
    load_ema_from_checkpoint,
    load_pretrained_component_from_model,
    save_ema_as_checkpoint,
    torch_persistent_save,
)
from fairseq.checkpoint.files import write_checkpoint
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.hub.load import load_model_ensemble
from tests.models.tiny_lm import tiny_lm
from tests.models.tiny_roberta import tiny


def write(path: Path, tensors: dict[str, Any], **more: Any) -> str:
    write_checkpoint({"model": tensors, **more}, str(path), {})
    return str(path)


def changed(model: Any) -> Any:
    """Return the model with other weights than every fresh one has."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# -- one component ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make, side", [(tiny, "encoder"), (tiny_lm, "decoder")])
def test_a_component_of_a_model(make: Any, side: str, tmp_path: Path) -> None:
    model, part = changed(make()), getattr(make(), side)
    path = write(tmp_path / "a.pt", model.state_dict())
    assert not same(part.state_dict(), getattr(model, side).state_dict())
    assert load_pretrained_component_from_model(part, path) is part
    assert same(part.state_dict(), getattr(model, side).state_dict())


def test_a_component_of_an_old_roberta(tmp_path: Path) -> None:
    model, encoder = changed(tiny()), tiny().encoder
    old: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        name = name.replace("encoder.", "decoder.", 1)
        name = name.replace("layernorm_embedding", "emb_layer_norm")
        if not name.endswith(".version"):
            old[name] = value
    for name in [name for name in old if ".q_proj." in name]:
        parts = [old.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        old[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    assert "decoder.sentence_encoder.emb_layer_norm.weight" in old
    load_pretrained_component_from_model(encoder, write(tmp_path / "a.pt", old))
    assert same(encoder.state_dict(), model.encoder.state_dict())


def test_a_component_that_does_not_fit(tmp_path: Path) -> None:
    weights = changed(tiny()).state_dict()
    del weights["encoder.sentence_encoder.layers.0.fc1.bias"]
    path, encoder = write(tmp_path / "a.pt", weights), tiny().encoder
    with pytest.raises(CheckpointError, match=r"a\.pt; please(.|\n)*layers\.0\.fc1\.bias"):
        load_pretrained_component_from_model(encoder, path)
    load_pretrained_component_from_model(encoder, path, strict=False)
    table = encoder.sentence_encoder.embed_tokens.weight
    assert torch.equal(table, weights["encoder.sentence_encoder.embed_tokens.weight"])
    with pytest.raises(CheckpointError, match=r"no decoder\.\* weights; .* begin with encoder"):
        load_pretrained_component_from_model(tiny_lm().decoder, path, strict=False)
    with pytest.raises(ConfigError, match="not into a Linear"):
        load_pretrained_component_from_model(nn.Linear(2, 2), path)
    with pytest.raises(MissingFileError):
        load_pretrained_component_from_model(encoder, str(tmp_path / "absent.pt"))


# -- the moving average ----------------------------------------------------------------------------


def test_the_average_becomes_the_model(tmp_path: Path) -> None:
    data, run = make_corpus(tmp_path / "data"), tmp_path / "run"
    flags = {"store_ema": True, "ema_decay": 0.5, "ema_fp32": True}
    train(config(data, run, **flags, max_update=3, total_num_update=3))
    last, averaged = run / "checkpoint_last.pt", tmp_path / "ema.pt"
    average = content(last)["extra_state"]["ema_fp32_params"]
    assert not same(content(last)["model"], average)
    assert same(load_ema_from_checkpoint(str(last))["model"], average)
    save_ema_as_checkpoint(str(last), str(averaged))
    assert same(content(averaged)["model"], average)
    assert content(averaged)["last_optimizer_state"].keys()
    (model,), _ = load_model_ensemble([str(averaged)])
    assert same(model.state_dict(), average)


def test_averages_of_half_precision_become_fp32(tmp_path: Path) -> None:
    average = {"w": torch.tensor([0.5], dtype=torch.bfloat16), "n": torch.tensor([3])}
    path = write(tmp_path / "a.pt", {"w": torch.zeros(1)}, extra_state={"ema": average})
    weights = load_ema_from_checkpoint(path)["model"]
    assert same(weights, {"w": torch.tensor([0.5]), "n": torch.tensor([3])})
    assert weights["w"].dtype == torch.float32


def test_no_average_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="holds no moving average; train with --store-ema"):
        save_ema_as_checkpoint(path, str(tmp_path / "b.pt"))
    assert not (tmp_path / "b.pt").exists()


# -- writing and names -----------------------------------------------------------------------------


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    torch_persistent_save({"w": torch.arange(3), "rest": [1, "a", None]}, str(path))
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.arange(3))
    assert torch.load(path, weights_only=True)["rest"] == [1, "a", None]
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"the object to be saved\.f holds a "):
        torch_persistent_save({"f": Path}, str(path))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"could not write .*x\.pt: .*No space left"):
        torch_persistent_save([], str(path), async_write=True)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pt"]


def test_names_of_shards(tmp_path: Path) -> None:
    def name(suffix: str, number: int, count: int) -> str:
        whole = str(tmp_path / "m.pt")
        return Path(get_maybe_sharded_checkpoint_filename(whole, suffix, number, count)).name

    assert (name("", 0, 1), name("-x", 0, 1), name("-x", 1, 2)) == ("m.pt", "m-x.pt", "m_part1.pt")
    (tmp_path / "m-x-shard1.pt").touch()
    assert (name("-x", 1, 2), name("-x", 0, 2)) == ("m-x-shard1.pt", "m_part0.pt")


def test_states_are_upgraded_in_place(tmp_path: Path) -> None:
    data, run = make_corpus(tmp_path / "data"), tmp_path / "run"
    train(config(data, run, max_update=1, total_num_update=1))
    state = content(run / "checkpoint_last.pt")
    assert checkpoint._upgrade_state_dict(state) is state
    whole = checkpoint.load_checkpoint_to_cpu(str(run / "checkpoint_last.pt"))
    assert state["cfg"] == whole["cfg"] and state["args"] is None
    assert state["cfg"].model.encoder_layers == state["cfg"]["model"]["encoder_layers"] == 2
