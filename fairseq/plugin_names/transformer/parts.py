"""What the encoder and the decoder for plug-ins are made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fairseq.modules.pointwise import LayerNorm
from fairseq.modules.positions import PositionalEmbedding
from fairseq.plugin_names.modules import FairseqDropout, LayerDropModuleList, checkpoint_wrapper
from fairseq.plugin_names.transformer.config import EncDecBaseConfig, TransformerConfig


class Side(nn.Module):
    """Mixin of an encoder or a decoder: what :func:`equip` gives it."""

    padding_idx: int
    dropout_module: FairseqDropout
    embed_scale: float
    embed_positions: Any
    layernorm_embedding: nn.Module | None
    layerdrop: float


def equip(module: Side, cfg: TransformerConfig, side: EncDecBaseConfig, positions: int) -> None:
    """Give an encoder or a decoder what both have: dropout, positions and the first norm.

    Args:
        module: it has ``embed_tokens`` and ``padding_idx``.
        cfg: the settings.
        side: those of this side.
        positions: longest input.
    """
    dim = side.embed_dim
    assert dim is not None
    module.dropout_module = FairseqDropout(cfg.dropout)
    module.embed_scale = 1.0 if cfg.no_scale_embedding else dim**0.5
    module.embed_positions = None
    if not cfg.no_token_positional_embeddings:
        module.embed_positions = PositionalEmbedding(
            positions, dim, module.padding_idx, learned=side.learned_pos
        )
    module.layernorm_embedding = LayerNorm(dim) if cfg.layernorm_embedding else None
    module.layerdrop = side.layerdrop


def stack(layers: list[nn.Module], cfg: TransformerConfig, layerdrop: float) -> nn.ModuleList:
    """Return the layers as a list that may leave some out, recomputed if asked for."""
    if cfg.checkpoint_activations:
        layers = [checkpoint_wrapper(layer) for layer in layers]
    return LayerDropModuleList(layerdrop, layers) if layerdrop > 0 else nn.ModuleList(layers)


def finish_embedding(module: Side, x_BTC: Tensor, positions_BTC: Tensor | None) -> Tensor:
    """Return the input of the first layer from scaled embeddings and positions."""
    if positions_BTC is not None:
        x_BTC = x_BTC + positions_BTC
    if module.layernorm_embedding is not None:
        x_BTC = module.layernorm_embedding(x_BTC)
    return module.dropout_module(x_BTC)
