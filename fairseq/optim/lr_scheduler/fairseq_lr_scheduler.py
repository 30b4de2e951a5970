"""The old import path of the bases of learning-rate schedulers."""

from __future__ import annotations

from fairseq.optim.lr_scheduler import FairseqLRScheduler, LegacyFairseqLRScheduler

__all__ = ["FairseqLRScheduler", "LegacyFairseqLRScheduler"]
