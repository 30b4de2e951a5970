"""The encoder of BERT as old plug-ins build and extend it: from plain numbers, time first.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq.modules.pointwise import LayerNorm
from fairseq.modules.positions import PositionalEmbedding
from fairseq.modules.transformer_encoder import init_bert_params
from fairseq.plugin_names.modules import FairseqDropout, LayerDropModuleList
from fairseq.plugin_names.transformer.layers import TransformerSentenceEncoderLayer


class TransformerSentenceEncoder(nn.Module):
    """Token, position and segment embeddings, a norm, and layers.

    Args with a meaning beyond their name:
        offset_positions_by_padding: positions begin behind the pad's number, which pads have.
        embed_scale: the token embeddings are multiplied by it.
        freeze_embeddings: nothing that comes before the layers learns.
        n_trans_layers_to_freeze: so many of the first layers do not learn.
        export: changes nothing.
        traceable: the hidden states are returned as one tensor.

    Raises:
        UnsupportedError: for quantisation noise.

    Source: Devlin et al. 2019, section 3.
    """

    def __init__(
        self,
        padding_idx: int,
        vocab_size: int,
        num_encoder_layers: int = 6,
        embedding_dim: int = 768,
        ffn_embedding_dim: int = 3072,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        layerdrop: float = 0.0,
        max_seq_len: int = 256,
        num_segments: int = 2,
        use_position_embeddings: bool = True,
        offset_positions_by_padding: bool = True,
        encoder_normalize_before: bool = False,
        apply_bert_init: bool = False,
        activation_fn: str = "relu",
        learned_pos_embedding: bool = True,
        embed_scale: float | None = None,
        freeze_embeddings: bool = False,
        n_trans_layers_to_freeze: int = 0,
        export: bool = False,
        traceable: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ) -> None:
        super().__init__()
        self.padding_idx, self.vocab_size = padding_idx, vocab_size
        self.embedding_dim, self.max_seq_len = embedding_dim, max_seq_len
        self.embed_scale, self.traceable = embed_scale, traceable
        self.dropout_module = FairseqDropout(dropout)
        self.embed_tokens = self.build_embedding(vocab_size, embedding_dim, padding_idx)
        self.segment_embeddings = (
            nn.Embedding(num_segments, embedding_dim) if num_segments else None
        )
        pad = padding_idx if offset_positions_by_padding else None
        self.embed_positions = (
            PositionalEmbedding(max_seq_len, embedding_dim, pad, learned_pos_embedding)
            if use_position_embeddings
            else None
        )
        self.emb_layer_norm = LayerNorm(embedding_dim) if encoder_normalize_before else None
        settings = {
            "embedding_dim": embedding_dim,
            "ffn_embedding_dim": ffn_embedding_dim,
            "num_attention_heads": num_attention_heads,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "activation_dropout": activation_dropout,
            "activation_fn": activation_fn,
            "export": export,
            "q_noise": q_noise,
            "qn_block_size": qn_block_size,
        }
        self.layers = LayerDropModuleList(
            layerdrop,
            [
                self.build_transformer_sentence_encoder_layer(**settings)
                for _ in range(num_encoder_layers)
            ],
        )
        if apply_bert_init:
            self.apply(init_bert_params)
        frozen: list[nn.Module | None] = [self.layers[i] for i in range(n_trans_layers_to_freeze)]
        if freeze_embeddings:
            frozen += [self.embed_tokens, self.segment_embeddings]
            frozen += [self.embed_positions, self.emb_layer_norm]
        for module in frozen:
            if module is not None:
                module.requires_grad_(False)

    def build_embedding(self, vocab_size: int, embedding_dim: int, padding_idx: int) -> nn.Module:
        """Return the token embeddings."""
        return nn.Embedding(vocab_size, embedding_dim, padding_idx)

    def build_transformer_sentence_encoder_layer(self, **settings: Any) -> nn.Module:
        """Return a layer; called once for each."""
        return TransformerSentenceEncoderLayer(**settings)

    def forward(
        self,
        tokens: Tensor,
        segment_labels: Tensor | None = None,
        last_state_only: bool = False,
        positions: Tensor | None = None,
        token_embeddings: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[list[Tensor] | Tensor, Tensor]:
        """Encode ids (B, T), at ``positions`` (B, T) of the table if they are given.

        Returns:
            ``(hidden states, sentence)``: a list of (T, B, C), of the embeddings and all layers
            or of the last one alone, and the first token's last state, (B, C).
        """
        padding_BT = tokens.eq(self.padding_idx)
        x_BTC = self.embed_tokens(tokens) if token_embeddings is None else token_embeddings
        if self.embed_scale is not None:
            x_BTC = x_BTC * self.embed_scale
        if self.embed_positions is not None:
            x_BTC = x_BTC + self.embed_positions(tokens, positions=positions)
        if self.segment_embeddings is not None and segment_labels is not None:
            x_BTC = x_BTC + self.segment_embeddings(segment_labels)
        if self.emb_layer_norm is not None:
            x_BTC = self.emb_layer_norm(x_BTC)
        x_TBC = (self.dropout_module(x_BTC) * ~padding_BT[..., None]).transpose(0, 1)
        states = [x_TBC]
        for layer in self.layers:
            x_TBC, _ = layer(x_TBC, self_attn_mask=attn_mask, self_attn_padding_mask=padding_BT)
            states.append(x_TBC)
        states = states[-1:] if last_state_only else states
        return torch.stack(states) if self.traceable else states, x_TBC[0]
