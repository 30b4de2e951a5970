"""The architectures of RoBERTa: functions that fill in the sizes which the user left open."""

from __future__ import annotations

from argparse import Namespace

from fairseq.models import fill_in, register_model_architecture


def _sized(args: Namespace, layers: int, width: int, heads: int) -> None:
    """Fill in these sizes, and feed-forward networks of four times the width."""
    fill_in(
        args,
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=heads,
    )


@register_model_architecture("roberta", "roberta")
def base_architecture(args: Namespace) -> None:
    """12 layers of 768 (125 M parameters with the GPT-2 vocabulary)."""
    _sized(args, 12, 768, 12)


@register_model_architecture("roberta", "roberta_prenorm")
def roberta_prenorm_architecture(args: Namespace) -> None:
    """The base model with layer norms before the blocks and none on the embeddings."""
    fill_in(args, layernorm_embedding=False, encoder_normalize_before=True)
    base_architecture(args)


@register_model_architecture("roberta", "roberta_base")
def roberta_base_architecture(args: Namespace) -> None:
    """The base model."""
    base_architecture(args)


@register_model_architecture("roberta", "roberta_large")
def roberta_large_architecture(args: Namespace) -> None:
    """24 layers of 1024 (355 M parameters with the GPT-2 vocabulary)."""
    _sized(args, 24, 1024, 16)


@register_model_architecture("roberta", "xlm")
def xlm_architecture(args: Namespace) -> None:
    """16 layers of 1280, the shape of XLM."""
    _sized(args, 16, 1280, 16)


@register_model_architecture("roberta", "roberta_small")
def roberta_small_architecture(args: Namespace) -> None:
    """6 layers of 512: for one GPU and an afternoon (new)."""
    _sized(args, 6, 512, 8)


@register_model_architecture("roberta", "roberta_tiny")
def roberta_tiny_architecture(args: Namespace) -> None:
    """4 layers of 192, for a laptop (new)."""
    _sized(args, 4, 192, 4)
