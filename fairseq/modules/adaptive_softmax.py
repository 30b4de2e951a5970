"""Adaptive softmax: frequent words are classes of one softmax, rare ones stand in bands behind it.

``log p(word) = log p_head(word)`` in the first band; in band k
``log p(word) = log p_head(band k) + log p_k(word)``.

Shapes: N positions, C channels, V vocabulary, H classes of the head (the first band's words, then
one for every other band), K words of a band.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.adaptive_input import AdaptiveInput, band_width, bands_of
from fairseq.modules.flops import band_entries
from fairseq.modules.initial import Linear
from fairseq.ops.dropout import dropout as drop
from fairseq.ops.linear_cross_entropy import linear_cross_entropy


@dataclasses.dataclass(frozen=True)
class AdaptiveProjection:
    """What the adaptive softmax is computed from at N positions.

    Attributes:
        cutoff: where each band ends.
        hidden_NC: hidden states.
        head_HC: weights of the head.
        tails: the bands' factors: (dim, C) makes hidden states narrow, (K, dim) projects them.
        dropout: on narrow hidden states.
    """

    cutoff: Sequence[int]
    hidden_NC: Tensor
    head_HC: Tensor
    tails: Sequence[tuple[Tensor, Tensor]]
    dropout: float

    def __iter__(self) -> NoReturn:
        """Refuse to be taken for the three operands of one projection."""
        raise ConfigError("a model with adaptive softmax is trained with --criterion adaptive_loss")

    def losses(self, target_N: Tensor, backend: str = "auto") -> Tensor:
        """Return ``-log p(target)`` in nats, fp32 of shape (N,), without keeping logits.

        Args:
            target_N: int64 words.
            backend: see :func:`fairseq.ops.linear_cross_entropy.linear_cross_entropy`.
        """
        first = self.cutoff[0]
        bounds_K = torch.tensor(self.cutoff[:-1], device=target_N.device)
        band_N = torch.bucketize(target_N, bounds_K, right=True)  # 0 is the head
        class_N = target_N.where(band_N == 0, first - 1 + band_N)
        loss_N = linear_cross_entropy(self.hidden_NC, self.head_HC, class_N, backend=backend).loss_N
        for band, (narrow, out) in enumerate(self.tails, start=1):
            # also without any row, so that every process has a gradient for every parameter
            rows = (band_N == band).nonzero()[:, 0]
            hidden = drop(F.linear(self.hidden_NC[rows], narrow), self.dropout)
            # a band counts its words from its own first one
            word = target_N[rows] - self.cutoff[band - 1]
            tail = linear_cross_entropy(hidden, out, word, backend=backend).loss_N
            loss_N = loss_N.index_add(0, rows, tail)
        return loss_N

    def logits(self) -> Tensor:
        """Return log-probabilities: there are no logits of all words, and these do as well."""
        return self.log_probs()

    def rows(self, some: slice) -> AdaptiveProjection:
        """Return the same for some of the positions."""
        return dataclasses.replace(self, hidden_NC=self.hidden_NC[some])

    def log_probs(self) -> Tensor:
        """Return ``log p`` of every word, fp32 of shape (N, V)."""
        head_NH = F.linear(self.hidden_NC, self.head_HC).float().log_softmax(-1)
        first = self.cutoff[0]
        parts = [head_NH[:, :first]]
        for band, (narrow, out) in enumerate(self.tails):
            logits_NK = F.linear(F.linear(self.hidden_NC, narrow), out)
            # p(word) = p(band) p(word | band): the logarithms add up
            parts.append(logits_NK.float().log_softmax(-1) + head_NH[:, first + band, None])
        return torch.cat(parts, dim=-1)


class _Tied(nn.Module):
    """Holds a weight of the adaptive input under the name it has in the original's checkpoints."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


class _TiedHead(nn.Module):
    """The head whose words are tied to the first band of the adaptive input."""

    def __init__(self, words: nn.Parameter, dim: int, bands: int) -> None:
        super().__init__()
        self.word_proj = _Tied(words)
        self.class_proj = Linear(dim, bands, bias=False)
        # the original's checkpoints have it
        self.register_buffer("_float_tensor", torch.zeros(1))

    @property
    def weight(self) -> Tensor:
        """Return the weights of words and bands together, (H, C)."""
        return torch.cat([self.word_proj.weight, self.class_proj.weight])


class AdaptiveSoftmax(nn.Module):
    """A softmax over a large vocabulary, sorted by falling frequency.

    Args:
        vocab_size: V.
        input_dim: C.
        cutoff: first word behind each band; the last band ends with the vocabulary.
        dropout: on the hidden states of the bands.
        factor: band k has ``C / factor^k`` channels.
        adaptive_inputs: tie the words' weights to these embeddings.
        tie_proj: tie the bands' projections, too.

    Source: Grave et al. 2017; tying: Baevski and Auli 2019, section 3.
    """

    def __init__(
        self,
        vocab_size: int,
        input_dim: int,
        cutoff: Sequence[int],
        dropout: float,
        factor: float = 4.0,
        adaptive_inputs: AdaptiveInput | None = None,
        tie_proj: bool = False,
    ) -> None:
        super().__init__()
        self.cutoff, self.dropout = bands_of(vocab_size, cutoff), dropout
        bands = len(self.cutoff) - 1
        if adaptive_inputs is None:
            self.head: Any = Linear(input_dim, self.cutoff[0] + bands, bias=False)
        else:
            self.head = _TiedHead(adaptive_inputs.weights_for_band(0)[0], input_dim, bands)
        self.tail = nn.ModuleList()
        for band in range(1, bands + 1):
            dim, words = (
                band_width(input_dim, factor, band),
                self.cutoff[band] - self.cutoff[band - 1],
            )
            narrow: nn.Module = Linear(input_dim, dim, bias=False)
            out: nn.Module = Linear(dim, words, bias=False)
            if adaptive_inputs is not None:
                table, projection = adaptive_inputs.weights_for_band(band)
                out = _Tied(table)
                narrow = _Tied(projection) if tie_proj else narrow
            self.tail.append(nn.Sequential(narrow, nn.Dropout(dropout), out))
        self.tied_proj = adaptive_inputs is not None and tie_proj
        self.register_buffer("version", torch.tensor([1]))

    def projection(self, hidden_NC: Tensor) -> AdaptiveProjection:
        """Return what the log-probabilities at these hidden states are computed from."""
        tails = []
        tail: Any  # a Sequential of (projection, dropout, output)
        for tail in self.tail:
            narrow, out = tail[0].weight, tail[2].weight
            # the input projects K to C, the output C to K: tied, it is the transpose
            narrow = narrow.t() if self.tied_proj else narrow.view_as(narrow)
            tails.append((narrow, out.view_as(out)))
        head_HC = self.head.weight.view_as(self.head.weight)
        dropout = self.dropout if self.training else 0.0
        return AdaptiveProjection(self.cutoff, hidden_NC, head_HC, tails, dropout)

    def entries(self, counts: Sequence[int]) -> int:
        """Return the entries of matrices that a predicted token meets on average, by counts."""
        tails: Any = self.tail
        sizes = [tail[0].weight.numel() + tail[2].weight.numel() for tail in tails]
        return self.head.weight.numel() + band_entries(counts, self.cutoff, sizes, first=1)

    def get_log_prob(self, hidden: Tensor, target: Tensor | None = None) -> Tensor:
        """Return ``log p`` of every word, fp32: (..., C) to (..., V); ``target`` is ignored."""
        log_p_NV = self.projection(hidden.flatten(0, -2)).log_probs()
        return log_p_NV.view(*hidden.shape[:-1], -1)
