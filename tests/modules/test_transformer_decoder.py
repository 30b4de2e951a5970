"""Layers of decoders, rotary positions, adaptive input and softmax against formulas written out.

Shapes: B batch, T time, C channels, H heads, D channels of a head, N positions, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.adaptive_input import AdaptiveInput, bands_of
from fairseq.modules.adaptive_softmax import AdaptiveSoftmax
from fairseq.modules.positions import RotaryPositions, rotate
from fairseq.modules.transformer_layer import (
    LayerShape,
    TransformerLayer,
)
from fairseq.ops.attention_context import AttentionContext

B, T, C, H = 2, 6, 12, 3
D = C // H
V = 20


def randomised(module: Any) -> Any:
    """Draw every parameter anew, those that start as ones and zeros too."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


# -- rotary positions ------------------------------------------------------------------------------


def test_rotary_positions_turn_complex_numbers() -> None:
    x_BHTD = torch.randn(B, H, T, 8, dtype=torch.float64)
    rotary = RotaryPositions(8, 0.5)
    assert rotary.turned == 4
    out = rotate(x_BHTD, *(table.double() for table in rotary(T)))
    for channel, place in itertools.product(range(2), range(T)):
        number = torch.complex(x_BHTD[:, :, place, channel], x_BHTD[:, :, place, channel + 2])
        angle = torch.tensor(place * 10000 ** (-2 * channel / 4))
        turned = number * torch.complex(angle.cos(), angle.sin())
        torch.testing.assert_close(out[:, :, place, channel], turned.real, rtol=0, atol=1e-6)
        torch.testing.assert_close(out[:, :, place, channel + 2], turned.imag, rtol=0, atol=1e-6)
    assert out[..., 4:].equal(x_BHTD[..., 4:])


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 1, 50, 16)
    tables = RotaryPositions(16)(50)
    scores_TT = (rotate(query, *tables) @ rotate(key, *tables).transpose(-1, -2))[0, 0]
    for distance in (0, 3, 20):
        diagonal = scores_TT.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=2e-5)
    assert (scores_TT[0, 1:] - scores_TT[0, 0]).abs().max() > 0.1


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.375, 1.5])
def test_fractions_that_do_not_fit_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="rotary-fraction"):
        RotaryPositions(8, fraction)


def test_kept_tables_grow_and_are_left_out_of_the_state() -> None:
    rotary = RotaryPositions(8)
    short = [table.clone() for table in rotary(5)]
    assert all(t.equal(long[:5]) for t, long in zip(short, rotary(9), strict=True))
    assert not rotary.state_dict()
    assert rotary.__getstate__()["_kept"] is None
    assert rotary.half()(7)[0].dtype == torch.float32


# -- layers ----------------------------------------------------------------------------------------


def written_out(layer: Any, x_BTC: Tensor) -> Tensor:
    """Return what a layer gives, without any of its own functions."""
    shape = layer.shape

    def linear(name: str, x: Tensor) -> Tensor:
        module = layer.get_submodule(name)
        return x @ module.weight.T + module.bias

    def norm(name: str, x: Tensor) -> Tensor:
        module = layer.get_submodule(name)
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + shape.eps).sqrt() * (module.weight)
            + module.bias
        )

    def attend(x: Tensor) -> Tensor:
        q, k, v = (
            linear(f"self_attn.{name}_proj", x).view(B, T, H, D).transpose(1, 2) for name in "qkv"
        )
        scores = q @ k.transpose(-1, -2) / D**0.5
        seen = torch.ones(T, T, dtype=torch.bool).tril()
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        out = linear("self_attn.out_proj", (weights @ v).transpose(1, 2).reshape(B, T, C))
        if shape.scale_heads:
            out = out * layer.c_attn.repeat_interleave(D)
        return norm("attn_ln", out) if shape.scale_attn else out

    def feed(x: Tensor) -> Tensor:
        inner = torch.relu(linear("fc1", x))
        return linear("fc2", norm("ffn_layernorm", inner) if shape.scale_fc else inner)

    factor = layer.w_resid if shape.scale_resids else 1.0
    first, second = "self_attn_layer_norm", "final_layer_norm"
    if shape.parallel_residual:
        return x_BTC * factor + attend(norm(first, x_BTC)) + feed(norm(second, x_BTC))
    if shape.pre_norm:
        x_BTC = x_BTC + attend(norm(first, x_BTC))
        return x_BTC * factor + feed(norm(second, x_BTC))
    x_BTC = norm(first, x_BTC + attend(x_BTC))
    return norm(second, x_BTC * factor + feed(x_BTC))


SCALES = ("scale_attn", "scale_fc", "scale_heads", "scale_resids")


@pytest.mark.parametrize("scales", [(), *((name,) for name in SCALES), SCALES], ids="+".join)
@pytest.mark.parametrize("order", ["post", "pre", "parallel"])
def test_a_layer_is_its_formula(order: str, scales: tuple[str, ...]) -> None:
    shape = LayerShape(
        C,
        20,
        H,
        activation="relu",
        pre_norm=order != "post",
        parallel_residual=order == "parallel",
        **dict.fromkeys(scales, True),
    )
    layer = randomised(TransformerLayer(shape))
    x_BTC = torch.randn(B, T, C, dtype=torch.float64)
    expected = written_out(layer, x_BTC)
    torch.testing.assert_close(
        layer(x_BTC, AttentionContext(causal=True)), expected, rtol=0, atol=1e-12
    )


def test_names_of_normformer_are_the_originals() -> None:
    plain = set(TransformerLayer(LayerShape(C, 20, H)).state_dict())
    scaled = TransformerLayer(LayerShape(C, 20, H, **dict.fromkeys(SCALES, True))).state_dict()
    shapes = {name: tuple(scaled[name].shape) for name in set(scaled) - plain}
    assert shapes == {
        "attn_ln.weight": (C,),
        "attn_ln.bias": (C,),
        "c_attn": (H,),
        "ffn_layernorm.weight": (20,),
        "ffn_layernorm.bias": (20,),
        "w_resid": (C,),
    }


# -- adaptive input and softmax --------------------------------------------------------------------


def adaptive_input(**changes: Any) -> AdaptiveInput:
    settings: dict[str, Any] = {
        "vocab_size": V,
        "padding_idx": 1,
        "initial_dim": C,
        "factor": 2,
        "output_dim": C,
        "cutoff": [5, 12],
    }
    return AdaptiveInput(**{**settings, **changes})


def test_adaptive_input_is_a_table_of_projected_rows() -> None:
    embed: Any = adaptive_input(initial_dim=16)
    assert [tuple(band[0].weight.shape) for band in embed.embeddings] == [(5, 16), (7, 8), (8, 4)]
    assert not embed.embeddings[0][0].weight[1].any()
    table_VC = torch.cat([band[0].weight @ band[1].weight.T for band in embed.embeddings])
    tokens_BT = torch.randint(0, V, (4, 9))
    torch.testing.assert_close(embed(tokens_BT), table_VC[tokens_BT])


@pytest.mark.parametrize("tied", ["untied", "tied", "tied_proj"])
def test_adaptive_softmax_is_a_distribution_with_its_formula(tied: str) -> None:
    embed = adaptive_input() if tied != "untied" else None
    softmax: Any = AdaptiveSoftmax(V, C, [5, 12], 0.0, 2, embed, tie_proj=tied == "tied_proj")
    randomised(softmax)
    hidden_NC = torch.randn(7, C, dtype=torch.float64)
    log_p_NV = softmax.get_log_prob(hidden_NC)
    torch.testing.assert_close(log_p_NV.exp().sum(-1), torch.ones(7), rtol=0, atol=1e-5)
    head: Any = softmax.head
    if tied == "untied":
        words, classes = head.weight[:5], head.weight[5:]
    else:
        words, classes = head.word_proj.weight, head.class_proj.weight
    parts = [hidden_NC @ words.T, hidden_NC @ classes.T]
    head_NH = torch.cat(parts, 1).log_softmax(1)
    expected = [head_NH[:, :5]]
    for band, tail in enumerate(softmax.tail):
        narrow = tail[0].weight.T if tied == "tied_proj" else tail[0].weight
        logits = hidden_NC @ narrow.T @ tail[2].weight.T
        expected.append(head_NH[:, 5 + band, None] + logits.log_softmax(1))
    torch.testing.assert_close(log_p_NV, torch.cat(expected, 1).float(), rtol=0, atol=1e-5)
    assert softmax.get_log_prob(hidden_NC.view(7, 1, C)).shape == (7, 1, V)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("words", [[0, 4, 5, 11, 12, 19, 7], [0, 1, 2, 3, 4, 4, 4]])
def test_adaptive_losses_are_the_log_probs_of_the_targets(words: list[int], backend: str) -> None:
    embed = adaptive_input()
    softmax = AdaptiveSoftmax(V, C, [5, 12], 0.0, 2, embed, tie_proj=True)
    randomised(softmax)
    target_N = torch.tensor(words)
    hidden_NC = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    parameters = [hidden_NC, *softmax.parameters()]
    loss_N = softmax.projection(hidden_NC).losses(target_N, backend)
    expected_N = F.nll_loss(softmax.get_log_prob(hidden_NC), target_N, reduction="none")
    torch.testing.assert_close(loss_N.float(), expected_N, rtol=0, atol=1e-5)
    ours = torch.autograd.grad(loss_N.sum(), parameters)  # an unused parameter would be an error
    theirs = torch.autograd.grad(expected_N.sum(), parameters)
    for gradient, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-5)


def test_every_parameter_of_adaptive_input_has_a_gradient_whatever_the_words() -> None:
    embed = adaptive_input()
    embed(torch.full((2, 3), 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in embed.parameters())


def test_names_of_the_adaptive_parts_are_the_originals() -> None:
    embed = adaptive_input()
    bands = {f"embeddings.{band}.{part}.weight" for band in range(3) for part in range(2)}
    assert set(embed.state_dict()) == {*bands, "_float_tensor"}
    tails = {f"tail.{band}.{part}.weight" for band in range(2) for part in (0, 2)}
    untied = AdaptiveSoftmax(V, C, [5, 12], 0.1, 2).state_dict()
    assert set(untied) == {"version", "head.weight", *tails}
    assert untied["head.weight"].shape == (7, C) and untied["version"].tolist() == [1]
    assert untied["tail.1.0.weight"].shape == (3, C)
    tied = AdaptiveSoftmax(V, C, [5, 12], 0.1, 2, embed, tie_proj=True).state_dict()
    head = {f"head.{name}" for name in ("word_proj.weight", "class_proj.weight", "_float_tensor")}
    assert set(tied) == {"version", *head, *tails}
    assert tied["tail.1.0.weight"].shape == (C, 3)


def test_bands_end_with_the_vocabulary() -> None:
    assert bands_of(20, [5, 12]) == [5, 12, 20]
    assert bands_of(12, [5, 12]) == [5, 12]
    with pytest.raises(ConfigError, match="11 words"):
        bands_of(11, [5, 12])
