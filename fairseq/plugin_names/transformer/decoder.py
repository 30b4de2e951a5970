"""The Transformer decoder as plug-ins build and extend it.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.transformer_lm.decoder import adaptive_softmax
from fairseq.modules.adaptive_input import AdaptiveInput
from fairseq.modules.initial import Linear
from fairseq.modules.pointwise import LayerNorm
from fairseq.plugin_names.incremental_state import IncrementalState
from fairseq.plugin_names.models import FairseqIncrementalDecoder
from fairseq.plugin_names.transformer.config import TransformerConfig
from fairseq.plugin_names.transformer.layers import (
    TransformerDecoderLayer,
    TransformerDecoderLayerBase,
)
from fairseq.plugin_names.transformer.parts import Side, equip, finish_embedding, stack
from fairseq.protocols import Settings


class TransformerDecoderBase(Side, FairseqIncrementalDecoder):
    """Embeddings, a stack of layers and the output layer.

    Args:
        cfg: the settings, nested or flat.
        dictionary: of the output.
        embed_tokens: the token embeddings.
        no_encoder_attn: there is no encoder.
        output_projection: the output layer; made from the settings if None.
    """

    def __init__(
        self,
        cfg: Settings,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding | AdaptiveInput,
        no_encoder_attn: bool = False,
        output_projection: nn.Module | None = None,
    ) -> None:
        super().__init__(dictionary)
        self.args, self.embed_tokens = cfg, embed_tokens
        self.cfg = cfg = TransformerConfig.from_namespace(cfg)
        self.register_buffer("version", torch.tensor([3.0]))
        side, inputs = cfg.decoder, embed_tokens.embedding_dim
        self.embed_dim = dim = side.embed_dim or inputs
        self.output_embed_dim = side.output_dim or dim
        pad = embed_tokens.padding_idx
        self.padding_idx = dictionary.pad() if pad is None else pad
        self.max_target_positions = cfg.max_target_positions
        self.share_input_output_embed = cfg.share_decoder_input_output_embed
        equip(self, cfg, side, self.max_target_positions)
        self.project_in_dim = None if inputs == dim else Linear(inputs, dim, bias=False)
        layers = [self.build_decoder_layer(cfg, no_encoder_attn) for _ in range(side.layers)]
        self.layers = stack(layers, cfg, side.layerdrop)
        self.num_layers = len(self.layers)
        final_norm = side.normalize_before and not cfg.no_decoder_final_norm
        self.layer_norm = LayerNorm(dim) if final_norm else None
        narrower = self.output_embed_dim != dim and not cfg.tie_adaptive_weights
        self.project_out_dim = Linear(dim, self.output_embed_dim, bias=False) if narrower else None
        self.output_projection: Any = output_projection
        if output_projection is None:
            self.build_output_projection(cfg, dictionary, embed_tokens)

    def build_output_projection(
        self,
        cfg: Settings,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding | AdaptiveInput,
    ) -> None:
        """Set the output layer: adaptive, tied to the embeddings, or of its own."""
        cfg = TransformerConfig.from_namespace(cfg)
        if cfg.adaptive_softmax_cutoff is not None:
            self.adaptive_softmax = adaptive_softmax(
                cfg, len(dictionary), self.output_embed_dim, embed_tokens
            )
            return
        self.output_projection = nn.Linear(self.output_embed_dim, len(dictionary), bias=False)
        if self.share_input_output_embed:
            self.output_projection.weight = embed_tokens.weight
        else:
            nn.init.normal_(self.output_projection.weight, std=self.output_embed_dim**-0.5)

    def build_decoder_layer(self, cfg: Settings, no_encoder_attn: bool = False) -> nn.Module:
        """Return one layer; called once for each."""
        return TransformerDecoderLayerBase(cfg, no_encoder_attn)

    def forward(  # type: ignore[override]
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]] | None = None,
        incremental_state: IncrementalState | None = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lengths: object = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return ``(logits (B, T, V), extra)``; with ``features_only`` hidden states (B, T, C)."""
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out=encoder_out,
            incremental_state=incremental_state,
            full_context_alignment=full_context_alignment,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
        )
        return x if features_only else self.output_layer(x), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]] | None = None,
        incremental_state: IncrementalState | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        **unused: object,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return hidden states (B, T, C) and ``{"attn": [...], "inner_states": [...]}``.

        Args:
            prev_output_tokens: ids (B, T), all so far, also in incremental decoding.
            encoder_out: what the encoder returned.
            incremental_state: what earlier calls remembered; only the last token is run.
            full_context_alignment: let tokens see the future.
            alignment_layer: whose attention to the encoder is returned; the last if None.
            alignment_heads: of how many heads its mean is; all if None.
            **unused: for old callers.
        """
        return self.extract_features_scriptable(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )

    def extract_features_scriptable(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]] | None = None,
        incremental_state: IncrementalState | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See :meth:`extract_features`, which calls this."""
        aligned = self.num_layers - 1 if alignment_layer is None else alignment_layer
        enc_TBC = encoder_out["encoder_out"][0] if encoder_out else None
        masks = encoder_out["encoder_padding_mask"] if encoder_out else []
        x_TBC = self._embed(prev_output_tokens, incremental_state).transpose(0, 1)
        padding_BT = prev_output_tokens.eq(self.padding_idx)
        whole = incremental_state is None
        causal = whole and not full_context_alignment
        states: list[Tensor] = [x_TBC]
        attention: Tensor | None = None
        for number, layer in enumerate(self.layers):
            x_TBC, weights, _ = layer(
                x_TBC,
                enc_TBC,
                masks[0] if masks else None,
                incremental_state,
                self_attn_mask=self.buffered_future_mask(x_TBC) if causal else None,
                self_attn_padding_mask=padding_BT if padding_BT.any() else None,
                need_attn=number == aligned,
                need_head_weights=number == aligned,
            )
            states.append(x_TBC)
            if weights is not None and number == aligned:
                heads = weights if alignment_heads is None else weights[:alignment_heads]
                attention = heads.mean(0)
        if self.layer_norm is not None:
            x_TBC = self.layer_norm(x_TBC)
        x_BTC = x_TBC.transpose(0, 1)
        if self.project_out_dim is not None:
            x_BTC = self.project_out_dim(x_BTC)
        return x_BTC, {"attn": [attention], "inner_states": states}

    def _embed(self, tokens_BT: Tensor, incremental_state: IncrementalState | None) -> Tensor:
        """Return the input of the first layer, of the last token if others were run before."""
        places_BTC = None
        if self.embed_positions is not None:
            places_BTC = self.embed_positions(tokens_BT, incremental_state=incremental_state)
        if incremental_state is not None:
            tokens_BT = tokens_BT[:, -1:]
        x_BTC = self.embed_scale * self.embed_tokens(tokens_BT)
        if self.project_in_dim is not None:
            x_BTC = self.project_in_dim(x_BTC)
        return finish_embedding(self, x_BTC, places_BTC)

    def output_layer(self, features: Tensor, **unused: object) -> Tensor:
        """Return logits; the hidden states themselves for the adaptive softmax."""
        if self.adaptive_softmax is not None or self.output_projection is None:
            return features
        return self.output_projection(features)

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        """Return a (T, T) mask for ``tensor`` (T, B, C): -inf at places to come, else 0."""
        length = tensor.shape[0]
        return torch.full((length, length), float("-inf")).triu(1).to(tensor)

    def max_positions(self) -> int:
        if self.embed_positions is None:
            return self.max_target_positions
        return min(self.max_target_positions, self.embed_positions.max_positions)


class TransformerDecoder(TransformerDecoderBase):
    """The same, under the names that go with a flat Namespace."""

    def __init__(
        self,
        args: Settings,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding | AdaptiveInput,
        no_encoder_attn: bool = False,
        output_projection: nn.Module | None = None,
    ) -> None:
        super().__init__(args, dictionary, embed_tokens, no_encoder_attn, output_projection)

    def build_decoder_layer(self, args: Settings, no_encoder_attn: bool = False) -> nn.Module:
        return TransformerDecoderLayer(args, no_encoder_attn)
