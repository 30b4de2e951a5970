"""What a run says of its cost: once at its start, and once when its speed is known."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np

from fairseq.data.batches.counting import GroupedIterator
from fairseq.models.base import count_parameters
from fairseq.protocols import Sample
from fairseq.training.memory import (
    bytes_of,
    gradient_bytes,
    module_tensors,
    optimizer_bytes,
    peak_memory,
)
from fairseq.training.pace import Pace, Position, clock, scaled, seconds_left, updates_left
from fairseq.training.trainer import Trainer

logger = logging.getLogger("fairseq_cli.train")

LOOKED_AT = 100  # batches that stand for all of an epoch


class Costs:
    """Logs what a run costs, and puts the time that is left into its figures."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._pace = Pace()
        self._seconds_an_update: float | None = None
        self._where: tuple[Any, GroupedIterator] | None = None
        self._told_speed = False

    def begin_epoch(self, epoch_itr: Any, groups: GroupedIterator) -> None:
        """Take over the batches of an epoch; before the first one, log what is known by then."""
        first, self._where = self._where is None, (epoch_itr, groups)
        if not first:
            return
        try:
            cost = cost_at_start(self.trainer, epoch_itr, groups)
            logger.info("%s", cost)
        except Exception as error:  # noqa: BLE001 - plug-ins may tell less; training goes on
            logger.warning("what the run costs cannot be told: %s", error)
        unit = getattr(self.trainer.criterion, "loss_unit", "")
        if unit:
            logger.info("loss is in %s", unit)

    def note_update(self, updates: int) -> None:
        """Take the time after every update that changed the model."""
        self._seconds_an_update = self._pace.seconds_an_update(updates)

    def with_eta(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Return figures with ``eta``, the seconds left; the first time, log speed and memory."""
        if self._seconds_an_update is None or self._where is None:
            return stats
        trainer, at = self.trainer, standing(self.trainer, *self._where)
        tokens, settings = at.tokens / max(1, at.updates), trainer.cfg.optimization
        left, _ = updates_left(settings, at, tokens)
        spent = trainer.cumulative_training_time()
        eta = seconds_left(settings, left, self._seconds_an_update, spent)
        if not self._told_speed:
            logger.info("%s", cost_so_far(trainer, tokens / self._seconds_an_update, eta))
            self._told_speed = True
        return stats if eta is None else {**stats, "eta": round(eta)}


def standing(trainer: Trainer, epoch_itr: Any, groups: GroupedIterator) -> Position:
    """Return where a run stands; ``groups`` are the updates of the epoch at work."""
    tokens, total = trainer.progress.get("tokens", 0), groups.total
    left = total - groups.n
    return Position(trainer.get_num_updates(), tokens, epoch_itr.epoch, left, total)


def cost_at_start(trainer: Trainer, epoch_itr: Any, groups: GroupedIterator) -> str:
    """Return what is known of a run before its first update."""
    model, trained = trainer.get_model(), trainer.parameters()
    parts = {
        "weights": bytes_of(module_tensors(model, trainer.criterion)),
        "gradients": gradient_bytes(trainer.optimizer, trained),
        "optimizer state": optimizer_bytes(trainer.optimizer, trained),
    }
    said = [f"{count_parameters(model):,} parameters"]
    said += [f"{name} {scaled(size)}B" for name, size in parts.items() if size is not None]
    tokens, flops = _of_update(trainer, epoch_itr, groups.chunk_size * trainer.world)
    if tokens is not None:
        work = "" if flops is None else f" and {scaled(flops)}FLOPs"
        said.append(f"an update about {tokens:,.0f} tokens{work}")
    left, limit = updates_left(
        trainer.cfg.optimization, standing(trainer, epoch_itr, groups), tokens
    )
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
