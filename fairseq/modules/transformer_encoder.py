"""The bidirectional Transformer: tokens in, hidden states out.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.aliases import NAMES
from fairseq.lazy import lazy_names
from fairseq.modules.flops import FlopShape, matrix_entries
from fairseq.modules.heads import VocabularyHead, vocabulary_entries
from fairseq.modules.pointwise import LayerNorm
from fairseq.modules.positions import (
    LearnedPositionalEmbedding,
    SinusoidalPositionalEmbedding,
    alibi_slopes,
)
from fairseq.modules.transformer_layer import LayerShape, QueryKeyValue, TransformerLayer
from fairseq.ops.attention_context import Alibi, AttentionContext, Unpadded
from fairseq.ops.dropout import dropout
from fairseq.ops.transforms import is_transformed

__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


# Share of padding from which on a CPU saves more by leaving it out than by the way into rows and
# back, which attention takes (docs/performance.md).
LEAST_PADDING = 0.1


@dataclass(frozen=True)
class EncoderShape:
    """Everything that decides what an encoder computes, its layers included.

    Attributes:
        vocabulary: V, rows of the embedding table.
        padding_idx: id of the pad symbol.
        max_positions: longest input where positions are learned.
        layers: number of layers.
        layer: shape of each of them.
        position: learned, sinusoidal, alibi, alibi-asymmetric or none.
        position_offset: position of the first token; None for ``padding_idx + 1``.
        normalize_embedding: L2-normalise token embeddings (CLAP).
        zero_masking: ids outside the table are embedded as zero.
        trainable_pad: the pad row is an ordinary row (a zero row cannot be normalised).
        scale_embedding: multiply token embeddings by sqrt(C).
        embedding_multiplier: multiply them by this instead; None for 1 or sqrt(C).
        alibi_slopes: of every head; None for the formula's.
        layernorm_embedding: normalise the sum of the embeddings.
        layerdrop: probability of skipping a layer in training.
        segments: number of segment (token type) embeddings; 0 for none.
        checkpoint_activations: recompute layers in the backward pass to save memory.
        unpadded: whether layers are given the tokens without the padding: ``on``, ``off``, or
            ``auto``: on a CPU, outside training, where it pays.
    """

    vocabulary: int
    padding_idx: int
    max_positions: int
    layers: int
    layer: LayerShape
    position: str = "learned"
    position_offset: int | None = None
    normalize_embedding: bool = False
    zero_masking: bool = False
    trainable_pad: bool = False
    scale_embedding: bool = False
    embedding_multiplier: float | None = None
    alibi_slopes: tuple[float, ...] | None = None
    layernorm_embedding: bool = True
    layerdrop: float = 0.0
    segments: int = 0
    checkpoint_activations: bool = False
    unpadded: str = "auto"


def init_bert_params(module: nn.Module) -> None:
    """Initialise one module as BERT does: weights N(0, 0.02), biases and the pad row zero.

    Source: Devlin et al. 2019, published code.
    """
    if isinstance(module, nn.Linear):
        # 0.02 at every width and depth, as BERT has it: near the C^-1/2 of width 2048, too small
        # rather than too large for narrower models
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


class TransformerEncoder(nn.Module):
    """Token, position and segment embeddings followed by a stack of layers.

    Args:
        shape: what it computes.
        embed_tokens: the token embeddings, made anew if None.
    """

    def __init__(self, shape: EncoderShape, embed_tokens: nn.Embedding | None = None) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.layer.embed_dim
        self.register_buffer("version", torch.tensor([3.0]))
        pad = None if shape.trainable_pad else shape.padding_idx
        self.embed_tokens = embed_tokens or nn.Embedding(shape.vocabulary, dim, pad)
        self.embed_positions = self._positions()
        self.embed_segments = nn.Embedding(shape.segments, dim) if shape.segments else None
        self.layernorm_embedding = self._layer_norm() if shape.layernorm_embedding else None
        self.layers = nn.ModuleList(TransformerLayer(shape.layer) for _ in range(shape.layers))
        # post-norm layers end in a norm already
        self.layer_norm = self._layer_norm() if shape.layer.pre_norm else None
        self.alibi: Alibi | None = None
        if shape.position.startswith("alibi"):
            slopes_H = alibi_slopes(shape.layer.heads, shape.alibi_slopes)
            self.alibi = Alibi(slopes_H, asymmetric=shape.position == "alibi-asymmetric")

    def _layer_norm(self) -> nn.Module:
        layer = self.shape.layer
        return LayerNorm(layer.embed_dim, layer.eps, implementation=layer.norm)

    def _positions(self) -> nn.Module | None:
        shape, dim = self.shape, self.shape.layer.embed_dim
        if shape.position == "learned":
            first = (
                shape.padding_idx + 1 if shape.position_offset is None else shape.position_offset
            )
            return LearnedPositionalEmbedding(
                shape.max_positions + first, dim, shape.padding_idx, shape.position_offset
            )
        if shape.position == "sinusoidal":
            rows = shape.max_positions + shape.padding_idx + 1
            return SinusoidalPositionalEmbedding(
                dim, shape.padding_idx, rows, shape.position_offset
            )
        return None

    def embed(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        rows_BTC: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the input of the first layer, shape (B, T, C), before pads are zeroed.

        Args:
            tokens_BT: token ids.
            segments_BT: segment ids, zero if None.
            rows_BTC: used instead of the tokens' rows of the table, with noise added for example.
            documents_BT: number of each token's document, where a row holds several.
        """
        shape = self.shape
        if rows_BTC is None:
            last = shape.vocabulary - 1
            # <mask> may lie behind the table, whose vector is zero: look up any row, zero it below
            inside_BT = tokens_BT.clamp(max=last) if shape.zero_masking else tokens_BT
            rows_BTC = self.embed_tokens(inside_BT)
        x_BTC = rows_BTC
        if shape.normalize_embedding:
            x_BTC = F.normalize(x_BTC, dim=-1)
        if shape.zero_masking:
            x_BTC = x_BTC * (tokens_BT < shape.vocabulary)[..., None]
        if shape.embedding_multiplier is not None:
            x_BTC = x_BTC * shape.embedding_multiplier
        elif shape.scale_embedding:
            x_BTC = x_BTC * shape.layer.embed_dim**0.5
        if self.embed_positions is not None:
            x_BTC = x_BTC + self.embed_positions(tokens_BT, documents_BT=documents_BT)
        if self.embed_segments is not None:
            segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
            x_BTC = x_BTC + self.embed_segments(segments_BT)
        if self.layernorm_embedding is not None:
            x_BTC = self.layernorm_embedding(x_BTC)
        return dropout(x_BTC, shape.layer.dropout, self.training)

    def flop_shape(self, head: VocabularyHead | None) -> FlopShape:
        """Return what the cost of this encoder and a vocabulary head depends on."""
        shape = self.shape
        entries = matrix_entries(self.layers), vocabulary_entries(head)
        return FlopShape(
            shape.layer, len(self.layers), shape.vocabulary, shape.layer.embed_dim, *entries
        )

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        return_all_hiddens: bool = False,
        rows_BTC: Tensor | None = None,
        qkv_layers: Collection[int] = (),
        qkv: dict[int, QueryKeyValue] | None = None,
        documents_BT: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode token ids.

        Args:
            tokens_BT: int64 ids, padded on the right.
            segments_BT: segment ids, zero if None (only where the model has segments).
            return_all_hiddens: also return the embedding output and every layer's output.
            rows_BTC: see :meth:`embed`.
            qkv_layers: layers whose queries, keys and values are put into ``qkv``.
            qkv: where they are put, by number of the layer.
            documents_BT: number of each token's document, where a row holds several that do not
                see each other.

        Returns:
            hidden states (B, T, C), and a list of layers + 1 tensors of that shape (empty unless
            asked for).
        """
        pad_BT: Tensor | None = tokens_BT.eq(self.shape.padding_idx)
        x_BTC = self.embed(tokens_BT, segments_BT, rows_BTC, documents_BT)
        # asking a GPU whether there are pads would wait for it; there the mask is always used, and
        # where a batch has no values of its own (vmap)
        ask = tokens_BT.device.type == "cpu" and not is_transformed()
        if ask and pad_BT is not None and not pad_BT.any():
            pad_BT = None
        if pad_BT is not None:
            x_BTC = x_BTC * ~pad_BT[..., None]
        tokens = None if pad_BT is None else self._unpadded(pad_BT)
        context = AttentionContext(self.alibi, pad_BT, documents_BS=documents_BT, unpadded=tokens)
        hiddens = [x_BTC] if return_all_hiddens else []
        if tokens is not None:
            x_BTC = tokens.gather(x_BTC)  # (N, C) from here on
        for number, layer in enumerate(self.layers):
            # drawn on the CPU: a draw on a GPU would have to be waited for
            if self.training and self.shape.layerdrop and torch.rand(()) < self.shape.layerdrop:
                continue
            record: list[QueryKeyValue] | None = [] if number in qkv_layers else None
            if self.shape.checkpoint_activations and self.training:
                x_BTC = checkpoint(layer, x_BTC, context, None, record, use_reentrant=False)
            else:
                x_BTC = layer(x_BTC, context, None, record)
            if record and qkv is not None:
                qkv[number] = record[0]  # the backward pass may append it once more
            if return_all_hiddens:
                hiddens.append(x_BTC if tokens is None else tokens.spread(x_BTC))
        if self.layer_norm is not None:
            x_BTC = self.layer_norm(x_BTC)
        return x_BTC if tokens is None else tokens.spread(x_BTC), hiddens

    def _unpadded(self, pad_BT: Tensor) -> Unpadded | None:
        """Return the tokens of a batch if its layers are to be given these alone."""
        mode = self.shape.unpadded
        # in training the masks of dropout would be others than those of an earlier release; on a
        # GPU looking for the tokens waits for it
        if mode == "off" or (mode == "auto" and (self.training or pad_BT.device.type != "cpu")):
            return None
        if is_transformed():  # how many there are is no number under vmap
            return None
        places_N = (~pad_BT).flatten().nonzero()[:, 0]
        least = LEAST_PADDING * pad_BT.numel() if mode == "auto" else 1
        if pad_BT.numel() - len(places_N) < least:
            return None
        return Unpadded(places_N, *pad_BT.shape)
