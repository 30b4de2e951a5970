"""Rotary positions: queries and keys are turned by an angle that grows with their place.

Shapes: B batch, H heads, T time, D channels of a head, R channels that are turned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError

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
        angle_TR = torch.outer(place_T, 1.0 / BASE**step_R).repeat(1, 2)
        return angle_TR.cos(), angle_TR.sin()

    def __getstate__(self) -> dict[str, object]:
        """Leave the tables out of copies and pickles; they are cheap to compute."""
        return {**self.__dict__, "_kept": None}


def rotate(x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return ``x`` with its first R channels turned, in the type of ``x``."""
    turned_BHTR, rest = x_BHTD.split([cos_TR.shape[1], x_BHTD.shape[-1] - cos_TR.shape[1]], dim=-1)
    first, second = turned_BHTR.chunk(2, dim=-1)
    crossed_BHTR = torch.cat([-second, first], dim=-1)
    turned_BHTR = (turned_BHTR * cos_TR + crossed_BHTR * sin_TR).to(x_BHTD.dtype)
    return torch.cat([turned_BHTR, rest], dim=-1)
