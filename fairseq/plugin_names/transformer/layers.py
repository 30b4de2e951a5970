"""Transformer layers as plug-ins build and extend them: from a configuration, time first.

The layers of this project's own models are :class:`fairseq.modules.TransformerLayer`; these have
the same mathematics and the same names of parameters, and beside them the methods that plug-ins
override.

Shapes: T time of the layer's own tokens, S of the encoder's, B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.errors import UnsupportedError
from fairseq.modules.pointwise import LayerNorm, get_activation_fn
from fairseq.plugin_names.attention import MultiheadAttention
from fairseq.plugin_names.incremental_state import IncrementalState
from fairseq.plugin_names.modules import FairseqDropout, quant_noise
from fairseq.plugin_names.transformer.config import EncDecBaseConfig, TransformerConfig
from fairseq.protocols import Settings


class _Layer(nn.Module):
    """What both layers have in common: the feed-forward network and the places of the norms."""

    self_attn: Any  # of a plug-in's class, maybe

    def __init__(self, args: Settings, name: str) -> None:
        super().__init__()
        cfg = TransformerConfig.from_namespace(args)
        side: EncDecBaseConfig = cfg[name]
        assert side.embed_dim is not None
        scales = [name for name in ("fc", "attn", "heads", "resids") if cfg[f"scale_{name}"]]
        if scales:
            raise UnsupportedError(
                f"scale_{scales[0]}: NormFormer's scales are in --arch transformer_lm, not in the "
                "layers for plug-ins"
            )
        self.args, self.cfg, self.embed_dim = args, cfg, side.embed_dim
        self.quant_noise, self.quant_noise_block_size = cfg.quant_noise.pq, 8
        self.normalize_before = side.normalize_before
        self.dropout_module = FairseqDropout(cfg.dropout)
        # the older name of the same setting
        self.activation_dropout_module = FairseqDropout(cfg.activation_dropout or cfg.relu_dropout)
        self.activation_fn = get_activation_fn(cfg.activation_fn)

    def _build_feed_forward(self, side: EncDecBaseConfig) -> None:
        noise = self.quant_noise, self.quant_noise_block_size
        self.fc1 = self.build_fc1(self.embed_dim, side.ffn_embed_dim, *noise)
        self.fc2 = self.build_fc2(side.ffn_embed_dim, self.embed_dim, *noise)
        self.final_layer_norm = LayerNorm(self.embed_dim)

    def build_fc1(
        self, input_dim: int, output_dim: int, q_noise: float, qn_block_size: int
    ) -> nn.Module:
        """Return the first map of the feed-forward network."""
        return quant_noise(nn.Linear(input_dim, output_dim), q_noise, qn_block_size)

    def build_fc2(
        self, input_dim: int, output_dim: int, q_noise: float, qn_block_size: int
    ) -> nn.Module:
        """Return the second map of the feed-forward network."""
        return quant_noise(nn.Linear(input_dim, output_dim), q_noise, qn_block_size)

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the sum of what a block gave and what it was given."""
        return residual + x

    def _block(self, norm: nn.Module, x_TBC: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a block with its norm before or after it, dropout and the residual."""
        # pre-norm keeps the residual path free; post-norm is that of the paper (Vaswani et al.
        # 2017)
        input_TBC = norm(x_TBC) if self.normalize_before else x_TBC
        x_TBC = self.residual_connection(self.dropout_module(compute(input_TBC)), x_TBC)
        return x_TBC if self.normalize_before else norm(x_TBC)

    def _attend(self, x_TBC: Tensor, **masks: Any) -> Tensor:
        """Return what the tokens of this side find among each other."""
        return self.self_attn(query=x_TBC, key=x_TBC, value=x_TBC, need_weights=False, **masks)[0]

    def _feed_forward(self, x_TBC: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(x_TBC))))


class TransformerEncoderLayerBase(_Layer):
    """A layer of an encoder."""

    def __init__(self, cfg: Settings, return_fc: bool = False) -> None:
        super().__init__(cfg, "encoder")
        self.self_attn = self.build_self_attention(self.embed_dim, self.cfg)
        self.self_attn_layer_norm = LayerNorm(self.embed_dim)
        self._build_feed_forward(self.cfg.encoder)

    def build_self_attention(self, embed_dim: int, cfg: Settings) -> nn.Module:
        """Return the attention, which is called as :class:`MultiheadAttention` is."""
        cfg = TransformerConfig.from_namespace(cfg)
        return MultiheadAttention(
            embed_dim,
            cfg.encoder.attention_heads,
            dropout=cfg.attention_dropout,
            self_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def forward(
        self,
        x: Tensor,
        encoder_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output for ``x`` (T, B, C).

        Args:
            x: the input.
            encoder_padding_mask: bool (B, T), true at pads.
            attn_mask: (T, T): true, or a number added to the score, where nothing is to be seen.
        """
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            # as in the original: finite, so that a row in which everything is hidden has no NaN
            attn_mask = x.new_zeros(attn_mask.shape).masked_fill(attn_mask, -1e8)

        attend = partial(self._attend, key_padding_mask=encoder_padding_mask, attn_mask=attn_mask)
        x = self._block(self.self_attn_layer_norm, x, attend)
        return self._block(self.final_layer_norm, x, self._feed_forward)


class TransformerEncoderLayer(TransformerEncoderLayerBase):
    """The same, under the name that goes with a flat Namespace."""

    def __init__(self, args: Settings) -> None:
        super().__init__(args)


class TransformerDecoderLayerBase(_Layer):
    """A layer of a decoder, with attention to an encoder unless told otherwise.

    Args:
        cfg: the settings.
        no_encoder_attn: there is no encoder.
        add_bias_kv: not supported.
        add_zero_attn: not supported.
    """

    def __init__(
        self,
        cfg: Settings,
        no_encoder_attn: bool = False,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
    ) -> None:
        super().__init__(cfg, "decoder")
        unsupported = add_bias_kv, add_zero_attn
        self.self_attn = self.build_self_attention(self.embed_dim, self.cfg, *unsupported)
        self.self_attn_layer_norm = LayerNorm(self.embed_dim)
        self.encoder_attn: Any = None
        self.encoder_attn_layer_norm: Any = None
        if not no_encoder_attn:
            self.encoder_attn = self.build_encoder_attention(self.embed_dim, self.cfg)
            self.encoder_attn_layer_norm = LayerNorm(self.embed_dim)
        self._build_feed_forward(self.cfg.decoder)
        self.need_attn = True

    def build_self_attention(
        self,
        embed_dim: int,
        cfg: Settings,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
    ) -> nn.Module:
        """Return the attention to earlier tokens."""
        cfg = TransformerConfig.from_namespace(cfg)
        return MultiheadAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            dropout=cfg.attention_dropout,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            self_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Settings) -> nn.Module:
        """Return the attention to the encoder."""
        cfg = TransformerConfig.from_namespace(cfg)
        return MultiheadAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def make_generation_fast_(self, need_attn: bool = False, **unused: object) -> None:
        """Leave the weights of the attention out unless they are wanted."""
        self.need_attn = need_attn

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        prev_self_attn_state: object = None,
        prev_attn_state: object = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Return ``(x (T, B, C), weights of the attention to the encoder, None)``.

        Args:
            x: the input (T, B, C).
            encoder_out: hidden states of the encoder, (S, B, C').
            encoder_padding_mask: bool (B, S), true at pads.
            incremental_state: what was remembered.
            prev_self_attn_state: for old callers.
            prev_attn_state: for old callers.
            self_attn_mask: (T, T), -inf where nothing is to be seen.
            self_attn_padding_mask: bool (B, T), true at pads.
            need_attn: return the weights, the mean over heads.
            need_head_weights: return the weights of every head.
        """
        weights: Tensor | None = None

        def look_up(query_TBC: Tensor) -> Tensor:
            nonlocal weights
            attended_TBC, weights = self.encoder_attn(
                query=query_TBC,
                key=encoder_out,
                value=encoder_out,
                key_padding_mask=encoder_padding_mask,
                incremental_state=incremental_state,
                # the encoder's states stay the same from step to step: their keys are computed once
                static_kv=True,
                need_weights=need_attn or (not self.training and self.need_attn),
                need_head_weights=need_head_weights,
            )
            return attended_TBC

        attend = partial(
            self._attend,
            key_padding_mask=self_attn_padding_mask,
            incremental_state=incremental_state,
            attn_mask=self_attn_mask,
        )
        x = self._block(self.self_attn_layer_norm, x, attend)
        if self.encoder_attn is not None and encoder_out is not None:
            x = self._block(self.encoder_attn_layer_norm, x, look_up)
        return self._block(self.final_layer_norm, x, self._feed_forward), weights, None


class TransformerDecoderLayer(TransformerDecoderLayerBase):
    """The same, under the name that goes with a flat Namespace."""

    def __init__(
        self,
        args: Settings,
        no_encoder_attn: bool = False,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
    ) -> None:
        super().__init__(args, no_encoder_attn, add_bias_kv, add_zero_attn)


class TransformerSentenceEncoderLayer(TransformerEncoderLayerBase):
    """A layer of BERT, from plain numbers; ``export`` changes nothing.

    Raises:
        UnsupportedError: for quantisation noise.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        ffn_embedding_dim: int = 3072,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        activation_fn: str = "relu",
        export: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        init_fn: Callable[[], object] | None = None,
    ) -> None:
        if init_fn is not None:
            init_fn()
        cfg = TransformerConfig(
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
            activation_fn=activation_fn,
        )
        cfg.encoder.embed_dim, cfg.encoder.ffn_embed_dim = embedding_dim, ffn_embedding_dim
        cfg.encoder.attention_heads = num_attention_heads
        super().__init__(cfg)
        quant_noise(self, q_noise, qn_block_size)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``(output (T, B, C), None)``; the masks are those of the encoder layer."""
        return super().forward(x, self_attn_padding_mask, self_attn_mask), None
