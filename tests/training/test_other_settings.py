"""A run that begins with weights under settings that make them another function says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_run

LAST = "checkpoint_last.pt"
LOGGER = "fairseq.trainer_state"
DECODER = {**tiny_run.DECODER, "decoder_input_dim": 32, "decoder_output_dim": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.make_corpus(tmp_path_factory.mktemp("settings") / "data")


CASES: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, {}, None),
    ({"dropout": 0.0}, {"dropout": 0.2, "lr": [1e-3], "batch_size": 2}, None),
    ({"embedding_multiplier": 3.0}, {}, "--embedding-multiplier 3 (here 1)"),
    ({"scale_embedding": True}, {"embedding_multiplier": 32**0.5}, None),
    (tiny_run.CLAP, {**tiny_run.CLAP, "alibi_slopes": [0.5, 0.1]}, "--alibi-slopes 0.0625,0.00390"),
    (tiny_run.CLAP, {**tiny_run.CLAP, "clap_normalize": False}, "--clap-normalize True"),
    ({"activation_fn": "relu"}, {}, "--activation-fn relu (here gelu)"),
    ({"layer_norm_eps": 1e-3}, {}, "--layer-norm-eps 0.001 (here 1e-05)"),
    ({**DECODER, "position": "rotary"}, {**DECODER, "position": "alibi"}, "--position rotary"),
    (DECODER, {**DECODER, "no_scale_embedding": True}, "--embedding-multiplier 5.65685425"),
]


@pytest.mark.parametrize(("before", "after", "said"), CASES, ids=str)
def test_what_no_tensor_shows_is_said(
    before: dict[str, Any], after: dict[str, Any], said: str | None, data: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    tiny_run.train(tiny_run.config(data, tmp_path / "a", max_update=1, **before))
    flags = {"finetune_from_model": str(tmp_path / "a" / LAST), "max_update": 1, **after}
    with caplog.at_level(logging.WARNING, LOGGER):
        tiny_run.train(tiny_run.config(data, tmp_path / "b", **flags))
    warned = [one for one in caplog.messages if "compute something else" in one]
    assert len(warned) == (said is not None) and (said is None or said in warned[0]), caplog.text
