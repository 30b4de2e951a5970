"""Out of memory: the same update in smaller batches.

A loss that is a sum over the rows of a batch has the same gradient however the rows are dealt out.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from fairseq.data.datasets.base import FairseqDataset
from fairseq.protocols import Sample

logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device ran out of memory; some libraries only say so in words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error)
    )


def cells_of(sample: Sample) -> int:
    """Return rows times columns of a batch, padding included; 0 if it does not say."""
    tokens = sample.get("net_input", {}).get("src_tokens") if isinstance(sample, dict) else None
    return int(tokens.numel()) if torch.is_tensor(tokens) else 0


def halves(sample: Sample, dataset: FairseqDataset, epoch: int) -> list[Any] | None:
    """Return a batch as two of half the rows each, None if it cannot be divided.

    The rows are collated anew, so that they are masked as they were: that depends on the epoch and
    the number of an item only.

    Args:
        sample: a batch of ``dataset``.
        dataset: what it was read from.
        epoch: in which.
    """
    ids = sample.get("id") if isinstance(sample, dict) else None
    if not torch.is_tensor(ids) or ids.dim() != 1 or len(ids) < 2:
        return None
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    middle = (len(ids) + 1) // 2
    rows = (ids[:middle].tolist(), ids[middle:].tolist())
    parts = [dataset.collater([dataset[row] for row in part]) for part in rows]
    if not all(isinstance(part, dict) and part.get("id") is not None for part in parts):
        return None
    # a dataset whose items changed meanwhile would make another update of it
    same = sum(part.get("ntokens", 0) for part in parts) == sample.get("ntokens", 0)
    return (
        parts
        if same and sorted(torch.cat([p["id"] for p in parts]).tolist()) == sorted(ids.tolist())
        else None
    )
