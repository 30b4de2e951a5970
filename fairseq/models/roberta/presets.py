"""The architectures of RoBERTa: functions that fill in the sizes which the user left open."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from fairseq.models import register_model_architecture


def preset(**defaults: Any) -> Callable[[Any], None]:
    """Return an architecture function that sets the attributes which ``args`` does not have."""

    def apply(args: Namespace) -> None:
        for name, value in defaults.items():
            if not hasattr(args, name):
                setattr(args, name, value)

    return apply


@register_model_architecture("roberta", "roberta")
def base_architecture(args: Namespace) -> None:
    """12 layers of 768 (125 M parameters with the GPT-2 vocabulary)."""
    preset(
        encoder_layers=12,
        encoder_embed_dim=768,
        encoder_ffn_embed_dim=3072,
        encoder_attention_heads=12,
    )(args)


@register_model_architecture("roberta", "roberta_prenorm")
def roberta_prenorm_architecture(args: Namespace) -> None:
    """The base model with layer norms before the blocks and none on the embeddings."""
    preset(layernorm_embedding=False, encoder_normalize_before=True)(args)
    base_architecture(args)


@register_model_architecture("roberta", "roberta_base")
def roberta_base_architecture(args: Namespace) -> None:
    """The base model."""
    base_architecture(args)


@register_model_architecture("roberta", "roberta_large")
def roberta_large_architecture(args: Namespace) -> None:
    """24 layers of 1024 (355 M parameters with the GPT-2 vocabulary)."""
    preset(
        encoder_layers=24,
        encoder_embed_dim=1024,
        encoder_ffn_embed_dim=4096,
        encoder_attention_heads=16,
    )(args)


@register_model_architecture("roberta", "xlm")
def xlm_architecture(args: Namespace) -> None:
    """16 layers of 1280, the shape of XLM."""
    preset(
        encoder_layers=16,
        encoder_embed_dim=1280,
        encoder_ffn_embed_dim=5120,
        encoder_attention_heads=16,
    )(args)


@register_model_architecture("roberta", "roberta_small")
def roberta_small_architecture(args: Namespace) -> None:
    """6 layers of 512: for one GPU and an afternoon (new)."""
    preset(
        encoder_layers=6,
        encoder_embed_dim=512,
        encoder_ffn_embed_dim=2048,
        encoder_attention_heads=8,
    )(args)


@register_model_architecture("roberta", "roberta_tiny")
def roberta_tiny_architecture(args: Namespace) -> None:
    """4 layers of 192, for a laptop (new)."""
    preset(
        encoder_layers=4,
        encoder_embed_dim=192,
        encoder_ffn_embed_dim=768,
        encoder_attention_heads=4,
    )(args)
