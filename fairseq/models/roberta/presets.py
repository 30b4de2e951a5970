"""The architectures of RoBERTa: functions that fill in the sizes which the user left open."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

Preset = Callable[[Namespace], None]


def preset(**defaults: Any) -> Preset:
    """Return an architecture function that sets the attributes which ``args`` does not have."""

    def apply(args: Namespace) -> None:
        for name, value in defaults.items():
            if not hasattr(args, name):
                setattr(args, name, value)

    return apply


def _sized(layers: int, width: int, heads: int) -> Preset:
    return preset(
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=heads,
    )


base_architecture = roberta_base_architecture = _sized(12, 768, 12)  # 125 M, GPT-2 vocabulary
roberta_large_architecture = _sized(24, 1024, 16)  # 355 M
xlm_architecture = _sized(16, 1280, 16)
roberta_small_architecture = _sized(6, 512, 8)  # for one GPU and an afternoon (new)
roberta_tiny_architecture = _sized(4, 192, 4)  # for a laptop (new)


def roberta_prenorm_architecture(args: Namespace) -> None:
    """The base model with layer norms before the blocks and none on the embeddings."""
    preset(layernorm_embedding=False, encoder_normalize_before=True)(args)
    base_architecture(args)
