"""The old import path of the bases of tasks."""

from __future__ import annotations

from fairseq.tasks.base import FairseqTask, LegacyFairseqTask, StatefulContainer

__all__ = ["FairseqTask", "LegacyFairseqTask", "StatefulContainer"]
