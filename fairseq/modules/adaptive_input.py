"""Adaptive input: frequent words get wide embeddings, rare ones narrow ones.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.flops import band_entries


class AdaptiveInput(nn.Module):
    """A table for every band of the vocabulary, each followed by a projection to C channels.

    Args:
        vocab_size: number of words, sorted by falling frequency.
        padding_idx: id of the pad symbol, in the first band.
        initial_dim: channels of the first band's table; band k has ``initial_dim / factor^k``.
        factor: see above.
        output_dim: C.
        cutoff: first word behind each band; the last band ends with the vocabulary.

    Source: Baevski and Auli 2019, section 3.
    """

    def __init__(
        self,
        vocab_size: int,
        padding_idx: int,
        initial_dim: int,
        factor: float,
        output_dim: int,
        cutoff: Sequence[int],
    ) -> None:
        super().__init__()
        self.cutoff = bands_of(vocab_size, cutoff)
        self.embedding_dim, self.padding_idx = output_dim, padding_idx
        self.embeddings = nn.ModuleList()
        for band, (start, end) in enumerate(zip([0, *self.cutoff], self.cutoff, strict=False)):
            dim = band_width(initial_dim, factor, band)
            table = nn.Embedding(end - start, dim, padding_idx if band == 0 else None)
            projection = nn.Linear(dim, output_dim, bias=False)
            nn.init.normal_(table.weight, std=dim**-0.5)
            # in every band, as in the original: behind the first it is an ordinary word that starts
            # at zero
            nn.init.zeros_(table.weight[padding_idx : padding_idx + 1])
            nn.init.xavier_uniform_(projection.weight)
            self.embeddings.append(nn.Sequential(table, projection))
        # the original's checkpoints have it
        self.register_buffer("_float_tensor", torch.zeros(1))

    def weights_for_band(self, band: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the table (words, dim) and the projection (C, dim) of a band."""
        band_layers: Any = self.embeddings[band]
        return band_layers[0].weight, band_layers[1].weight

    def entries(self, counts: Sequence[int]) -> int:
        """Return the entries of the projection that a token meets on average, by words' counts."""
        sizes = [self.weights_for_band(band)[1].numel() for band in range(len(self.cutoff))]
        return band_entries(counts, self.cutoff, sizes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the embeddings, shape (B, T, C)."""
        tokens_N = tokens_BT.flatten()
        out_NC: Tensor | None = None
        for start, end, embed in zip([0, *self.cutoff], self.cutoff, self.embeddings, strict=False):
            rows = ((tokens_N >= start) & (tokens_N < end)).nonzero()[:, 0]
            # also without any row, so that every process has a gradient for every parameter
            embedded = embed(tokens_N[rows] - start)
            if out_NC is None:
                out_NC = embedded.new_zeros(len(tokens_N), self.embedding_dim)
            # not in place: each band leaves a gradient of its own
            out_NC = out_NC.index_copy(0, rows, embedded)
        assert out_NC is not None
        return out_NC.view(*tokens_BT.shape, -1)


def bands_of(vocab_size: int, cutoff: Sequence[int]) -> list[int]:
    """Return where each band of a vocabulary ends, the last one at its end.

    Raises:
        ConfigError: if the vocabulary has fewer words than the bands.
    """
    if vocab_size < cutoff[-1]:
        raise ConfigError(
            f"the vocabulary has {vocab_size} words, but its bands end at {cutoff[-1]}; lower the "
            "last number of --adaptive-input-cutoff and --adaptive-softmax-cutoff"
        )
    return [*cutoff] if cutoff[-1] == vocab_size else [*cutoff, vocab_size]


def band_width(first: int, factor: float, band: int) -> int:
    """Return the channels of a band, ``first / factor^band`` rounded down.

    Raises:
        ConfigError: if none is left.
    """
    width = int(first // factor**band)
    if width < 1:
        raise ConfigError(
            f"band {band} of the vocabulary would have no channel ({first} / {factor:g}^{band}); "
            "lower --adaptive-input-factor and --adaptive-softmax-factor, or name fewer bands"
        )
    return width
