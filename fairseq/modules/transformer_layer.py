"""One Transformer layer: self-attention and a feed-forward network, each with a residual.

Shapes: B batch, T time, C channels, H heads, D channels of a head, F inner channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fairseq.modules.activations import get_activation_fn
from fairseq.modules.layer_norm import LayerNorm
from fairseq.ops.attention import attention, check_backend
from fairseq.ops.dropout import dropout


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


class MultiheadAttention(nn.Module):
    """Self-attention with separate projections, as the original stores them.

    Args:
        embed_dim: C.
        num_heads: H.
        dropout: on attention weights, in training.
        backend: see :func:`fairseq.ops.attention.attention`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, backend: str = "auto"
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

    def forward(
        self,
        x_BTC: Tensor,
        bias_1HTT: Tensor | None = None,
        key_padding_mask_BT: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return the attended values, shape (B, T, C).

        Args:
            x_BTC: input.
            bias_1HTT: added to the scores.
            key_padding_mask_BT: True at pads.
            causal: hide the future.
        """
        batch, length, channels = x_BTC.shape
        query, key, value = (
            projection(x_BTC).view(batch, length, self.num_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # each (B, H, T, D)
        attended_BHTD = attention(
            query,
            key,
            value,
            bias_1HTS=bias_1HTT,
            key_padding_mask_BS=key_padding_mask_BT,
            causal=causal,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        return self.out_proj(attended_BHTD.transpose(1, 2).reshape(batch, length, channels))


class TransformerEncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network.

    Post-norm: ``x = LN(x + f(x))``; pre-norm: ``x = x + f(LN(x))``.

    Source: Vaswani et al. 2017, section 3.1; pre-norm: Xiong et al. 2020, figure 1b.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.embed_dim
        self.self_attn = MultiheadAttention(
            dim, shape.heads, shape.attention_dropout, shape.backend
        )
        self.self_attn_layer_norm = LayerNorm(dim, shape.eps, implementation=shape.norm)
        self.fc1 = nn.Linear(dim, shape.ffn_dim)
        self.fc2 = nn.Linear(shape.ffn_dim, dim)
        self.final_layer_norm = LayerNorm(dim, shape.eps, implementation=shape.norm)
        self.activation_fn = get_activation_fn(shape.activation)

    def forward(
        self,
        x_BTC: Tensor,
        bias_1HTT: Tensor | None = None,
        key_padding_mask_BT: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return the layer's output, shape (B, T, C); arguments as in the attention."""
        pre = self.shape.pre_norm
        attended_BTC = self.self_attn(
            self.self_attn_layer_norm(x_BTC) if pre else x_BTC,
            bias_1HTT,
            key_padding_mask_BT,
            causal,
        )
        x_BTC = x_BTC + self._drop(attended_BTC)
        if not pre:
            x_BTC = self.self_attn_layer_norm(x_BTC)
        inner_BTF = self.activation_fn(self.fc1(self.final_layer_norm(x_BTC) if pre else x_BTC))
        inner_BTF = dropout(inner_BTF, self.shape.activation_dropout, self.training)
        x_BTC = x_BTC + self._drop(self.fc2(inner_BTF))
        return x_BTC if pre else self.final_layer_norm(x_BTC)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.shape.dropout, self.training)
