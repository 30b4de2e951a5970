"""What models tell beside their output: features, and queries, keys and values of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_lm import tiny_lm
from tiny_roberta import TOKENS, tiny
from torch import Tensor

ENCODERS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True},
    "recomputed": {"checkpoint_activations": True},
}
DECODERS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"decoder_normalize_before": True},
    "rotary": {"decoder_normalize_before": True, "position": "rotary"},
    "recomputed": {"checkpoint_activations": True},
}


def norm(x_BTC: Tensor, module: Any) -> Tensor:
    return F.layer_norm(x_BTC, x_BTC.shape[-1:], module.weight, module.bias, 1e-5)


def check(model: Any, body: Any, tokens_BT: Tensor, final: Any) -> None:
    """Compare with the layers' own inputs, and with projections written out."""
    model.train()
    positions_N = torch.tensor([1, 3, 7])
    for asked in ({}, {"predicted_positions": positions_N}):
        out, extra = model(tokens_BT, return_all_hiddens=True, qkv_layers=(1,), **asked)
        states = [state_TBC.transpose(0, 1) for state_TBC in extra["inner_states"]]
        wanted_BTC = states[-1] if final is None else norm(states[-1], final)
        torch.testing.assert_close(extra["features"], wanted_BTC)
        assert list(extra["qkv"]) == [1]
        layer, input_BTC = body.layers[1], states[1]
        if layer.shape.pre_norm:
            input_BTC = norm(input_BTC, layer.self_attn_layer_norm)
        heads = layer.self_attn.num_heads
        for name, got_BHTD in zip("qkv", extra["qkv"][1], strict=True):
            linear = getattr(layer.self_attn, f"{name}_proj")
            whole_BTC = input_BTC @ linear.weight.T + linear.bias
            parts = whole_BTC.unflatten(-1, (heads, -1)).permute(0, 2, 1, 3)
            torch.testing.assert_close(got_BHTD, parts)
        model.zero_grad()
        extra["qkv"][1].query_BHTD.square().sum().backward()
        assert body.layers[0].fc1.weight.grad.abs().max() > 0
    assert out.hidden_NC.shape == (3, 8)
    assert "qkv" not in model(tokens_BT)[1]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str) -> None:
    model = tiny(dropout=0.0, attention_dropout=0.0, **ENCODERS[name])
    body = model.encoder.sentence_encoder
    check(model, body, TOKENS, body.layer_norm)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    model = tiny_lm(dropout=0.0, attention_dropout=0.0, **DECODERS[name])
    check(model, model.decoder, torch.randint(4, 13, (2, 6)), model.decoder.layer_norm)
