"""A tiny RoBERTa and the least of a task that it needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.roberta import RobertaConfig, RobertaModel

DICTIONARY = Dictionary()
for _word in range(9):
    DICTIONARY.add_symbol(f"w{_word}")
PAD, V = DICTIONARY.pad(), len(DICTIONARY)
TOKENS = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 4, 2, PAD, PAD]])
TINY = {
    "encoder_layers": 3,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "max_positions": 10,
}


def a_task(
    dictionary: Any = DICTIONARY, tokens_per_sample: int | None = 20, limit: Any = 30
) -> Any:
    cfg = SimpleNamespace(tokens_per_sample=tokens_per_sample)
    return SimpleNamespace(cfg=cfg, source_dictionary=dictionary, max_positions=lambda: limit)


def tiny(**settings: Any) -> RobertaModel:
    """Return a model in evaluation mode, always with the same weights."""
    torch.manual_seed(0)
    return RobertaModel.build_model(RobertaConfig(**{**TINY, **settings}), a_task()).eval()
