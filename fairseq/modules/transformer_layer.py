"""The Transformer layer of encoders and decoders: self-attention and a feed-forward network.

Shapes: B batch, T tokens (in incremental decoding the new ones), S all tokens so far, C channels,
H heads, D channels of a head, F inner channels, N unpadded tokens: wherever (B, T, ...) is said of
an input, (N, ...) will do if the context names the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairseq.aliases import NAMES
from fairseq.lazy import lazy_names
from fairseq.modules.pointwise import LayerNorm, get_activation_fn, project
from fairseq.modules.positions import rotate
from fairseq.ops.attention import attention, check_backend, unpadded_attention
from fairseq.ops.attention_context import NOTHING, AttentionContext
from fairseq.ops.dropout import dropout

__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


@dataclass(frozen=True)
class LayerShape:
    """Everything that decides what a layer computes.

    Attributes:
        embed_dim: C.
        ffn_dim: F.
        heads: H; C must be divisible by it.
        dropout: on the output of both sub-layers.
        attention_dropout: on attention weights.
        activation_dropout: inside the feed-forward network.
        activation: name of its activation.
        pre_norm: normalise the input of each sub-layer instead of the residual sum.
        eps: of the layer norms.
        norm: implementation of the layer norms, ``torch`` or ``apex``.
        backend: attention backend.
        xavier_attention: draw the attention's weights as the original's decoders do; see
            :class:`MultiheadAttention`.
        parallel_residual: attention and feed-forward network read the same input and are added
            together, instead of one after the other (needs ``pre_norm``).
        scale_attn: layer norm on the output of the attention.
        scale_fc: layer norm inside the feed-forward network.
        scale_heads: a learned factor for every head.
        scale_resids: a learned factor for every channel of the second residual.
    """

    embed_dim: int
    ffn_dim: int
    heads: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    activation: str = "gelu"
    pre_norm: bool = False
    eps: float = 1e-5
    norm: str = "torch"
    backend: str = "auto"
    xavier_attention: bool = False
    parallel_residual: bool = False
    scale_attn: bool = False
    scale_fc: bool = False
    scale_heads: bool = False
    scale_resids: bool = False


class QueryKeyValue(NamedTuple):
    """Queries, keys and values of a layer, (B, H, T, D) each, before rotary positions."""

    query_BHTD: Tensor
    key_BHTD: Tensor
    value_BHTD: Tensor


class MultiheadAttention(nn.Module):
    """Self-attention with separate projections, as the original stores them.

    Args:
        embed_dim: C.
        num_heads: H.
        dropout: on attention weights, in training.
        backend: see :func:`fairseq.ops.attention.attention`.
        xavier: queries, keys and values Xavier-uniform with gain 1/sqrt(2), the output
            Xavier-uniform with a zero bias; torch's own initialisation otherwise.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        backend: str = "auto",
        xavier: bool = False,
    ) -> None:
        super().__init__()
        assert embed_dim % num_heads == 0, (embed_dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        check_backend(backend)
        self.backend = backend
        # this order is the order of the optimizer state in checkpoints
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        if xavier:
            # 1/sqrt(2) as if the three were one (3C, C) matrix, which is how they began
            for projection in (self.k_proj, self.v_proj, self.q_proj):
                nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
            nn.init.xavier_uniform_(self.out_proj.weight)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x_BTC: Tensor,
        context: AttentionContext = NOTHING,
        memory: dict[str, Tensor] | None = None,
        record: list[QueryKeyValue] | None = None,
    ) -> Tensor:
        """Return the attended values, shape (B, T, C).

        Args:
            x_BTC: input at the new tokens.
            context: what there is to know about the tokens.
            memory: keys and values of earlier tokens, (B, H, S - T, D) each; the new ones are
                added to it. None if there are no earlier tokens and nothing is to be remembered.
            record: queries, keys and values of the new tokens are appended to it.
        """
        how: dict[str, Any] = {"dropout": self.dropout if self.training else 0.0}
        how["backend"] = self.backend
        tokens = context.unpadded
        query, key, value = (
            project(projection, x_BTC).unflatten(-1, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if tokens is not None:
            if record is not None:
                rows = (tokens.spread(part).transpose(1, 2) for part in (query, key, value))
                record.append(QueryKeyValue(*rows))
            attended_NHD = unpadded_attention(query, key, value, context, **how)
            return project(self.out_proj, attended_NHD.flatten(-2))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if record is not None:
            record.append(QueryKeyValue(query, key, value))
        # recorded above are queries and keys before the turn: what students compare must not
        # depend on places
        if context.rotary_TR is not None:
            query, key = rotate(query, *context.rotary_TR), rotate(key, *context.rotary_TR)
        if memory is not None:
            # remembered keys are turned already: an angle depends on the place alone
            if memory:
                key = torch.cat([memory["key"], key], dim=2)
                value = torch.cat([memory["value"], value], dim=2)
            memory["key"], memory["value"] = key, value
        attended_BHTD = attention(query, key, value, context, **how)
        return project(self.out_proj, attended_BHTD.transpose(1, 2).flatten(-2))


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual; causal if told so.

    Post-norm: ``x = LN(x + f(x))``; pre-norm: ``x = x + f(LN(x))``; parallel:
    ``x = x + attention(LN(x)) + ffn(LN'(x))``.

    Source: Vaswani et al. 2017, section 3.1; pre-norm: Xiong et al. 2020, figure 1b; scales:
    Shleifer et al. 2021 (NormFormer), section 2, with the factors of the heads applied where the
    original applies them, on the output projection's channels; parallel: Black et al. 2022
    (GPT-NeoX), section 2.1.
    """

    self_attn_layer_norm: nn.Module
    final_layer_norm: nn.Module

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.embed_dim

        def norm(channels: int, wanted: bool = True) -> nn.Module | None:
            return LayerNorm(channels, shape.eps, implementation=shape.norm) if wanted else None

        # names and order are those of the original's checkpoints: optimizers number parameters in
        # this order, and files keep the numbers
        self.self_attn = MultiheadAttention(
            dim, shape.heads, shape.attention_dropout, shape.backend, shape.xavier_attention
        )
        self.attn_ln = norm(dim, shape.scale_attn)
        self.c_attn = nn.Parameter(torch.ones(shape.heads)) if shape.scale_heads else None
        self.activation_fn = get_activation_fn(shape.activation)
        self.self_attn_layer_norm = LayerNorm(dim, shape.eps, implementation=shape.norm)
        self.ffn_layernorm = norm(shape.ffn_dim, shape.scale_fc)
        # factors of one, so that a new layer computes what it would without them
        self.w_resid = nn.Parameter(torch.ones(dim)) if shape.scale_resids else None
        self.fc1 = nn.Linear(dim, shape.ffn_dim)
        self.fc2 = nn.Linear(shape.ffn_dim, dim)
        self.final_layer_norm = LayerNorm(dim, shape.eps, implementation=shape.norm)

    def forward(
        self,
        x_BTC: Tensor,
        context: AttentionContext = NOTHING,
        memory: dict[str, Tensor] | None = None,
        record: list[QueryKeyValue] | None = None,
    ) -> Tensor:
        """Return the layer's output, shape (B, T, C); arguments as in the attention."""
        pre, first, second = self.shape.pre_norm, self.self_attn_layer_norm, self.final_layer_norm
        attended_BTC = self._attend(first(x_BTC) if pre else x_BTC, context, memory, record)
        # both read the same x, so neither waits for the other: the sum of one and the other is
        # not that of one after the other
        if self.shape.parallel_residual:
            return self._residual(x_BTC) + attended_BTC + self._feed_forward(second(x_BTC))
        x_BTC = x_BTC + attended_BTC
        if not pre:
            x_BTC = first(x_BTC)
        fed_BTC = self._feed_forward(second(x_BTC) if pre else x_BTC)
        # w_resid weighs the second residual only, as NormFormer's code does
        x_BTC = self._residual(x_BTC) + fed_BTC
        return x_BTC if pre else second(x_BTC)

    def _attend(
        self,
        x_BTC: Tensor,
        context: AttentionContext,
        memory: dict[str, Tensor] | None,
        record: list[QueryKeyValue] | None,
    ) -> Tensor:
        x_BTC = self.self_attn(x_BTC, context, memory, record)
        # after out_proj, where channels no longer belong to one head: odd, but what the
        # original's weights were trained with
        if self.c_attn is not None:
            x_BTHD = x_BTC.unflatten(-1, (self.shape.heads, -1))
            # c_attn has one number a head; the axis behind it spreads it over the D channels
            x_BTC = (x_BTHD * self.c_attn[:, None]).flatten(-2)
        if self.attn_ln is not None:
            x_BTC = self.attn_ln(x_BTC)
        return dropout(x_BTC, self.shape.dropout, self.training)

    def _feed_forward(self, x_BTC: Tensor) -> Tensor:
        inner_BTF = self.activation_fn(project(self.fc1, x_BTC))
        inner_BTF = dropout(inner_BTF, self.shape.activation_dropout, self.training)
        if self.ffn_layernorm is not None:
            inner_BTF = self.ffn_layernorm(inner_BTF)
        return dropout(project(self.fc2, inner_BTF), self.shape.dropout, self.training)

    def _residual(self, x_BTC: Tensor) -> Tensor:
        return x_BTC if self.w_resid is None else self.w_resid * x_BTC
