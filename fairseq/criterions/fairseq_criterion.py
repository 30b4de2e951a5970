"""The old import path of the bases of criterions."""

from __future__ import annotations

from fairseq.criterions.base import FairseqCriterion, LegacyFairseqCriterion

__all__ = ["FairseqCriterion", "LegacyFairseqCriterion"]
