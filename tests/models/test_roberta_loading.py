"""Loading state dicts into RobertaModel: old layouts, mismatches, classification heads, pruning."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from tiny_roberta import TINY, TOKENS, V, a_task, tiny
from torch import Tensor

from fairseq.errors import CheckpointError, ConfigError
from fairseq.models.base import prune_state_dict
from fairseq.models.roberta import RobertaModel

ENCODER = "encoder.sentence_encoder."


def shaken(**settings: Any) -> RobertaModel:
    """Return a model none of whose parameters is 0 or 1 by initialisation."""
    model = tiny(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def renamed(state: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    for old, new in pairs:
        state = {re.sub(old, new, key): value for key, value in state.items()}
    return state


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with one tensor for the query, key and value projections."""
    result = dict(state)
    for layer in range(TINY["encoder_layers"]):
        prefix = f"{ENCODER}layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [result.pop(f"{prefix}{name}_proj.{kind}") for name in "qkv"]
            result[f"{prefix}in_proj_{kind}"] = torch.cat(parts)
    return result


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not any(p in key for p in parts)}


LAYOUTS: dict[str, tuple[dict[str, Any], Any]] = {
    "decoder": ({}, lambda s: renamed(s, ("^encoder", "decoder"))),
    "embedding norm": ({}, lambda s: renamed(s, ("layernorm_embedding", "emb_layer_norm"))),
    "numbered norms": (
        {},
        lambda s: renamed(
            s,
            ("self_attn_layer_norm", "layer_norms.0"),
            ("final_layer_norm", "layer_norms.1"),
        ),
    ),
    "joint projections": ({}, joined),
    "all of it": (
        {},
        lambda s: renamed(
            without(joined(s), "version"),
            ("^encoder", "decoder"),
            ("layernorm_embedding", "emb_layer_norm"),
        ),
    ),
    "no version": ({}, lambda s: without(s, "version")),
    "no tied weight": ({}, lambda s: without(s, "lm_head.weight")),
    "sinusoidal buffers": (
        {"position": "sinusoidal"},
        lambda s: {
            **s,
            f"{ENCODER}embed_positions._float_tensor": torch.zeros(1),
            f"{ENCODER}embed_positions.weights": torch.zeros(5, 8),
        },
    ),
    "clap_head": (
        {"head": "clap"},
        lambda s: renamed(without(s, "lm_head.weight"), ("lm_head.beta", "clap_head.beta")),
    ),
    "leftovers": (
        {},
        lambda s: {
            **s,
            "encoder.scales.weight": torch.zeros(V, 1),
            "encoder.regression_head.0.weight": torch.zeros(2, 2),
            "encoder._ema": torch.zeros(1),
        },
    ),
    "half precision": ({}, lambda s: {key: value.half() for key, value in s.items()}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_layouts_load(layout: str) -> None:
    settings, age = LAYOUTS[layout]
    model = shaken(**settings)
    if layout == "half precision":
        model = model.half().float()
    old = age(model.state_dict())
    before = {key: value.clone() for key, value in old.items()}
    fresh = tiny(**settings)
    fresh.load_state_dict(old)
    assert fresh(TOKENS)[0].equal(model(TOKENS)[0])
    assert before.keys() == old.keys()  # the caller's state is left alone
    assert fresh.encoder.lm_head.weight is fresh.encoder.sentence_encoder.embed_tokens.weight


def test_a_mismatch_lists_everything_that_is_wrong() -> None:
    state = shaken().state_dict()
    state[f"{ENCODER}extra"] = torch.zeros(1)
    del state["encoder.lm_head.bias"]
    state[f"{ENCODER}embed_positions.weight"] = torch.zeros(7, 8)
    model = tiny()
    before = model(TOKENS)[0]
    with pytest.raises(CheckpointError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    assert "missing in the file: encoder.lm_head.bias" in message
    assert f"not in the model: {ENCODER}extra" in message
    assert f"{ENCODER}embed_positions.weight: (7, 8) in the file, (12, 8) in the model" in message
    assert model(TOKENS)[0].equal(before)


@pytest.mark.parametrize(
    "file, model",
    [
        ({"encoder_normalize_before": True}, {}),
        ({}, {"encoder_normalize_before": True}),
        ({"head": "clap"}, {}),
        ({}, {"head": "clap"}),
        ({}, {"layernorm_embedding": False}),
        ({}, {"position": "alibi"}),
        ({"segments": 2}, {}),
        ({}, {"encoder_layers": 2}),
        ({"encoder_layers": 2}, {}),
        ({}, {"encoder_embed_dim": 16}),
    ],
    ids=str,
)
def test_another_architecture_is_refused(file: dict[str, Any], model: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="does not fit the model"):
        tiny(**model).load_state_dict(tiny(**file).state_dict())


def test_a_long_list_is_cut() -> None:
    with pytest.raises(CheckpointError, match=r"\.\.\. and \d+ more$"):
        tiny().load_state_dict({})


def test_not_strict_loads_what_fits() -> None:
    state = shaken().state_dict()
    del state["encoder.lm_head.bias"]
    model = tiny()
    assert model.load_state_dict(state, strict=False).missing_keys == ["encoder.lm_head.bias"]


def test_an_untied_file_warns_a_tied_model(caplog: pytest.LogCaptureFixture) -> None:
    state = shaken(untie_weights_roberta=True).state_dict()
    with caplog.at_level(logging.WARNING):
        tied = tiny()
        tied.load_state_dict(state)
    assert "--untie-weights-roberta" in caplog.text
    assert tied.encoder.lm_head.weight.equal(state[f"{ENCODER}embed_tokens.weight"])
    untied = tiny(untie_weights_roberta=True)
    untied.load_state_dict(state)
    assert untied.encoder.lm_head.weight.equal(state["encoder.lm_head.weight"])
    untied.load_state_dict(shaken().state_dict())  # a tied file has both tensors, too


# -- classification heads --------------------------------------------------------------------------


def with_head(classes: int = 3, inner: int | None = None, **settings: Any) -> RobertaModel:
    model = shaken(**settings)
    model.register_classification_head("topic", classes, inner)
    return model


def test_heads_of_the_file_are_registered_on_request() -> None:
    source = with_head(3, inner=5)
    model = tiny(load_checkpoint_heads=True)
    model.load_state_dict(source.state_dict())
    ours, theirs = (m(TOKENS, classification_head_name="topic")[0] for m in (model, source))
    assert ours.shape == (2, 3) and ours.equal(theirs)


def test_heads_of_the_file_are_left_out_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(with_head().state_dict())
    assert "'topic' is not loaded: there is none here" in caplog.text
    assert not model.classification_heads


@pytest.mark.parametrize("load_heads", [False, True])
def test_heads_of_another_shape_keep_their_weights(
    load_heads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(load_checkpoint_heads=load_heads)
    model.register_classification_head("topic", 2)
    before = {k: v.clone() for k, v in model.classification_heads.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(with_head(3).state_dict())
    assert "'topic' is not loaded: the one here has another shape" in caplog.text
    after = model.classification_heads.state_dict()
    assert all(after[key].equal(value) for key, value in before.items())


def test_heads_that_are_not_in_the_file_keep_their_weights() -> None:
    model = with_head()
    before = model.classification_heads["topic"].state_dict()["dense.weight"].clone()
    model.load_state_dict(shaken().state_dict())
    assert model.classification_heads["topic"].state_dict()["dense.weight"].equal(before)


def test_heads_of_the_same_shape_are_loaded() -> None:
    source, model = with_head(), with_head()
    model.load_state_dict(source.state_dict())
    ours, theirs = (m(TOKENS, classification_head_name="topic")[0] for m in (model, source))
    assert ours.equal(theirs)


def test_registering_again_replaces_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    model = with_head(3).to(torch.bfloat16)
    old = model.classification_heads["topic"]
    with caplog.at_level(logging.WARNING):
        model.register_classification_head("topic")
    assert "replaced" in caplog.text and model.classification_heads["topic"] is not old
    new: Any = model.classification_heads["topic"]
    assert new.out_proj.out_features == 3 and new.dense.out_features == 8
    assert new.dense.weight.dtype == torch.bfloat16  # as the model
    with pytest.raises(ConfigError, match="'other' needs num_classes"):
        model.register_classification_head("other")
    with pytest.raises(ConfigError, match="no classification head 'topik'.*it has: topic"):
        model(TOKENS, classification_head_name="topik")


# -- pruning ---------------------------------------------------------------------------------------


def test_layers_to_keep() -> None:
    whole = shaken()
    pruned = tiny(encoder_layers_to_keep="0,2")
    assert len(pruned.encoder.sentence_encoder.layers) == 2
    pruned.load_state_dict(whole.state_dict())
    del whole.encoder.sentence_encoder.layers[1]
    assert pruned(TOKENS)[0].equal(whole(TOKENS)[0])
    again = tiny(encoder_layers_to_keep="0,2")
    again.load_state_dict(pruned.state_dict())  # what was saved after pruning
    assert again(TOKENS)[0].equal(whole(TOKENS)[0])


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_pruning_keeps_the_rest_of_a_state(side: str) -> None:
    state = {f"{side}.layers.{i}.fc1.weight": torch.tensor(i) for i in range(4)}
    state |= {f"{side}.layer_norm.weight": torch.tensor(9)}
    config = RobertaModel.build_model(tiny().config, a_task()).config
    assert prune_state_dict(state, config) == state
    setting = type("C", (), {f"{side}_layers_to_keep": "3,1"})
    assert {k: int(v) for k, v in prune_state_dict(state, setting).items()} == {
        f"{side}.layers.0.fc1.weight": 1,
        f"{side}.layers.1.fc1.weight": 3,
        f"{side}.layer_norm.weight": 9,
    }


def test_layers_to_keep_must_be_numbers_of_layers() -> None:
    with pytest.raises(ConfigError, match="--encoder-layers-to-keep must be numbers"):
        tiny(encoder_layers_to_keep="first")
    with pytest.raises(CheckpointError, match="missing in the file"):
        tiny(encoder_layers_to_keep="0,7").load_state_dict(tiny().state_dict())
