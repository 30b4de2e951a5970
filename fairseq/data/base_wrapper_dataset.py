"""The old import path of the base of datasets that wrap another."""

from __future__ import annotations

from fairseq.data.wrappers import BaseWrapperDataset

__all__ = ["BaseWrapperDataset"]
