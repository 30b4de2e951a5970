"""Classification heads: poolings, frozen encoders, predictions on the originals' encoders."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.config.components import make_config
from fairseq.config.resolve import required_settings
from fairseq.errors import CheckpointError, DataError
from fairseq.modules.heads import POOLINGS, ClassificationHead, pool
from tests.models.compat_checkpoints import DETERMINISTIC, load
from tests.models.tiny_roberta import PAD, TOKENS, tiny

ENCODERS: dict[str, dict[str, Any]] = {
    "roberta": {},
    "clap": {"head": "clap", "layernorm_embedding": False},
    "alibi": {"position": "alibi"},
    "zero-clap": {"head": "clap", "mask_embedding": "zero", "position": "alibi-asymmetric"},
    "headless": {"head": "none"},
}


def classifier(classes: int = 3, **settings: Any) -> Any:
    model = tiny(**settings)
    model.register_classification_head("topic", classes)
    return model


def padded(count: int) -> torch.Tensor:
    """Return the tokens with more padding on the right."""
    return torch.nn.functional.pad(TOKENS, (0, count), value=PAD)


# -- pooling ---------------------------------------------------------------------------------------


def test_pooling_against_loops() -> None:
    features_BTC = torch.randn(2, 6, 4)
    kept = [[t for t in range(6) if TOKENS[b, t] != PAD] for b in range(2)]
    first = torch.stack([features_BTC[b, 0] for b in range(2)])
    mean = torch.stack([sum(features_BTC[b, t] for t in kept[b]) / len(kept[b]) for b in range(2)])
    expected = {"cls": first, "mean": mean, "concat": torch.cat([first, mean], 1)}
    nothing = torch.zeros(4)
    expected["positions"] = torch.stack(
        [torch.cat([features_BTC[b, t] if t in kept[b] else nothing for t in range(8)])
         for b in range(2)]
    )  # fmt: skip
    for name in POOLINGS:
        torch.testing.assert_close(pool(features_BTC, name, TOKENS.eq(PAD), 8), expected[name])
    unpadded = pool(features_BTC, "mean")
    torch.testing.assert_close(unpadded, features_BTC.sum(1) / 6)


def test_a_sentence_of_padding_alone_is_finite() -> None:
    padding_BT = torch.ones(1, 3, dtype=torch.bool)
    assert pool(torch.ones(1, 3, 2), "mean", padding_BT).equal(torch.zeros(1, 2))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_padding_does_not_change_a_prediction(encoder: str, pooling: str) -> None:
    model = classifier(pooling=pooling, **ENCODERS[encoder])
    few, more = (model(t, classification_head_name="topic")[0] for t in (TOKENS, padded(3)))
    assert few.shape == (2, 3)
    torch.testing.assert_close(few, more, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_probe_is_one_linear_map(pooling: str) -> None:
    knobs = {"pooling": pooling, "probe_head": "linear", "max_positions": 9}
    model = classifier(**knobs)
    found, _ = model(TOKENS, classification_head_name="topic")
    head = model.classification_heads["topic"]
    assert {name for name, _ in head.named_parameters()} == {"out_proj.weight", "out_proj.bias"}
    pooled = pool(model(TOKENS, features_only=True)[0], pooling, TOKENS.eq(PAD), 9)
    weight_KC, bias_K = (p.detach().double() for p in head.parameters())
    expected = pooled.detach().double() @ weight_KC.T + bias_K
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert head.shape == (3, pooled.shape[1])
    # and comes back with its weights, also where it has to be built first
    for loaded in (classifier(**knobs), tiny(**knobs, load_checkpoint_heads=True)):
        loaded.load_state_dict(model.state_dict())
        again, _ = loaded(TOKENS, classification_head_name="topic")
        assert again.equal(found)


def test_heads_of_other_kinds_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    linear = {"probe_head": "linear"}
    for source, target in (({}, linear), (linear, {})):
        model = classifier(**target)
        with caplog.at_level(logging.WARNING):
            model.load_state_dict(classifier(**source).state_dict())
        assert "the one here has another shape" in caplog.text
        caplog.clear()


def test_longer_sentences_than_positions_are_refused() -> None:
    model = classifier(pooling="positions", max_positions=5, position="alibi")
    with pytest.raises(DataError, match="longer than the 5 that --pooling positions"):
        model(TOKENS, classification_head_name="topic")


def test_the_head_is_two_layers_with_tanh_between() -> None:
    head = ClassificationHead(4, 5, 3, "tanh", 0.0, "concat")
    features_BTC = torch.randn(2, 6, 4)
    pooled = pool(features_BTC, "concat").detach().numpy()
    dense, out = ({n: p.detach().numpy() for n, p in m.named_parameters()} for m in head.children()
                  if isinstance(m, torch.nn.Linear))  # fmt: skip
    hidden = np.tanh(pooled @ dense["weight"].T + dense["bias"])
    expected = hidden @ out["weight"].T + out["bias"]
    np.testing.assert_allclose(head(features_BTC).detach().numpy(), expected, atol=1e-6)
    assert head.shape == (3, 5, 8)


# -- frozen encoders -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_a_frozen_encoder_is_a_function_without_gradient(encoder: str) -> None:
    model = classifier(freeze_encoder=True, dropout=0.5, **ENCODERS[encoder]).train()
    features, again = (model(TOKENS, features_only=True)[0] for _ in range(2))
    assert features.equal(again)  # no dropout, in training either
    assert not features.requires_grad and features.grad_fn is None  # no graph was built
    model(TOKENS, classification_head_name="topic")[0].sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == with_gradient
    assert trained == {
        f"classification_heads.topic.{layer}.{part}"
        for layer in ("dense", "out_proj")
        for part in ("weight", "bias")
    }
    assert model.classification_heads.training and not model.encoder.training


def test_an_encoder_that_is_not_frozen_gets_gradients() -> None:
    model = classifier().train()
    model(TOKENS, classification_head_name="topic")[0].sum().backward()
    layers = model.encoder.sentence_encoder.layers
    assert all(p.grad is not None for p in layers.parameters())


def test_a_frozen_encoder_leaves_language_modelling_nothing_to_train() -> None:
    given = {"arch": "roberta", "task": "masked_lm", "criterion": "masked_lm"}
    frozen, free = (
        required_settings(make_config({**given, "freeze_encoder": value}))
        for value in (True, False)
    )
    assert [row for row in frozen if row not in free] == [
        "something to train: --freeze-encoder is for --task sentence_prediction"
    ]


# -- loading ---------------------------------------------------------------------------------------


def test_both_shapes_of_a_head_that_does_not_fit_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, model = classifier(3), classifier(2, pooling="concat")
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(source.state_dict())
    assert "'topic' is not loaded" in caplog.text
    assert "are (2, 8, 16) here, (3, 8, 8) in the file" in caplog.text


def test_a_head_that_the_file_does_not_have_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    model.register_classification_head("other", 2)
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(tiny().state_dict())
    assert not caplog.text  # a file without heads: fine-tuning begins
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(classifier().state_dict())
    assert "'other' begins with new weights: the file has only topic" in caplog.text


@pytest.mark.parametrize("load_heads", [False, True])
def test_a_head_in_pieces_is_left_out(load_heads: bool) -> None:
    state = classifier().state_dict()
    del state["classification_heads.topic.dense.weight"]
    model = tiny(load_checkpoint_heads=load_heads)
    model.load_state_dict(state)
    assert not model.classification_heads


def test_advice_about_tables_of_another_length() -> None:
    state = tiny().state_dict()
    with pytest.raises(CheckpointError, match="10 learned positions, .* --max-positions 10 "):
        tiny(max_positions=12).load_state_dict(state)
    with pytest.raises(CheckpointError, match="10 learned positions, .* for 4: give"):
        tiny(max_positions=4).load_state_dict(state)
    key = "encoder.sentence_encoder.embed_tokens.weight"
    state[key] = state[key][:-1]
    with pytest.raises(CheckpointError, match="knows 12 tokens, the dictionary of the data 13"):
        tiny().load_state_dict(state)


# -- predictions on the originals' encoders --------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_predictions_follow_the_original_features(shared: Path, name: str) -> None:
    """The head is computed in numpy from the hidden states that the original wrote down.

    The tokens hold padding and masks; for zero-CLAP the mask lies outside the table.
    """
    golden = np.load(shared / "compat" / "checkpoints" / name / "golden.npz")
    tokens_BT, features_BTC = torch.from_numpy(golden["tokens"]), golden["features"]
    for pooling in POOLINGS:
        hub = copy.deepcopy(load(shared, name))
        hub.model.config.pooling = pooling
        hub.register_classification_head("topic", num_classes=3)
        head = hub.model.classification_heads["topic"]
        dense, out = (
            (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
            for layer in (head.dense, head.out_proj)
        )
        kept_BT1 = (golden["tokens"] != hub.task.source_dictionary.pad())[:, :, None]
        mean_BC = (features_BTC * kept_BT1).sum(1) / kept_BT1.sum(1)
        both_BC = np.concatenate([features_BTC[:, 0], mean_BC], 1)
        poolings = {"cls": features_BTC[:, 0], "mean": mean_BC, "concat": both_BC}
        longest = hub.model.config.max_positions
        room = ((0, 0), (0, longest - features_BTC.shape[1]), (0, 0))
        side_by_side = np.pad(features_BTC * kept_BT1, room).reshape(len(features_BTC), -1)
        pooled_BC = {**poolings, "positions": side_by_side}[pooling]
        logits = np.tanh(pooled_BC @ dense[0].T + dense[1]) @ out[0].T + out[1]
        expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        with torch.no_grad():
            found = hub.predict("topic", tokens_BT)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
