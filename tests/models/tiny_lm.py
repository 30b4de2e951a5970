"""A tiny causal language model and the least of a task that it needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)

DICTIONARY = Dictionary()
for _word in range(9):
    DICTIONARY.add_symbol(f"w{_word}")
PAD, EOS, V = DICTIONARY.pad(), DICTIONARY.eos(), len(DICTIONARY)
TINY = {
    "decoder_layers": 2,
    "decoder_embed_dim": 8,
    "decoder_input_dim": 8,
    "decoder_output_dim": 8,
    "decoder_ffn_embed_dim": 12,
    "decoder_attention_heads": 2,
    "tokens_per_sample": 12,
    "max_target_positions": None,
}
# everything that decides how a token knows its place
POSITIONS: dict[str, dict[str, Any]] = {
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "alibi": {"position": "alibi"},
    "rotary": {"position": "rotary"},
    "half rotary": {"position": "rotary", "rotary_fraction": 0.5},
    "none": {"position": "none"},
}


def a_task(dictionary: Any = DICTIONARY) -> Any:
    cfg = SimpleNamespace(tokens_per_sample=12)
    return SimpleNamespace(cfg=cfg, source_dictionary=dictionary, target_dictionary=dictionary)


def tiny_lm(**settings: Any) -> TransformerLanguageModel:
    """Return a model in evaluation mode, always with the same weights."""
    torch.manual_seed(0)
    config = TransformerLanguageModelConfig(**{**TINY, **settings})
    return TransformerLanguageModel.build_model(config, a_task()).eval()
