"""The old import path of the bases of models."""

from __future__ import annotations

from fairseq.models.base import (
    BaseFairseqModel,
    FairseqEncoderDecoderModel,
    FairseqEncoderModel,
    FairseqLanguageModel,
)

__all__ = [
    "BaseFairseqModel",
    "FairseqEncoderDecoderModel",
    "FairseqEncoderModel",
    "FairseqLanguageModel",
]
