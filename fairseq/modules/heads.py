"""Vocabulary heads: what is projected onto which weights.

A head turns hidden states into the operands of a linear projection. Training feeds them to
:func:`fairseq.ops.linear_cross_entropy.linear_cross_entropy`, inference multiplies them.

Shapes: N positions (any leading shape), C channels, V vocabulary.
"""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError, DataError
from fairseq.modules.flops import matrix_entries
from fairseq.modules.pointwise import LayerNorm, get_activation_fn, project
from fairseq.ops.linear_cross_entropy import linear_cross_entropy


class Projection(NamedTuple):
    """The operands of ``logits = hidden @ weight^T + bias``."""

    hidden_NC: Tensor
    weight_VC: Tensor
    bias_V: Tensor | None

    def logits(self) -> Tensor:
        """Return the logits, shape (N, V)."""
        return F.linear(self.hidden_NC, self.weight_VC, self.bias_V)

    def log_probs(self) -> Tensor:
        """Return ``log p`` of every word in nats, fp32 of shape (N, V)."""
        return self.logits().float().log_softmax(-1)

    def losses(self, target_N: Tensor, backend: str = "auto") -> Tensor:
        """Return ``-log p(target)`` in nats, fp32 of shape (N,), without keeping logits."""
        hidden_NC, weight_VC, bias_V = self
        return linear_cross_entropy(
            hidden_NC, weight_VC, target_N, bias_V=bias_V, backend=backend
        ).loss_N

    def rows(self, some: slice) -> Projection:
        """Return the operands for some of the positions."""
        return self._replace(hidden_NC=self.hidden_NC[some])


class VocabularyHead(nn.Module):
    """Base of the heads: subclasses define :meth:`projection`, and the table ``weight`` (V, C)."""

    weight: Tensor

    def projection(self, hidden_NC: Tensor) -> Projection:
        """Return the operands of the final projection for these hidden states."""
        raise NotImplementedError(f"{type(self).__name__} needs a method projection(hidden_NC)")

    def forward(self, features: Tensor, masked_tokens: Tensor | None = None) -> Tensor:
        """Return logits.

        Args:
            features: (B, T, C) hidden states.
            masked_tokens: bool (B, T); if given only these positions are projected.

        Returns:
            (B, T, V), or (N, V) in row-major order of the positions selected.
        """
        if masked_tokens is not None:
            features = features[masked_tokens]
        return self.projection(features).logits()


def vocabulary_entries(head: VocabularyHead | None) -> int:
    """Return the entries of all matrices a predicted token meets; 0 without a head."""
    return 0 if head is None else head.weight.numel() + matrix_entries([head])


class RobertaLMHead(VocabularyHead):
    """``LN(act(dense(h))) E^T + b``: the head of BERT and RoBERTa.

    Args:
        embed_dim: C.
        output_dim: V.
        activation_fn: name of the activation.
        weight: the embedding table to tie to; None for weights of its own.
        eps: of the layer norm.
        norm: implementation of the layer norm, ``torch`` or ``apex``.

    Source: Devlin et al. 2019, published code; Liu et al. 2019.
    """

    def __init__(
        self,
        embed_dim: int,
        output_dim: int,
        activation_fn: str,
        weight: nn.Parameter | None = None,
        eps: float = 1e-5,
        norm: str = "torch",
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.activation_fn = get_activation_fn(activation_fn)
        self.layer_norm = LayerNorm(embed_dim, eps, implementation=norm)
        self.weight = (
            # torch's own initialisation of a linear map; tied, the embeddings keep theirs
            nn.Linear(embed_dim, output_dim, bias=False).weight if weight is None else weight
        )
        self.bias = nn.Parameter(torch.zeros(output_dim))

    def projection(self, hidden_NC: Tensor) -> Projection:
        hidden_NC = self.layer_norm(self.activation_fn(project(self.dense, hidden_NC)))
        return Projection(hidden_NC, self.weight, self.bias)


class ClapHead(VocabularyHead):
    """``beta * h normalize(E)^T``: no dense layer, no bias; beta is one learned scalar.

    Args:
        weight: the embedding table.
        initial_beta: start value of beta.
        normalize: use rows of unit length; otherwise the table as it is.
        normalize_hidden: also use hidden states of unit length (cosine similarity).

    Source: the CLAP head of the EIFY fork of fairseq, after CLIP (Radford et al. 2021, 2.3).
    """

    def __init__(
        self,
        weight: nn.Parameter,
        initial_beta: float = 1.0,
        normalize: bool = True,
        normalize_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(float(initial_beta)))
        self.weight = weight
        self.normalize, self.normalize_hidden = normalize, normalize_hidden

    def projection(self, hidden_NC: Tensor) -> Projection:
        if self.normalize_hidden:
            hidden_NC = F.normalize(hidden_NC, dim=-1)
        weight_VC = F.normalize(self.weight, dim=-1) if self.normalize else self.weight
        # beta goes to the hidden states: logits are linear in both, and the table is the larger one
        return Projection(hidden_NC * self.beta, weight_VC, None)


POOLINGS = ("cls", "mean", "concat", "positions")


def pool(
    features_BTC: Tensor, pooling: str, padding_BT: Tensor | None = None, longest: int = 0
) -> Tensor:
    """Return one vector a sentence: (B, C), (B, 2 C) for ``concat``, (B, L C) for ``positions``.

    Args:
        features_BTC: hidden states.
        pooling: ``cls`` = the first token, ``mean`` = the mean over tokens, ``concat`` = both,
            ``positions`` = all tokens side by side, zeros where there is none.
        padding_BT: true where there is no token.
        longest: L of ``positions``.

    Raises:
        DataError: if there are more tokens than L.
    """
    if pooling == "positions":
        return _side_by_side(features_BTC, padding_BT, longest)
    first_BC = features_BTC[:, 0]
    if pooling == "cls":
        return first_BC
    if padding_BT is None:
        mean_BC = features_BTC.mean(1)
    else:
        kept_BT1 = (~padding_BT).unsqueeze(-1).to(features_BTC.dtype)
        mean_BC = (features_BTC * kept_BT1).sum(1) / kept_BT1.sum(1).clamp(min=1)
    return mean_BC if pooling == "mean" else torch.cat([first_BC, mean_BC], dim=-1)


def _side_by_side(features_BTC: Tensor, padding_BT: Tensor | None, longest: int) -> Tensor:
    """Return all tokens of a sentence as one vector, (B, L C)."""
    if padding_BT is not None:
        features_BTC = features_BTC.masked_fill(padding_BT[..., None], 0)
    missing = longest - features_BTC.shape[1]
    if missing < 0 and (padding_BT is None or not bool(padding_BT[:, longest:].all())):
        raise DataError(
            f"a sentence of {features_BTC.shape[1]} tokens is longer than the {longest} that "
            "--pooling positions looks at; raise --max-positions, or --shorten-method truncate"
        )
    # a negative number cuts off, which only padding reaches here
    return F.pad(features_BTC, (0, 0, 0, missing)).flatten(1)


def pooled_width(channels: int, pooling: str, longest: int) -> int:
    """Return the channels of what :func:`pool` returns."""
    return channels * {"concat": 2, "positions": longest}.get(pooling, 1)


def checked_classes(name: object, num_classes: object) -> int:
    """Return the number of classes of a new classification head, if it can be called so.

    Raises:
        ConfigError: saying what is wrong.
    """
    if not name or not isinstance(name, str) or "." in name:
        raise ConfigError(
            f"a classification head cannot be called {name!r}: dots part the names of tensors; "
            "choose letters, digits and underscores"
        )
    if num_classes is None:
        raise ConfigError(f"the new classification head '{name}' needs num_classes")
    if not isinstance(num_classes, Integral) or int(num_classes) < 1:
        raise ConfigError(f"the classification head '{name}' cannot have {num_classes!r} classes")
    return int(num_classes)


class LinearProbe(nn.Module):
    """Classify a sentence by a linear map of its pooled hidden states, and nothing else.

    Args:
        input_dim: C.
        num_classes: outputs.
        dropout: before the map.
        pooling: see :func:`pool`.
        longest: its L.
    """

    def __init__(
        self,
        input_dim: int,
        num_classes: int,
        dropout: float = 0.0,
        pooling: str = "cls",
        longest: int = 0,
    ) -> None:
        super().__init__()
        self.pooling, self.longest = pooling, longest
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(pooled_width(input_dim, pooling, longest), num_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the number of classes and the width of the input."""
        return tuple(self.out_proj.weight.shape)

    def forward(self, features_BTC: Tensor, padding_BT: Tensor | None = None) -> Tensor:
        """Return the scores of the classes, shape (B, num_classes)."""
        pooled_BC = pool(features_BTC, self.pooling, padding_BT, self.longest)
        return self.out_proj(self.dropout(pooled_BC))


class ClassificationHead(nn.Module):
    """Classify a sentence from its first token, or from the mean of its tokens.

    Args:
        input_dim: C.
        inner_dim: channels of the hidden layer.
        num_classes: outputs.
        activation_fn: name of the activation.
        dropout: before both layers.
        pooling: see :func:`pool`.
        longest: its L.
    """

    def __init__(
        self,
        input_dim: int,
        inner_dim: int,
        num_classes: int,
        activation_fn: str,
        dropout: float,
        pooling: str = "cls",
        longest: int = 0,
    ) -> None:
        super().__init__()
        self.pooling, self.longest = pooling, longest
        self.dense = nn.Linear(pooled_width(input_dim, pooling, longest), inner_dim)
        self.activation_fn = get_activation_fn(activation_fn)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(inner_dim, num_classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the number of classes, the inner width and the width of the input."""
        return self.out_proj.out_features, *self.dense.weight.shape

    def set_inner_width(self, inner_dim: int) -> None:
        """Give the hidden layer another width, for weights of that width to be loaded next."""
        dense, out = self.dense, self.out_proj
        dense.out_features = out.in_features = inner_dim
        # in place: an optimizer that holds the parameters goes on holding them
        dense.weight.data = dense.weight.new_zeros(inner_dim, dense.in_features)
        dense.bias.data = dense.bias.new_zeros(inner_dim)
        out.weight.data = out.weight.new_zeros(out.out_features, inner_dim)

    def forward(self, features_BTC: Tensor, padding_BT: Tensor | None = None) -> Tensor:
        """Return the scores of the classes, shape (B, num_classes)."""
        pooled_BC = self.dropout(pool(features_BTC, self.pooling, padding_BT, self.longest))
        return self.out_proj(self.dropout(self.activation_fn(self.dense(pooled_BC))))


class LinearHead(VocabularyHead):
    """``h W^T``, and ``+ b`` if asked for: the output layer of GPT.

    Args:
        embed_dim: C.
        output_dim: V.
        weight: the embedding table to tie to; None for weights of its own, drawn from
            N(0, C^-0.5).
        bias: add a bias, zero at first.
    """

    def __init__(
        self,
        embed_dim: int,
        output_dim: int,
        weight: nn.Parameter | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if weight is None:
            weight = nn.Parameter(torch.empty(output_dim, embed_dim).normal_(std=embed_dim**-0.5))
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(output_dim)) if bias else None

    def projection(self, hidden_NC: Tensor) -> Projection:
        # as a view: DDP misses parameters that leave the forward pass as they are
        bias_V = None if self.bias is None else self.bias.view_as(self.bias)
        return Projection(hidden_NC, self.weight, bias_V)
