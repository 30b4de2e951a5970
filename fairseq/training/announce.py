"""What a run says of its cost: once at its start, and once when its speed is known."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np

from fairseq.data.batches import epochs
from fairseq.models.base import count_parameters
from fairseq.protocols import Sample
from fairseq.training.memory import bytes_of, module_tensors, optimizer_bytes, peak_memory
from fairseq.training.pace import Pace, Position, clock, scaled, seconds_left, updates_left
from fairseq.training.trainer import Trainer

LOOKED_AT = 100  # batches that stand for all of an epoch

logger = logging.getLogger("fairseq_cli.train")


def standing(trainer: Trainer, epoch: int, groups: epochs.GroupedIterator) -> Position:
    """Return where a run stands; ``groups`` are those of the epoch at work."""
    tokens, total = trainer.progress.get("tokens", 0), groups.total
    return Position(trainer.get_num_updates(), tokens, epoch, total - groups.n, total)


class Cost:
    """What a run says of its cost while it goes on.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.pace, self._told = trainer, Pace(), False
        self._seconds: float | None = None  # an update takes; None until it is known

    def begin(self, epoch_itr: Any, groups: epochs.GroupedIterator) -> None:
        """Log what is known before the first update, and what the loss is measured in."""
        if self.pace.started:
            return
        at = standing(self.trainer, epoch_itr.epoch, groups)
        logger.info("%s", cost_at_start(self.trainer, epoch_itr, at, groups.chunk_size))
        unit = getattr(self.trainer.criterion, "loss_unit", "")
        if unit:
            logger.info("loss is in %s", unit)

    def count(self, updates: int) -> None:
        """Take note that an update is done."""
        self._seconds = self.pace.seconds_an_update(updates)

    def add_eta(self, stats: dict[str, Any], epoch: int, groups: epochs.GroupedIterator) -> None:
        """Add the seconds to go to what is logged, once they are known."""
        if self._seconds is None:
            return
        settings, at = self.trainer.cfg.optimization, standing(self.trainer, epoch, groups)
        left, _ = updates_left(settings, at, at.tokens / at.updates if at.updates else None)
        trained = self.trainer.cumulative_training_time()
        eta = seconds_left(settings, left, self._seconds, trained)
        if eta is not None:
            stats["eta"] = round(eta)

    def tell_once(self, stats: dict[str, Any]) -> None:
        """Log what the first updates have shown, when they have."""
        if self._seconds is not None and not self._told:
            logger.info("%s", cost_so_far(self.trainer, stats.get("wps"), stats.get("eta")))
            self._told = True


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


def lengths_of(dataset: Any, batch: Any) -> np.ndarray | None:
    """Return the lengths of the samples of a batch, int (B,); None if the dataset tells none."""
    if hasattr(dataset, "num_tokens_vec"):
        try:
            return dataset.num_tokens_vec(np.asarray(batch))
        except NotImplementedError:  # for one sample at a time, then
            pass
    if not hasattr(dataset, "num_tokens"):  # as some of plug-ins have none
        return None
    return np.array([dataset.num_tokens(int(index)) for index in batch])


def _of_update(trainer: Trainer, epoch_itr: Any, batches: int) -> tuple[float | None, float | None]:
    """Return tokens and operations of an update, about: those of mean batches."""
    sample: Any = trainer.first_batch
    if not isinstance(sample, dict) or not sample.get("ntokens"):
        return None, None
    tokens = float(sample["ntokens"])
    cost = trainer.effort.cost_of(cast(Sample, sample))
    found = [lengths_of(epoch_itr.dataset, batch) for batch in some_batches(epoch_itr)]
    lengths = [one.sum() for one in found if one is not None]
    mean = float(np.mean(lengths)) if lengths else tokens
    return mean * batches, cost["flops"] * mean / tokens * batches if "flops" in cost else None
