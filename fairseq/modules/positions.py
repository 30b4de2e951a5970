"""Where a token stands: learned and sinusoidal embeddings, and ALiBi's bias on the scores.

Shapes: B batch, T time, C channels, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError, DataError
from fairseq.modules.initial import redrawn
from fairseq.utils import make_positions

NO_PAD = -1  # an id that no token has


class LearnedPositionalEmbedding(nn.Embedding):
    """One learned vector per position; row ``padding_idx`` stays zero.

    Args:
        num_embeddings: rows of the table, ``max_positions + padding_idx + 1`` for RoBERTa.
        embedding_dim: channels.
        padding_idx: id of the pad symbol; None if there is none, and positions begin at 0.
        offset: position of the first token (``padding_idx + 1`` if None, 0 for BERT).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        offset: int | None = None,
    ) -> None:
        if padding_idx is None:
            padding_idx, offset = NO_PAD, offset or 0
        # a table that starts at 0 has no spare row for pads: theirs is somebody else's, too
        super().__init__(num_embeddings, embedding_dim, padding_idx if offset is None else None)
        self.pad, self.offset = padding_idx, offset
        first = padding_idx + 1 if offset is None else offset
        self.max_positions = num_embeddings - first

    def forward(
        self,
        tokens_BT: Tensor,
        incremental_state: object = None,
        positions: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the position vectors, shape (B, T, C); what pads get has no meaning.

        Args:
            tokens_BT: ids.
            incremental_state: given in a step of a generation, which asks for the last token alone.
            positions: rows of the table, (B, T), in place of those counted from the tokens.
            documents_BT: number of the document of each token; counting starts anew with each.

        Raises:
            DataError: if a row has more tokens than the table has positions.
        """
        if positions is not None:
            return F.embedding(positions, self.weight, self.padding_idx)
        positions_BT = make_positions(
            tokens_BT, self.pad, offset=self.offset, documents=documents_BT
        )
        if self.offset is not None:
            # nobody reads what pads get; 0 is a row that every table has
            positions_BT = positions_BT.where(tokens_BT.ne(self.pad), 0)
        # pads need no position: only where they alone make a row too long is there doubt
        if tokens_BT.shape[1] > self.max_positions:
            first = self.pad + 1 if self.offset is None else self.offset
            longest = int((positions_BT.where(tokens_BT.ne(self.pad), 0) - first).max()) + 1
            if longest > self.max_positions:
                raise DataError(
                    f"a sequence of {longest} tokens exceeds the {self.max_positions} learned "
                    f"positions of this model; shorten it, or train with --max-positions {longest} "
                    f"(a decoder: --max-target-positions {longest}) or --position alibi"
                )
        if incremental_state is not None:
            positions_BT = positions_BT[:, -1:]
        return F.embedding(positions_BT, self.weight, self.padding_idx)


def sinusoidal_table(positions: int, channels: int, padding_idx: int | None) -> Tensor:
    """Return the table of sines (first half of the channels) and cosines (second half).

    Source: Vaswani et al. 2017, section 3.5, in the layout of tensor2tensor: frequencies
    ``10000^(-i / (C/2 - 1))``; row ``padding_idx`` is zero.

    Returns:
        fp32 of shape (positions, channels).
    """
    # half - 1 in the divisor, so that the last frequency is 1/10000 exactly (the paper's own
    # formula stops short of it): weights trained with one do not fit the other
    half = channels // 2
    step = math.log(10000) / (half - 1)
    frequencies_C = torch.exp(torch.arange(half, dtype=torch.float) * -step)
    angles_PC = torch.arange(positions, dtype=torch.float)[:, None] * frequencies_C[None]
    table_PC = torch.cat([angles_PC.sin(), angles_PC.cos()], 1)
    # sines and cosines come in pairs: an odd channel is left over and stays zero
    if channels % 2:
        table_PC = torch.cat([table_PC, torch.zeros(positions, 1)], 1)
    if padding_idx is not None:
        table_PC[padding_idx] = 0
    return table_PC


class SinusoidalPositionalEmbedding(nn.Module):
    """Fixed sines and cosines; the table grows with the longest sequence seen.

    Args:
        embedding_dim: channels.
        padding_idx: id of the pad symbol; None if there is none, and positions begin at 0.
        init_size: rows of the table to begin with.
        offset: position of the first token (``padding_idx + 1``, and a zero row for pads, if None).
    """

    def __init__(
        self,
        embedding_dim: int,
        padding_idx: int | None,
        init_size: int = 1024,
        offset: int | None = None,
    ) -> None:
        super().__init__()
        if padding_idx is None:
            padding_idx, offset = NO_PAD, offset or 0
        self.embedding_dim, self.padding_idx, self.offset = embedding_dim, padding_idx, offset
        # a formality: the table grows on demand
        self.max_positions = int(1e5)
        self.register_buffer("table", self._table(init_size), persistent=False)
        self.table: Tensor

    @torch.inference_mode(False)  # what is kept must serve training, too
    def _table(self, rows: int) -> Tensor:
        zero_row = self.padding_idx if self.offset is None else None
        return sinusoidal_table(rows, self.embedding_dim, zero_row)

    def forward(
        self,
        tokens_BT: Tensor,
        incremental_state: object = None,
        positions: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the position vectors, shape (B, T, C), as :class:`LearnedPositionalEmbedding`."""
        if positions is None:
            # positions begin behind the row of the pads, see make_positions
            needed = max(self.padding_idx + 1, self.offset or 0) + tokens_BT.shape[1]
            positions = make_positions(
                tokens_BT, self.padding_idx, offset=self.offset, documents=documents_BT
            )
            if incremental_state is not None:
                positions = positions[:, -1:]
        else:
            needed = int(positions.max()) + 1
        if needed > self.table.shape[0]:
            self.table = self._table(needed).to(self.table)
        return self.table[positions]


def PositionalEmbedding(
    num_embeddings: int, embedding_dim: int, padding_idx: int | None, learned: bool = False
) -> nn.Module:
    """Return a learned or a sinusoidal position embedding for ``num_embeddings`` positions."""
    rows = num_embeddings + (0 if padding_idx is None else padding_idx + 1)
    if learned:
        return redrawn(LearnedPositionalEmbedding(rows, embedding_dim, padding_idx))
    return SinusoidalPositionalEmbedding(embedding_dim, padding_idx, rows)


def alibi_slopes(heads: int, chosen: Sequence[float] | None = None) -> Tensor:
    """Return the slope of each head, fp32 of shape (H,): those chosen, or the formula's.

    For a power of two, ``2^(-8 i / H)`` with i = 1..H; otherwise the slopes of the next lower
    power of two, then every other slope of the next higher one.

    Source: Press et al. 2022 (ALiBi), section 3 and its published code.

    Raises:
        ConfigError: if other than H are chosen.
    """
    if chosen is not None:
        if len(chosen) != heads:
            raise ConfigError(f"--alibi-slopes gives {len(chosen)} numbers for {heads} heads")
        return torch.tensor(chosen, dtype=torch.float32)
    # the formula wants powers of two; in between, every other slope of the next one fills up
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    upper = [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(slopes + upper, dtype=torch.float32)


# wavelengths go from 2 pi to 2 pi BASE tokens; files do not state it, so it cannot be changed
BASE = 10000.0


class RotaryPositions(nn.Module):
    """Cosines and sines of the angles, at any length; nothing of it is in the state dict.

    Channel i < R/2 is turned together with channel i + R/2 by ``place * 10000^(-2 i / R)``.

    Args:
        head_dim: D.
        fraction: share of the channels that are turned; the others stay as they are.

    Raises:
        ConfigError: if the fraction leaves no even number of channels.

    Source: Su et al. 2021 (RoFormer), section 3.2; halves and fraction as in GPT-NeoX (Black et
    al. 2022, section 2.1).
    """

    def __init__(self, head_dim: int, fraction: float = 1.0) -> None:
        super().__init__()
        self.turned = int(head_dim * fraction)
        if not 0 < self.turned <= head_dim or self.turned % 2:
            raise ConfigError(
                f"--rotary-fraction {fraction} turns {self.turned} of the {head_dim} channels of a "
                "head; it must be an even number of them, and at least two"
            )
        # plain attributes: model.half() must not touch them
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, length: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return cosines and sines, fp32 of shape (T, R), for the first ``length`` places."""
        kept = self._kept
        if kept is None or len(kept[0]) < length or kept[0].device != torch.device(device):
            self._kept = kept = self._tables(length, device)
        return kept[0][:length], kept[1][:length]

    @torch.inference_mode(False)  # what is kept must serve training, too
    def _tables(self, length: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        step_R = torch.arange(0, self.turned, 2, device=device, dtype=torch.float32) / self.turned
        place_T = torch.arange(length, device=device, dtype=torch.float32)
        # repeated, not interleaved: channel i is turned with channel i + R/2
        angle_TR = torch.outer(place_T, 1.0 / BASE**step_R).repeat(1, 2)
        return angle_TR.cos(), angle_TR.sin()

    def __getstate__(self) -> dict[str, object]:
        """Leave the tables out of copies and pickles; they are cheap to compute."""
        return {**self.__dict__, "_kept": None}


def rotate(x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return ``x`` with its first R channels turned, in the type of ``x``."""
    turned_BHTR, rest = x_BHTD.split([cos_TR.shape[1], x_BHTD.shape[-1] - cos_TR.shape[1]], dim=-1)
    first, second = turned_BHTR.chunk(2, dim=-1)
    # a turn by an angle: (x, y) to (x cos - y sin, y cos + x sin)
    crossed_BHTR = torch.cat([-second, first], dim=-1)
    turned_BHTR = (turned_BHTR * cos_TR + crossed_BHTR * sin_TR).to(x_BHTD.dtype)
    return torch.cat([turned_BHTR, rest], dim=-1)
