"""The Transformer encoder as plug-ins build and extend it.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.base import FairseqEncoder
from fairseq.modules.pointwise import LayerNorm
from fairseq.plugin_names.transformer.config import TransformerConfig
from fairseq.plugin_names.transformer.layers import (
    TransformerEncoderLayer,
    TransformerEncoderLayerBase,
)
from fairseq.plugin_names.transformer.parts import Side, equip, finish_embedding, stack
from fairseq.protocols import Settings

EncoderOut = dict[str, list[Any]]


class TransformerEncoderBase(Side, FairseqEncoder):
    """Embeddings and a stack of layers."""

    def __init__(
        self,
        cfg: Settings,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        return_fc: bool = False,
    ) -> None:
        super().__init__(dictionary)
        self.args, self.embed_tokens = cfg, embed_tokens
        self.cfg = cfg = TransformerConfig.from_namespace(cfg)
        self.register_buffer("version", torch.tensor([3.0]))
        pad = embed_tokens.padding_idx
        self.padding_idx = dictionary.pad() if pad is None else pad
        self.max_source_positions = cfg.max_source_positions
        equip(self, cfg, cfg.encoder, self.max_source_positions)
        layers = [self.build_encoder_layer(cfg) for _ in range(cfg.encoder.layers)]
        self.layers = stack(layers, cfg, cfg.encoder.layerdrop)
        self.num_layers = len(self.layers)
        dim = embed_tokens.embedding_dim
        self.layer_norm = LayerNorm(dim) if cfg.encoder.normalize_before else None

    def build_encoder_layer(self, cfg: Settings) -> nn.Module:
        """Return one layer; called once for each."""
        return TransformerEncoderLayerBase(cfg)

    def forward_embedding(
        self, src_tokens: Tensor, token_embedding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the input of the first layer and the scaled token embeddings, (B, T, C) each."""
        rows_BTC = self.embed_tokens(src_tokens) if token_embedding is None else token_embedding
        scaled_BTC = self.embed_scale * rows_BTC
        places = None if self.embed_positions is None else self.embed_positions(src_tokens)
        return finish_embedding(self, scaled_BTC, places), scaled_BTC

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> EncoderOut:
        """Encode.

        Args:
            src_tokens: ids (B, T).
            src_lengths: ignored.
            return_all_hiddens: also return the output of the embeddings and of every layer.
            token_embeddings: used instead of the tokens' rows, (B, T, C).

        Returns:
            lists by name: ``encoder_out`` [(T, B, C)], ``encoder_padding_mask`` [(B, T)],
            ``encoder_embedding`` [(B, T, C)], ``encoder_states`` [(T, B, C), ...], and the empty
            ``src_tokens`` and ``src_lengths``.
        """
        return self.forward_scriptable(
            src_tokens, src_lengths, return_all_hiddens, token_embeddings
        )

    def forward_scriptable(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> EncoderOut:
        """See :meth:`forward`, which calls this."""
        padding_BT = src_tokens.eq(self.padding_idx)
        x_BTC, embedded_BTC = self.forward_embedding(src_tokens, token_embeddings)
        x_TBC = (x_BTC * ~padding_BT[..., None]).transpose(0, 1)
        states = [x_TBC]
        padded = src_tokens.device.type != "cpu" or bool(padding_BT.any())
        for layer in self.layers:
            x_TBC = layer(x_TBC, encoder_padding_mask=padding_BT if padded else None)
            states.append(x_TBC)
        if self.layer_norm is not None:
            x_TBC = self.layer_norm(x_TBC)
        return {
            "encoder_out": [x_TBC],
            "encoder_padding_mask": [padding_BT],
            "encoder_embedding": [embedded_BTC],
            "encoder_states": states if return_all_hiddens else [],
            "src_tokens": [],
            "src_lengths": [],
        }

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Return the output with the rows that ``new_order`` names."""
        time_first = ("encoder_out", "encoder_states")
        return {
            name: [part.index_select(int(name in time_first), new_order) for part in parts]
            for name, parts in encoder_out.items()
        }

    def max_positions(self) -> int:
        if self.embed_positions is None:
            return self.max_source_positions
        return min(self.max_source_positions, self.embed_positions.max_positions)


class TransformerEncoder(TransformerEncoderBase):
    """The same, under the names that go with a flat Namespace."""

    def __init__(
        self,
        args: Settings,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        return_fc: bool = False,
    ) -> None:
        super().__init__(args, dictionary, embed_tokens, return_fc)

    def build_encoder_layer(self, args: Settings) -> nn.Module:
        return TransformerEncoderLayer(args)
