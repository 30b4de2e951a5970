"""Growth of headless models: their scores are products with their own embeddings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from growth_pairs import PAD, TOKENS, a_config, build, grown

from fairseq import evaluation
from fairseq.growth.contrast import score_factor
from fairseq.growth.sizes import Pair, resized
from fairseq.logging.meters import exact
from fairseq_cli import grow
from tests import tiny_run

LAST = "checkpoint_last.pt"
WIDE = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4}
PRE = {
    "encoder": {"encoder_normalize_before": True, "layernorm_embedding": False},
    "decoder": {"decoder_normalize_before": True},
}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "encoder": [{}, {"scale_embedding": True}, {"embedding_multiplier": 3.0}],
    "decoder": [
        {"position": "learned"},
        {"position": "none", "no_scale_embedding": True},
        {"position": "rotary", "share_decoder_input_output_embed": True},
    ],
}


def scores_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        features_BTC, _ = model(TOKENS, features_only=True)
        return features_BTC[TOKENS.ne(PAD)] @ model.embedding_table().T


def test_scores_by_rows_of_length_one_grow_by_the_root() -> None:
    """CLAP beside the contrast, whose embeddings have length one in both."""
    model = build(a_config("encoder", head="clap", embedding_multiplier=2.0))
    target = resized(model.config, width=16)
    target.embedding_multiplier = 2.0 * 2**0.5
    assert score_factor(Pair(model.config, target)) == pytest.approx(2**0.5)
    before, after = scores_of(model), scores_of(grown("enlarge", model, target))
    torch.testing.assert_close(after, before * 2**0.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("method", "times"), [("enlarge", 2), ("hyperclone", 3), ("lemon", 2)])
def test_scores_grow_by_one_factor(family: str, number: int, method: str, times: int) -> None:
    """The temperature that takes it back is all that the loss needs."""
    for norms in ({}, PRE[family]):
        source = a_config(family, head="none", **SETTINGS[family][number], **norms)
        model = build(source)
        target = resized(model.config, width=times * source[f"{family}_embed_dim"])
        before, after = scores_of(model), scores_of(grown(method, model, target))
        by = score_factor(Pair(model.config, target))
        assert by > 1.4
        torch.testing.assert_close(after, before * by, rtol=1e-9, atol=1e-9)


def test_lemon_to_any_width_keeps_products() -> None:
    source = a_config("encoder", head="none", **PRE["encoder"])
    model = build(source)
    width = source["encoder_embed_dim"]
    wider = width + width // source["encoder_attention_heads"]
    target = resized(model.config, width=wider)
    target.layer_norm_eps = source.layer_norm_eps * width / wider
    before, after = scores_of(model), scores_of(grown("lemon", model, target))
    by = score_factor(Pair(model.config, target))
    torch.testing.assert_close(after, before * by, rtol=1e-6, atol=1e-8)


def loss_of(path: Path, data: Path) -> float:
    flags = {"path": str(path), "data": str(data), "valid_subset": "valid", "log_format": "none"}
    return float(exact(evaluation.validate(flags)["valid"]["loss"]))


def test_the_loss_stays_or_the_flag_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_run.make_corpus(tmp_path / "data")
    flags = {**tiny_run.HEADLESS, "contrastive_temperature": 0.5}
    tiny_run.train(tiny_run.config(data, tmp_path / "small", max_update=3, **flags))
    source, out = tmp_path / "small" / LAST, tmp_path / "wide.pt"
    command = [str(source), "--out", str(out), "--method", "enlarge", "--grow-width", "2"]
    assert grow.main([*command, "--data", str(data)]) == 0
    text = capsys.readouterr().out
    assert "the same function" in text and "--contrastive-temperature 1.0" in text
    assert loss_of(out, data) == pytest.approx(loss_of(source, data), abs=1e-5)
    start = {"grow_from": str(source), "grow_method": "enlarge", "max_update": 1, "lr": [0.0]}
    for temperature, said in ((0.5, "give --contrastive-temperature 1"), (1.0, "same function")):
        now = {**flags, **WIDE, **start, "contrastive_temperature": temperature}
        with caplog.at_level(logging.INFO, "fairseq.growth.start"):
            tiny_run.train(tiny_run.config(data, tmp_path / f"run{temperature}", **now))
        # without the name of the logger the whole suite's other loggers come in between
        grown = [r.getMessage() for r in caplog.records if r.name == "fairseq.growth.start"]
        assert said in grown[-1]
    assert loss_of(tmp_path / "run1.0" / LAST, data) == pytest.approx(loss_of(out, data), abs=1e-6)
