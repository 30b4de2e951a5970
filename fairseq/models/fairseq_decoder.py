"""The old import path of the base of decoders."""

from __future__ import annotations

from fairseq.models.base import FairseqDecoder

__all__ = ["FairseqDecoder"]
