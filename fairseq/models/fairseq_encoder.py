"""An old import path: the base of encoders, and what an encoder hands to a decoder."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fairseq.models.base import FairseqEncoder

__all__ = ["EncoderOut", "FairseqEncoder"]


class EncoderOut(NamedTuple):
    """What encoders of plug-ins return: hidden states (T, B, C) and what belongs to them."""

    encoder_out: Tensor
    encoder_padding_mask: Tensor | None
    encoder_embedding: Tensor | None
    encoder_states: list[Tensor] | None
    src_tokens: Tensor | None
    src_lengths: Tensor | None
