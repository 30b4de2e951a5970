"""A headless decoder becomes a language model: its head begins as the embeddings, then learns."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.errors import ConfigError
from fairseq.evaluation import perplexity
from fairseq.export.add_head import add_head
from fairseq.files.safe_load import safe_load
from tests import tiny_run

DECODER = {
    "task": "language_modeling",
    "arch": "transformer_lm_gpt",
    "decoder_layers": 2,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2,
    "dropout": 0.1,
}
HEAD = "decoder.output_projection.weight"
TABLE = "decoder.embed_tokens.weight"


def settings(data: Path, save_dir: Path, **flags: Any) -> Any:
    small = {k: v for k, v in tiny_run.SMALL.items() if not k.startswith(("encoder_", "max_pos"))}
    return options.make_config(
        {**small, **DECODER, "data": str(data), "save_dir": str(save_dir), **flags}
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run.make_corpus(tmp_path_factory.mktemp("corpus") / "bin")
    for suffix in ("bin", "idx"):
        shutil.copy(folder / f"valid.{suffix}", folder / f"test.{suffix}")
    return folder


@pytest.fixture(scope="module")
def headless(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headless")
    tiny_run.train(settings(data, folder, criterion="contrastive_weight_tying"))
    return folder / "checkpoint_last.pt"


def tune(data: Path, folder: Path, headless: Path, **flags: Any) -> dict[str, Any]:
    flags = {"criterion": "cross_entropy", "finetune_from_model": str(headless), **flags}
    tiny_run.train(settings(data, folder, **flags))
    return safe_load(str(folder / "checkpoint_last.pt"))


def test_the_model_has_no_head(headless: Path) -> None:
    state = safe_load(str(headless))
    assert HEAD not in state["model"]
    assert not any("output_projection" in name for name in state["model"])


@pytest.mark.parametrize("tied", [False, True])
def test_the_new_head_begins_as_the_embeddings(
    data: Path, headless: Path, tmp_path: Path, tied: bool
) -> None:
    """Without a step, fine-tuning and an added head are the same model."""
    flags = {"share_decoder_input_output_embed": tied, "lr": [0.0], "max_update": 1}
    state = tune(data, tmp_path, headless, **flags)
    table = safe_load(str(headless))["model"][TABLE]
    assert torch.equal(state["model"][HEAD], table) and torch.equal(state["model"][TABLE], table)
    added = tmp_path / "added.pt"
    add_head(headless, added, "tied" if tied else "copy", data)
    given = {"data": str(data), "cpu": True, "log_format": "none", "num_workers": 0}
    losses = [
        perplexity.evaluate({**given, "path": str(path)})["loss"]
        for path in (added, tmp_path / "checkpoint_last.pt")
    ]
    assert losses[0] == losses[1]


def test_a_trained_projection_is_not_dropped_in_silence(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    projected = settings(
        data, tmp_path / "a", criterion="contrastive_weight_tying", contrastive_projection=True
    )
    tiny_run.train(projected)
    with caplog.at_level("WARNING"):
        tune(data, tmp_path / "b", tmp_path / "a/checkpoint_last.pt", max_update=1)
    assert "weights of its own (projection.weight), which are not used" in caplog.text


def test_all_of_it_learns(data: Path, headless: Path, tmp_path: Path) -> None:
    before, after = safe_load(str(headless))["model"], tune(data, tmp_path, headless)["model"]
    assert all(
        not torch.equal(after[name], before[name]) for name in before if "version" not in name
    )
    assert not torch.equal(after[HEAD], before[TABLE])
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["tag"] == "train_inner"]
    assert losses[-1] < losses[0] and math.isfinite(losses[-1])


def test_a_probe_trains_the_head_alone(data: Path, headless: Path, tmp_path: Path) -> None:
    before = safe_load(str(headless))["model"]
    after = tune(data, tmp_path, headless, freeze_decoder=True)["model"]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(after[HEAD], before[TABLE])


@pytest.mark.parametrize("frozen", [False, True])
def test_an_interrupted_fine_tuning_goes_on_bit_by_bit(
    data: Path, headless: Path, tmp_path: Path, frozen: bool
) -> None:
    flags = {"freeze_decoder": frozen, "total_num_update": 9}
    whole = tune(data, tmp_path / "whole", headless, max_update=9, **flags)
    tune(data, tmp_path / "cut", headless, max_update=4, **flags)
    again = tune(data, tmp_path / "cut", headless, max_update=9, **flags)
    assert whole["extra_state"]["train_iterator"] == again["extra_state"]["train_iterator"]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, again["model"][name]), name
    whole_state, again_state = (s["last_optimizer_state"]["state"] for s in (whole, again))
    for key, moments in whole_state.items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again_state[key][name]))


@pytest.mark.parametrize(
    "flags",
    [
        {"share_decoder_input_output_embed": True},
        {"adaptive_softmax_cutoff": "8", "criterion": "adaptive_loss"},
        {"criterion": "contrastive_weight_tying"},
    ],
    ids=["tied", "adaptive", "headless"],
)
def test_a_probe_needs_a_head_of_its_own(data: Path, tmp_path: Path, flags: Any) -> None:
    with pytest.raises(ConfigError, match="--freeze-decoder"):
        tiny_run.train(settings(data, tmp_path, freeze_decoder=True, **flags))
