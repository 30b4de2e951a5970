"""A run that begins with weights under settings that make them another function says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from fairseq.errors import CheckpointError

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


def _resumed(
    data: Path, folder: Path, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Return the checkpoint of a run of two updates that went on for one under other flags."""
    for updates, flags in ((2, before), (3, after)):
        tiny_run.train(tiny_run.config(data, folder, **{**flags, "max_update": updates}))
    return tiny_run.content(folder / LAST)


RULE = "embed_tokens=lr*0.1"
KEPT: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"weight_decay": 0.1}, {"weight_decay": 0.1, "lr": [1e-3]}, []),
    ({}, {"weight_decay": 0.5}, ["weight_decay 0 (here 0.5)", "\"{'weight_decay': 0.5}\""]),
    ({}, {"adam_betas": "(0.5, 0.5)"}, ["betas 0.9,0.999 (here 0.5,0.5)", "(0.5, 0.5)"]),
    ({}, {"weight_decay": 0.5, "optimizer_overrides": "{'weight_decay': 0.5}"}, []),
    ({"bf16": True}, {"bf16": True, "adam_eps": 1e-4}, ["eps 1e-08 (here 0.0001)"]),
    ({"param_groups": RULE}, {"param_groups": RULE}, []),
    ({"param_groups": RULE}, {"param_groups": "embed_tokens=lr*0.9"}, ["lr_scale 0.1 (here 0.9)"]),
    ({"param_groups": "*=lr*0.1"}, {}, ["lr_scale 0.1 (here 1)", "--reset-optimizer"]),
    ({"optimizer": "nag"}, {"optimizer": "nag", "lr": [1e-3]}, []),
]


@pytest.mark.parametrize(("before", "after", "said"), KEPT, ids=str)
def test_optimizer_settings_that_the_checkpoint_keeps_are_said(
    before: dict[str, Any], after: dict[str, Any], said: list[str], data: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING, LOGGER):
        _resumed(data, tmp_path, before, after)
    warned = [one for one in caplog.messages if "goes on with the optimizer settings" in one]
    assert len(warned) == bool(said) and all(part in warned[0] for part in said), caplog.text


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=str)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"freeze_layers": "0"}, {"freeze_layers": "1"}),
        ({"param_groups": "layers.0=lr*0.5"}, {"param_groups": "layers.1=lr*0.5"}),
    ],
    ids=str,
)
def test_an_optimizer_state_goes_to_no_other_parameter(
    precision: dict[str, Any], before: dict[str, Any], after: dict[str, Any], data: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    first, other = ({**precision, **flags} for flags in (before, after))
    with pytest.raises(CheckpointError, match=r"place 4 .*layers\.[01]\.[\w.]+.*--reset-optimizer"):
        _resumed(data, tmp_path, first, other)
    _resumed(data, tmp_path, first, first)


@pytest.mark.parametrize("schedule", ["polynomial_decay", "reduce_lr_on_plateau"])
def test_a_rate_that_the_schedule_sets_is_not_overridden_in_silence(
    schedule: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {"lr_scheduler": schedule, "total_num_update": 9, "warmup_updates": 0}
    if schedule == "reduce_lr_on_plateau":
        del before["total_num_update"]
    state = _resumed(data, tmp_path, before, {**before, "optimizer_overrides": "{'lr': 0.5}"})
    taken = state["last_optimizer_state"]["param_groups"][0]["lr"] == 0.5
    assert taken != any("lr is what the schedule says" in one for one in caplog.messages)
