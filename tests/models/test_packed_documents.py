"""Documents packed into one row are seen as if each had been run alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_lm import tiny_lm
from tiny_roberta import tiny
from torch import Tensor

LENGTHS = (4, 1, 6, 3)


def packed(first: int) -> tuple[Tensor, Tensor]:
    """Return one row of tokens without pads, and the number of each token's document."""
    draw = torch.Generator().manual_seed(3)
    tokens_1T = torch.randint(first, first + 5, (1, sum(LENGTHS)), generator=draw)
    numbers = torch.tensor([n for n, length in enumerate(LENGTHS) for _ in range(length)])
    return tokens_1T, numbers[None]


def alone(model: Any, tokens_1T: Tensor) -> Tensor:
    parts = [model(part_1T)[0] for part_1T in tokens_1T.split(LENGTHS, dim=1)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "reference"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "alibi", "alibi-asymmetric", "none"])
def test_an_encoder_runs_documents_one_by_one(position: str, backend: str) -> None:
    model = tiny(position=position, attention_backend=backend, max_positions=20)
    tokens_1T, documents_1T = packed(4)
    logits_1TV = model(tokens_1T, documents=documents_1T)[0]
    torch.testing.assert_close(logits_1TV, alone(model, tokens_1T), rtol=0, atol=1e-6)
    assert (logits_1TV - model(tokens_1T)[0]).abs().max() > 5e-5


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "alibi", "rotary", "none"])
def test_a_decoder_runs_documents_one_by_one(position: str) -> None:
    model = tiny_lm(position=position, tokens_per_sample=20)
    tokens_1T, documents_1T = packed(4)
    logits_1TV = model(tokens_1T, documents=documents_1T)[0]
    torch.testing.assert_close(logits_1TV, alone(model, tokens_1T), rtol=0, atol=2e-6)
    assert (logits_1TV - model(tokens_1T)[0]).abs().max() > 5e-5


def test_only_the_longest_document_must_fit_the_learned_positions() -> None:
    model = tiny(position="learned", max_positions=max(LENGTHS))
    tokens_1T, documents_1T = packed(4)
    model(tokens_1T, documents=documents_1T)


def test_what_the_model_records_is_what_its_attention_saw() -> None:
    model = tiny(max_positions=20)
    tokens_1T, _ = packed(4)
    features_1TC, extra = model(
        tokens_1T, features_only=True, return_all_hiddens=True, qkv_layers=[0]
    )
    query, key, value = extra["qkv"][0]
    attention = model.encoder.sentence_encoder.layers[0].self_attn
    x_1TC = extra["inner_states"][0].transpose(0, 1)
    for projected, name in ((query, "q_proj"), (key, "k_proj"), (value, "v_proj")):
        flat_1TC = projected.transpose(1, 2).flatten(2)
        torch.testing.assert_close(flat_1TC, getattr(attention, name)(x_1TC), rtol=0, atol=0)
    assert extra["features"].equal(features_1TC)
