"""The encoder against a plain formula, one sequence at a time, in fp64.

Shapes: B batch, T time, C channels, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairseq.modules.positions import alibi_slopes, sinusoidal_table
from fairseq.modules.transformer_encoder import EncoderShape, TransformerEncoder, init_bert_params
from fairseq.modules.transformer_layer import LayerShape, MultiheadAttention

PAD, V, C, HEADS, LAYERS = 1, 13, 8, 2, 3
LAYER = LayerShape(C, 12, HEADS, dropout=0.0, attention_dropout=0.0)
SHAPE = EncoderShape(V, PAD, max_positions=16, layers=LAYERS, layer=LAYER)
TOKENS = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 12, 4, 2, PAD, PAD, PAD], [0, 2, *[PAD] * 5]])
LENGTHS = (7, 4, 2)
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])


def changed(**values: Any) -> EncoderShape:
    """Return ``SHAPE`` with other values, of the layers where the layers have them."""
    names = {field.name for field in dataclasses.fields(LayerShape)}
    layer = dataclasses.replace(LAYER, **{k: v for k, v in values.items() if k in names})
    rest = {k: v for k, v in values.items() if k not in names}
    return dataclasses.replace(SHAPE, layer=layer, **rest)


def encoder(**values: Any) -> TransformerEncoder:
    """Return an encoder in evaluation mode, all of whose parameters are random."""
    torch.manual_seed(0)
    built = TransformerEncoder(changed(**values)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return built


def norm(x: Tensor, module: nn.Module | None, eps: float = 1e-5) -> Tensor:
    if module is None:
        return x
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * module.weight + module.bias


def self_attention(x_TC: Tensor, module: MultiheadAttention, position: str) -> Tensor:
    length, parts = len(x_TC), []
    slopes = alibi_slopes(HEADS).double()
    for h in range(HEADS):
        rows = slice(h * C // HEADS, (h + 1) * C // HEADS)
        q_TD, k_TD, v_TD = (
            x_TC @ getattr(module, f"{name}_proj").weight[rows].T
            + getattr(module, f"{name}_proj").bias[rows]
            for name in "qkv"
        )
        scores_TT = q_TD @ k_TD.T / math.sqrt(C // HEADS)
        for i in range(length if position.startswith("alibi") else 0):
            for j in range(length):
                future = 0.5 if position == "alibi-asymmetric" and j > i else 0.0
                scores_TT[i, j] -= slopes[h] * (abs(i - j) - future)
        weights_TT = scores_TT.exp() / scores_TT.exp().sum(-1, keepdim=True)
        parts.append(weights_TT @ v_TD)
    return torch.cat(parts, -1) @ module.out_proj.weight.T + module.out_proj.bias


@torch.no_grad()
def formula(model: TransformerEncoder, tokens_T: Tensor, segments_T: Tensor) -> list[Tensor]:
    """Return the embedding output, every layer's output, and the result, for tokens without pad."""
    shape, eps = model.shape, model.shape.layer.eps
    rows_TC = model.embed_tokens.weight[tokens_T.clamp(max=V - 1)]
    if shape.normalize_embedding:
        rows_TC = rows_TC / rows_TC.square().sum(-1, keepdim=True).sqrt()
    x_TC = rows_TC * (tokens_T < V)[:, None]
    if shape.scale_embedding:
        x_TC = x_TC * math.sqrt(C)
    first = PAD + 1 if shape.position_offset is None else shape.position_offset
    places = slice(first, first + len(tokens_T))
    if shape.position == "learned":
        x_TC = x_TC + model.embed_positions.weight[places]
    if shape.position == "sinusoidal":
        x_TC = x_TC + sinusoidal_table(places.stop, C, None)[places]
    if shape.segments:
        x_TC = x_TC + model.embed_segments.weight[segments_T]
    outputs = [x_TC := norm(x_TC, model.layernorm_embedding, eps)]
    for layer in model.layers:
        first_norm, second_norm = layer.self_attn_layer_norm, layer.final_layer_norm

        def feed_forward(x: Tensor, layer: Any = layer) -> Tensor:
            inner = x @ layer.fc1.weight.T + layer.fc1.bias
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            return inner @ layer.fc2.weight.T + layer.fc2.bias

        if shape.layer.pre_norm:
            attended = self_attention(norm(x_TC, first_norm, eps), layer.self_attn, shape.position)
            x_TC = x_TC + attended
            x_TC = x_TC + feed_forward(norm(x_TC, second_norm, eps))
        else:
            attended = self_attention(x_TC, layer.self_attn, shape.position)
            x_TC = norm(x_TC + attended, first_norm, eps)
            x_TC = norm(x_TC + feed_forward(x_TC), second_norm, eps)
        outputs.append(x_TC)
    return [*outputs, norm(x_TC, model.layer_norm, eps)]


VARIANTS: dict[str, dict[str, Any]] = {
    "roberta": {},
    "pre-norm": {"pre_norm": True, "layernorm_embedding": False},
    "pre-norm with embedding norm": {"pre_norm": True},
    "sinusoidal": {"position": "sinusoidal", "scale_embedding": True},
    "sinusoidal from 0": {"position": "sinusoidal", "position_offset": 0},
    "alibi": {"position": "alibi"},
    "alibi-asymmetric": {"position": "alibi-asymmetric"},
    "alibi, reference": {"position": "alibi-asymmetric", "backend": "reference"},
    "no positions": {"position": "none"},
    "bert": {"position_offset": 0, "segments": 2, "eps": 1e-12},
    "clap": {"normalize_embedding": True, "trainable_pad": True, "layernorm_embedding": False},
    "zero-clap": {
        "normalize_embedding": True,
        "trainable_pad": True,
        "zero_masking": True,
        "layernorm_embedding": False,
        "position": "alibi-asymmetric",
        "scale_embedding": True,
    },
    "large eps": {"eps": 0.3, "pre_norm": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_the_formula_and_pads_change_nothing(variant: str) -> None:
    model = encoder(**VARIANTS[variant]).double()
    tokens_BT = TOKENS.clone()
    if model.shape.zero_masking:
        tokens_BT[0, 3] = tokens_BT[1, 1] = V  # <mask>, one past the table
    x_BTC, hiddens = model(tokens_BT, SEGMENTS, return_all_hiddens=True)
    assert len(hiddens) == LAYERS + 1
    assert not hiddens[0][tokens_BT == PAD].any()  # pads enter as zero
    for row, length in enumerate(LENGTHS):
        expected = formula(model, tokens_BT[row, :length], SEGMENTS[row, :length])
        for ours, wanted in zip([*hiddens, x_BTC], expected, strict=True):
            torch.testing.assert_close(ours[row, :length], wanted, rtol=1e-5, atol=1e-6)
        alone = model(tokens_BT[row : row + 1, :length], SEGMENTS[row : row + 1, :length])[0]
        torch.testing.assert_close(alone[0], x_BTC[row, :length], rtol=1e-6, atol=1e-7)


def test_segments_are_zero_if_not_given() -> None:
    model = encoder(segments=2)
    assert model(TOKENS)[0].equal(model(TOKENS, torch.zeros_like(TOKENS))[0])
    assert not model(TOKENS)[0].equal(model(TOKENS, SEGMENTS)[0])


def test_rows_can_be_given_instead_of_looked_up() -> None:
    for settings in ({"scale_embedding": True}, VARIANTS["zero-clap"]):
        model = encoder(**settings)
        rows_BTC = model.embed_tokens(TOKENS)
        assert model(TOKENS, rows_BTC=rows_BTC)[0].equal(model(TOKENS)[0])
        assert not model(TOKENS, rows_BTC=rows_BTC + 0.1)[0].equal(model(TOKENS)[0])


@pytest.mark.parametrize("position", ["alibi", "sinusoidal"])
def test_what_was_kept_in_inference_mode_serves_training(position: str) -> None:
    model = encoder(position=position)
    tokens = torch.randint(4, V, (2, 40))
    with torch.inference_mode():
        expected = model(tokens)[0]
    output = model(tokens)[0]
    output.sum().backward()
    assert output.equal(expected) and model.embed_tokens.weight.grad is not None


def test_alibi_takes_more_tokens_than_any_table_has() -> None:
    tokens = torch.randint(4, V, (1, 5 * SHAPE.max_positions))
    assert encoder(position="alibi")(tokens)[0].shape == (1, 5 * SHAPE.max_positions, C)


def gradients(model: TransformerEncoder) -> list[Tensor]:
    x_BTC, _ = model(TOKENS)
    return list(torch.autograd.grad(x_BTC.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_gradients(dropout: float) -> None:
    results = []
    for recompute in (False, True):
        model = encoder(
            position="alibi", checkpoint_activations=recompute, dropout=dropout,
            attention_dropout=dropout,
        ).train()  # fmt: skip
        torch.manual_seed(3)
        results.append(gradients(model))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_layerdrop_skips_layers_in_training_only() -> None:
    model = encoder(layerdrop=0.5)
    model.train()
    torch.manual_seed(0)
    counts = [len(model(TOKENS, return_all_hiddens=True)[1]) - 1 for _ in range(300)]
    assert set(counts) == {0, 1, 2, 3}
    assert sum(counts) / len(counts) == pytest.approx(1.5, abs=0.2)
    assert len(model.eval()(TOKENS, return_all_hiddens=True)[1]) == LAYERS + 1
    everything = encoder(layerdrop=1.0).train()
    x_BTC, (embedded,) = everything(TOKENS, return_all_hiddens=True)
    assert x_BTC.equal(embedded)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_in_training_only(name: str) -> None:
    model = encoder(**{name: 0.5})
    assert model(TOKENS)[0].equal(encoder()(TOKENS)[0])
    torch.manual_seed(0)
    assert not model.train()(TOKENS)[0].equal(encoder()(TOKENS)[0])


def test_a_zero_mask_leaves_no_trace_of_a_row() -> None:
    model = encoder(zero_masking=True, trainable_pad=True, position="none")
    tokens = torch.full((1, 6), V)
    embedded = model.embed(tokens)
    assert embedded.equal(model.embed(torch.full((1, 6), V + 3)))
    model.embed_tokens.weight.grad = None
    model.embed(tokens).sum().backward()
    assert model.embed_tokens.weight.grad is not None and not model.embed_tokens.weight.grad.any()


def test_initialisation_is_that_of_bert() -> None:
    torch.manual_seed(0)
    layer = LayerShape(128, 512, 4)
    shape = dataclasses.replace(SHAPE, vocabulary=500, layer=layer, max_positions=200, segments=2)
    model = TransformerEncoder(shape).apply(init_bert_params)
    for name, parameter in model.state_dict().items():
        if name == "version":
            continue
        if "norm" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.1), name
            assert float(parameter.mean()) == pytest.approx(0, abs=0.004), name
    assert not model.embed_tokens.weight[PAD].any()
    assert model.embed_positions is not None and not model.embed_positions.weight[PAD].any()
    trainable = TransformerEncoder(dataclasses.replace(shape, trainable_pad=True))
    assert trainable.apply(init_bert_params).embed_tokens.weight[PAD].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("position", ["learned", "alibi-asymmetric"])
def test_half_precision_stays_close(position: str, dtype: torch.dtype) -> None:
    model = encoder(position=position)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    expected = model(TOKENS)[0]
    half = model.to(dtype)(TOKENS)[0]
    assert half.dtype == dtype
    kept = TOKENS != PAD
    error = (half.float() - expected)[kept].norm() / expected[kept].norm()
    assert error < 8 * torch.finfo(dtype).eps
