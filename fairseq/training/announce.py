"""What a run says of its cost: once at its start, and once when its speed is known."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from fairseq.models.base import count_parameters
from fairseq.protocols import Sample
from fairseq.training.memory import bytes_of, module_tensors, optimizer_bytes, peak_memory
from fairseq.training.pace import Position, clock, scaled, updates_left
from fairseq.training.trainer import Trainer

LOOKED_AT = 100  # batches that stand for all of an epoch


def cost_at_start(trainer: Trainer, epoch_itr: Any, at: Position, micro_batches: int) -> str:
    """Return what is known of a run before its first update.

    Args:
        trainer: of the run.
        epoch_itr: its batches.
        at: where it stands.
        micro_batches: of an update, in each process.
    """
    model, trained = trainer.get_model(), trainer.parameters()
    parts = {
        "weights": bytes_of(module_tensors(model, trainer.criterion)),
        "gradients": bytes_of(trained),
        "optimizer state": optimizer_bytes(trainer.optimizer, trained),
    }
    said = [f"{count_parameters(model):,} parameters"]
    said += [f"{name} {scaled(size)}B" for name, size in parts.items() if size is not None]
    tokens, flops = _of_update(trainer, epoch_itr, micro_batches * trainer.world)
    if tokens is not None:
        work = "" if flops is None else f" and {scaled(flops)}FLOPs"
        said.append(f"an update about {tokens:,.0f} tokens{work}")
    left, limit = updates_left(trainer.cfg.optimization, at, tokens)
    if left is not None:
        said.append(f"{left:,} updates to go ({limit})")
    return ", ".join(said)


def cost_so_far(trainer: Trainer, tokens_per_second: float | None, eta: float | None) -> str:
    """Return what the first updates have shown."""
    peak = peak_memory(trainer.device)
    said = [] if not tokens_per_second else [f"{tokens_per_second:,.0f} tokens/s"]
    said += [] if eta is None else [f"{clock(eta)} to go"]
    said += [] if peak is None else [f"memory at most {scaled(peak)}B so far"]
    return ", ".join(said)


def some_batches(epoch_itr: Any) -> list[Any]:
    """Return batches from everywhere in the order they were cut, as arrays of sample numbers."""
    cut = getattr(epoch_itr, "frozen_batches", None)
    if not cut:
        return []
    return [cut[i] for i in np.unique(np.linspace(0, len(cut) - 1, LOOKED_AT).astype(int))]


def lengths_of(dataset: Any, batch: Any) -> np.ndarray:
    """Return the lengths of the samples of a batch, int (B,)."""
    try:
        return dataset.num_tokens_vec(np.asarray(batch))
    except (AttributeError, NotImplementedError):
        return np.array([dataset.num_tokens(int(index)) for index in batch])


def _of_update(trainer: Trainer, epoch_itr: Any, batches: int) -> tuple[float | None, float | None]:
    """Return tokens and operations of an update, about: those of mean batches."""
    sample: Any = trainer.first_batch
    if not isinstance(sample, dict) or not sample.get("ntokens"):
        return None, None
    tokens = float(sample["ntokens"])
    cost = trainer.effort.cost_of(cast(Sample, sample))
    lengths = [lengths_of(epoch_itr.dataset, batch).sum() for batch in some_batches(epoch_itr)]
    mean = float(np.mean(lengths)) if lengths else tokens
    return mean * batches, cost["flops"] * mean / tokens * batches if "flops" in cost else None
