"""Where a token stands: learned and sinusoidal embeddings, and ALiBi's bias on the scores.

Shapes: B batch, T time, C channels, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import DataError


def make_positions(tokens_BT: Tensor, padding_idx: int, offset: int | None = None) -> Tensor:
    """Number the non-pad tokens of each row; pads keep ``padding_idx``.

    Args:
        tokens_BT: token ids.
        padding_idx: id of the pad symbol.
        offset: number of the first token; ``padding_idx + 1`` if None.

    Returns:
        int64 positions of shape (B, T).
    """
    real_BT = tokens_BT.ne(padding_idx)
    first = padding_idx + 1 if offset is None else offset
    counted_BT = real_BT.cumsum(1) - 1 + first
    return counted_BT.where(real_BT, padding_idx)


class LearnedPositionalEmbedding(nn.Embedding):
    """One learned vector per position; row ``padding_idx`` stays zero.

    Args:
        num_embeddings: rows of the table, ``max_positions + padding_idx + 1`` for RoBERTa.
        embedding_dim: channels.
        padding_idx: id of the pad symbol.
        offset: position of the first token (``padding_idx + 1`` if None, 0 for BERT).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int, offset: int | None = None
    ) -> None:
        # a table that starts at 0 has no spare row for pads; they are zeroed after the lookup
        super().__init__(num_embeddings, embedding_dim, padding_idx if offset is None else None)
        self.pad, self.offset = padding_idx, offset
        first = padding_idx + 1 if offset is None else offset
        self.max_positions = num_embeddings - first

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the position vectors, shape (B, T, C).

        Raises:
            DataError: if a row is longer than the table.
        """
        if tokens_BT.shape[1] > self.max_positions:
            raise DataError(
                f"a sequence of {tokens_BT.shape[1]} tokens exceeds the {self.max_positions} "
                "learned positions of this model; shorten it, or train with --position alibi"
            )
        positions_BT = make_positions(tokens_BT, self.pad, self.offset)
        if self.offset is not None:
            positions_BT = positions_BT.where(tokens_BT.ne(self.pad), 0)
        return F.embedding(positions_BT, self.weight, self.padding_idx)


def sinusoidal_table(positions: int, channels: int, padding_idx: int | None) -> Tensor:
    """Return the table of sines (first half of the channels) and cosines (second half).

    Source: Vaswani et al. 2017, section 3.5, in the layout of tensor2tensor: frequencies
    ``10000^(-i / (C/2 - 1))``; row ``padding_idx`` is zero.

    Returns:
        fp32 of shape (positions, channels).
    """
    half = channels // 2
    step = math.log(10000) / (half - 1)
    frequencies_C = torch.exp(torch.arange(half, dtype=torch.float) * -step)
    angles_PC = torch.arange(positions, dtype=torch.float)[:, None] * frequencies_C[None]
    table_PC = torch.cat([angles_PC.sin(), angles_PC.cos()], 1)
    if channels % 2:
        table_PC = torch.cat([table_PC, torch.zeros(positions, 1)], 1)
    if padding_idx is not None:
        table_PC[padding_idx] = 0
    return table_PC


class SinusoidalPositionalEmbedding(nn.Module):
    """Fixed sines and cosines; the table grows with the longest sequence seen."""

    def __init__(self, embedding_dim: int, padding_idx: int, init_size: int = 1024) -> None:
        super().__init__()
        self.embedding_dim, self.padding_idx = embedding_dim, padding_idx
        self.max_positions = int(1e5)
        table_PC = sinusoidal_table(init_size, embedding_dim, padding_idx)
        self.register_buffer("table", table_PC, persistent=False)
        self.table: Tensor

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the position vectors, shape (B, T, C)."""
        needed = self.padding_idx + 1 + tokens_BT.shape[1]
        if needed > self.table.shape[0]:
            grown_PC = sinusoidal_table(needed, self.embedding_dim, self.padding_idx)
            self.table = grown_PC.to(self.table)
        return self.table[make_positions(tokens_BT, self.padding_idx)]


def PositionalEmbedding(
    num_embeddings: int, embedding_dim: int, padding_idx: int, learned: bool = False
) -> nn.Module:
    """Return a learned or a sinusoidal position embedding for ``num_embeddings`` positions."""
    if learned:
        return LearnedPositionalEmbedding(
            num_embeddings + padding_idx + 1, embedding_dim, padding_idx
        )
    return SinusoidalPositionalEmbedding(
        embedding_dim, padding_idx, num_embeddings + padding_idx + 1
    )


def alibi_slopes(heads: int) -> Tensor:
    """Return the slope of each head, fp32 of shape (H,).

    For a power of two, ``2^(-8 i / H)`` with i = 1..H; otherwise the slopes of the next lower
    power of two, then every other slope of the next higher one.

    Source: Press et al. 2022 (ALiBi), section 3 and its published code.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    upper = [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(slopes + upper, dtype=torch.float32)


class AlibiBias(nn.Module):
    """ALiBi's linear bias for encoders and decoders, at any length.

    ``bias = -slope_h * (|i - j| - 0.5 [asymmetric and j > i])`` for query i and key j. Nothing of
    it is in the state dict. The bias is computed in fp32 and the largest one is kept.

    Source: Press et al. 2022, section 3; the encoder variants are those of the authors' issue 5.
    """

    def __init__(self, heads: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.heads, self.asymmetric = heads, asymmetric
        # a plain attribute: model.half() must not touch it, or neighbouring keys become equal
        self._kept: Tensor | None = None

    def forward(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the bias, fp32 of shape (1, H, T, T), for sequences of ``length`` tokens."""
        kept = self._kept
        if kept is None or kept.shape[-1] < length or kept.device != torch.device(device):
            place_T = torch.arange(length, device=device, dtype=torch.float32)
            offset_TT = place_T[None, :] - place_T[:, None]  # key minus query
            distance_TT = offset_TT.abs()
            if self.asymmetric:
                distance_TT = distance_TT - 0.5 * (offset_TT > 0)
            slopes_H = alibi_slopes(self.heads).to(device)
            self._kept = kept = (-slopes_H[:, None, None] * distance_TT)[None]
        return kept[:, :, :length, :length]

    def __getstate__(self) -> dict[str, object]:
        """Leave the kept bias out of copies and pickles; it is cheap to compute."""
        return {**self.__dict__, "_kept": None}
