"""The original's module of compiled batching functions; here they are plain numpy."""

from __future__ import annotations

from fairseq.data.batching import batch_by_size_fn, batch_by_size_vec

__all__ = ["batch_by_size_fn", "batch_by_size_vec"]
