"""The architectures of causal language models: what each one sets if the user leaves it open."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from fairseq.models import fill_in

Preset = Callable[[Namespace], None]


def transformer_lm(args: Namespace) -> None:
    """6 layers of 512, post-norm: the dataclass says it all."""


def base_lm_architecture(args: Namespace) -> None:
    """6 layers of 512, pre-norm, which all named architectures are; widths follow the model's.

    Settings of files from before 2020 are understood: ``no_tie_adaptive_proj`` exists only there.
    """
    if hasattr(args, "no_tie_adaptive_proj"):
        args.no_decoder_final_norm = True
        if args.no_tie_adaptive_proj is False:
            args.tie_adaptive_proj = True
    if hasattr(args, "decoder_final_norm"):
        args.no_decoder_final_norm = not args.decoder_final_norm
    fill_in(args, decoder_embed_dim=512)
    fill_in(
        args,
        decoder_input_dim=args.decoder_embed_dim,
        decoder_output_dim=args.decoder_embed_dim,
    )
    args.decoder_normalize_before = True  # training is not stable without it


def _preset(defaults: dict[str, Any], then: Preset = base_lm_architecture) -> Preset:
    """Return an architecture function: fill in the defaults, then go on with another one."""

    def apply(args: Namespace) -> None:
        fill_in(args, **defaults)
        then(args)

    return apply


def _sized(
    layers: int, width: int, heads: int, inner: int | None = None, **others: Any
) -> dict[str, Any]:
    return {
        "decoder_layers": layers,
        "decoder_embed_dim": width,
        "decoder_ffn_embed_dim": inner or 4 * width,
        "decoder_attention_heads": heads,
        **others,
    }


def _gpt(*sizes: int) -> Preset:
    """Return a GPT or GPT-2 of this size: GELU and dropout, positions and output as flags say."""
    return _preset(_sized(*sizes, dropout=0.1, attention_dropout=0.1, activation_fn="gelu"))


def base_gpt3_architecture(args: Namespace) -> None:
    """GPT-3 of any size: no dropout, learned positions, tied output."""
    fill_in(
        args,
        dropout=0.0,
        attention_dropout=0.0,
        activation_fn="gelu",
        decoder_learned_pos=True,
        share_decoder_input_output_embed=True,
    )
    base_lm_architecture(args)


def _gpt3(*sizes: int) -> Preset:
    """Return a GPT-3 of this size."""
    return _preset(_sized(*sizes), base_gpt3_architecture)


transformer_lm_big = _preset(_sized(12, 1024, 16))
transformer_lm_baevski_wiki103 = _preset(
    {
        "decoder_layers": 16,
        "decoder_attention_heads": 8,
        "dropout": 0.3,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "adaptive_input": True,
        "adaptive_input_cutoff": "20000,60000",
        "adaptive_softmax_cutoff": "20000,60000",
        "adaptive_softmax_dropout": 0.2,
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": True,
        "no_decoder_final_norm": True,
    },
    transformer_lm_big,
)
transformer_lm_baevski_gbw = _preset(
    {
        "decoder_embed_dim": 512,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "no_decoder_final_norm": True,
    },
    transformer_lm_big,
)
transformer_lm_gpt = _gpt(12, 768, 12)
transformer_lm_gpt2_tiny = _gpt(2, 64, 1, 64)
transformer_lm_gpt2_small = _gpt(24, 1024, 16)
transformer_lm_gpt2_medium = _gpt(36, 1280, 20)
transformer_lm_gpt2_big = _gpt(48, 1600, 25)
transformer_lm_gpt2_big_wide = _gpt(24, 2048, 32)
transformer_lm_gpt2_bigger = _gpt(48, 2048, 32)
transformer_lm_gpt3_small = _gpt3(12, 768, 12)
transformer_lm_gpt3_medium = _gpt3(24, 1024, 16)
transformer_lm_gpt3_large = _gpt3(24, 1536, 16)
transformer_lm_gpt3_xl = _gpt3(24, 2048, 32)
transformer_lm_gpt3_2_7 = _gpt3(32, 2560, 32)
transformer_lm_gpt3_6_7 = _gpt3(32, 4096, 32)
transformer_lm_gpt3_13 = _gpt3(40, 5120, 40)
transformer_lm_gpt3_175 = _gpt3(96, 12288, 96)
transformer_lm_alibi = _preset({"position": "alibi"})
