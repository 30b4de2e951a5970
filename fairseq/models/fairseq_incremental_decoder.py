"""The old import path of the base of decoders that go token by token."""

from __future__ import annotations

from fairseq.models.base import FairseqIncrementalDecoder

__all__ = ["FairseqIncrementalDecoder"]
