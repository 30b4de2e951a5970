"""FLOPs: counted by hand, by torch's own counter, and ELECTRA's way against its published sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_lm import tiny_lm
from tiny_roberta import tiny
from torch.utils.flop_counter import FlopCounterMode

from fairseq.models.base import BaseFairseqModel
from fairseq.modules.flops import FlopShape, band_entries
from fairseq.modules.transformer_layer import LayerShape

ROWS, LENGTH, PREDICTED = 2, 6, 3
TOKENS = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 4, 5, 6, 2]])

# Multiplications by hand. A layer of width 8 and inner width 12, per token: four maps of 8 x 8,
# two of 8 x 12, and for each of 6 keys 8 products for the score and 8 for the value.
LAYER = 4 * 64 + 2 * 96 + 6 * 8 + 6 * 8
BY_HAND = {
    # three layers; at three tokens a map of 8 x 8 and 13 (with <mask> not in this dictionary) rows
    "encoder": (tiny, {}, 12 * 3 * LAYER + 3 * (64 + 13 * 8)),
    # no map in front of the table
    "clap": (tiny, {"head": "clap"}, 12 * 3 * LAYER + 3 * 13 * 8),
    # two layers; all that is predicted meets the table
    "decoder": (tiny_lm, {}, 12 * 2 * LAYER + 3 * 13 * 8),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_counts(name: str) -> None:
    build, settings, products = BY_HAND[name]
    assert build(**settings).flops(ROWS, LENGTH, PREDICTED) == 2 * products


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "encoder": (tiny, {}),
    "clap": (tiny, {"head": "clap", "mask_embedding": "zero"}),
    "untied alibi": (tiny, {"untie_weights_roberta": True, "position": "alibi"}),
    "headless": (tiny, {"head": "none"}),
    "pruned": (tiny, {"encoder_layers_to_keep": "0,2"}),
    "decoder": (tiny_lm, {}),
    "projected": (tiny_lm, {"decoder_input_dim": 6, "decoder_output_dim": 4}),
    "tied": (tiny_lm, {"share_decoder_input_output_embed": True, "position": "rotary"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_torch_counts_the_same(name: str) -> None:
    build, settings = MODELS[name]
    model = build(**settings, attention_backend="explicit")
    places = torch.tensor([1, 4, 8])
    with FlopCounterMode(display=False) as forward:
        if name == "headless":
            out = model(TOKENS, features_only=True)[0]
        else:
            out = model(TOKENS, predicted_positions=places)[0].logits()
    expected = model.flops(ROWS, LENGTH, PREDICTED)
    assert forward.get_total_flops() == expected
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * expected  # training costs three forward passes


def test_adaptive_tables_cost_what_words_cost_on_average() -> None:
    # two bands: 3/4 of all words are in the first one, whose matrices have 100 entries
    assert band_entries([5, 1, 1, 1], [2, 4], [100, 20]) == 80
    assert band_entries([0, 0, 0, 0], [2, 4], [100, 20]) == 60
    assert band_entries([5, 1, 1, 1], [2, 4], [20], first=1) == 5
    settings = {"adaptive_softmax_cutoff": "5,9", "adaptive_softmax_factor": 2.0}
    model = tiny_lm(**settings)
    words = model.decoder.dictionary.count
    shares = [sum(words[a:b]) / sum(words) for a, b in ((5, 9), (9, 13))]
    # the head has 5 words and 2 bands; behind it 8 x 4 and 4 x 4, 8 x 2 and 2 x 4
    products = 8 * 7 + round(shares[0] * (32 + 16) + shares[1] * (16 + 8))
    assert model.flops(ROWS, LENGTH, PREDICTED) == 2 * (12 * 2 * LAYER + 3 * products)
    tied = {"adaptive_input": True, "adaptive_input_cutoff": "5,9", "adaptive_input_factor": 2.0}
    more = tiny_lm(**tied).flops(ROWS, LENGTH, 0) - 2 * 12 * 2 * LAYER
    entries = sum(words[:5]) / sum(words) * 64 + shares[0] * 32 + shares[1] * 16
    assert more == 2 * 12 * round(entries)


@pytest.mark.parametrize(
    ("width", "inner", "heads", "block", "table", "output"),
    [
        (768, 3072, 12, 1.8697e9, 6.0275e9, 9.657e8),
        (512, 2048, 8, 8.438e8, 4.0183e9, 6.400e8),
    ],
)
def test_the_convention_of_electra(
    width: int, inner: int, heads: int, block: float, table: float, output: float
) -> None:
    """The published counter's sums for one row of 128 tokens, 20 of them predicted, V 30,522."""

    def cost(layers: int, predicted: int) -> int:
        size = LayerShape(width, inner, heads), layers, 30522, width
        return FlopShape(*size, 0, 30522 * width + width**2).electra(1, 128, predicted)

    assert cost(2, 0) - cost(1, 0) == pytest.approx(block, rel=1e-4)
    assert 2 * cost(1, 0) - cost(2, 0) == pytest.approx(table, rel=1e-4)
    assert cost(1, 20) - cost(1, 0) == pytest.approx(output, rel=1e-4)


def test_a_model_that_nobody_counted() -> None:
    assert BaseFairseqModel().flops(1, 2, 3) is None
