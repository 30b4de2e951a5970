"""What a run would cost: ``fairseq-train --estimate`` trains a few updates and writes nothing.

The run is set up as it would be, from its checkpoint if there is one, so that what is left is
estimated. The figures are measured on its own data and device.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

from fairseq.config.sections import FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.models.base import count_parameters
from fairseq.tasks.validation import steps_of, valid_subsets
from fairseq.training import policy
from fairseq.training.announce import lengths_of, some_batches, standing
from fairseq.training.loop import TrainLoop, ready_to_train
from fairseq.training.memory import (
    bytes_of,
    gradient_bytes,
    module_tensors,
    optimizer_bytes,
    peak_memory,
    resident_memory,
    saved_for_backward,
)
from fairseq.training.pace import clock, scaled, seconds_left, updates_left
from fairseq.training.trainer import Trainer

logger = logging.getLogger(__name__)

WARM_UP = 2  # updates that are not timed: the first ones are slower
LEAST, ENOUGH, MOST = 5, 5.0, 60.0  # timed updates; seconds they should take, and may take
VALID_BATCHES = 8

PARTS = {
    "weights": "",
    "gradients": "",
    "optimizer": "running means and the like, fp32 copies of weights",
    "other_models": "a teacher, a moving average",
    "activations": "kept for the backward pass, in the largest batch",
    "process": "Python, torch, libraries and the data",
    "working": "results on the way, and what the allocator holds",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run costs, in bytes, seconds and numbers of operations.

    Attributes:
        parameters, trained: of the model, and those that are not frozen.
        device: ``cpu`` or ``cuda``; memory is the machine's or the GPU's.
        processes: of the run; memory is that of each.
        memory: bytes by part, see ``PARTS``, and ``peak``, the most at once. Parts need not add
            up to it: activations are gone when the last gradients come.
        tokens_an_update, flops_an_update, seconds_an_update: means over the updates measured.
        measured: their number.
        updates_done, updates_left: of the run; None if nothing bounds them.
        limit: what ends it.
        validations, validation_seconds: how many are ahead, about; what each takes.
        seconds: until the run ends; None if nothing bounds it.
    """

    parameters: int
    trained: int
    device: str
    processes: int
    memory: dict[str, int]
    tokens_an_update: float
    flops_an_update: float | None
    seconds_an_update: float
    measured: int
    updates_done: int
    updates_left: int | None
    limit: str
    validations: int
    validation_seconds: float
    seconds: float | None

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of training, without validations."""
        return self.tokens_an_update / self.seconds_an_update

    def record(self) -> dict[str, Any]:
        """Return all figures as plain values, for JSON."""
        left = self.updates_left
        whole = {"tokens": self.tokens_an_update, "flops": self.flops_an_update}
        totals = {
            f"{name}_left": None if left is None or each is None else round(left * each)
            for name, each in whole.items()
        }
        return {
            **dataclasses.asdict(self),
            "tokens_per_second": self.tokens_per_second,
            **totals,
        }

    def table(self) -> str:
        """Return the figures as lines to read."""
        record, memory = self.record(), self.memory
        frozen = "" if self.trained == self.parameters else f", {self.trained:,} of them trained"
        where = "GPU memory" if self.device == "cuda" else "memory"
        each = f", in each of {self.processes} processes" if self.processes > 1 else ""
        rows = [
            ("parameters", f"{self.parameters:,}{frozen}", ""),
            (where, f"{scaled(memory['peak'])}B", "at its peak" + each),
        ]
        for part, about in PARTS.items():
            if memory.get(part):
                rows.append((f"  {part.replace('_', ' ')}", f"{scaled(memory[part])}B", about))
        cost = f"{self.tokens_an_update:,.0f} tokens, {self.seconds_an_update:.3g} s"
        if self.flops_an_update is not None:
            cost += f", {scaled(self.flops_an_update)}FLOPs"
        rows.append(("an update", cost, f"mean of {self.measured}"))
        rows.append(("speed", f"{self.tokens_per_second:,.0f} tokens/s", "without validations"))
        if self.validations:
            each = f"{self.validation_seconds:.3g} s each"
            rows.append(("validations", f"about {self.validations:,}", each))
        done = f" after {self.updates_done:,} done" if self.updates_done else ""
        if self.updates_left is not None:
            total = f"{self.updates_left:,} updates{done}, {scaled(record['tokens_left'])} tokens"
            if record["flops_left"] is not None:
                total += f", {scaled(record['flops_left'])}FLOPs"
            rows.append(("the run", total, self.limit))
        ends = "nothing bounds the run: --max-update, --max-epoch, --max-tokens-total"
        rows.append(("time", ends if self.seconds is None else clock(self.seconds), ""))
        return "\n".join(f"{name:<18}{value:<24}  {about}".rstrip() for name, value, about in rows)


def estimate(cfg: FairseqConfig) -> Estimate:
    """Set a run up, train some updates of it, and tell what it will cost.

    Args:
        cfg: the configuration; what would write is switched off in a copy.

    Raises:
        ConfigError: for settings that are missing or contradict each other.
        SystemExit: with status 128 + n if signal n ended it.
    """
    cfg = cfg.thawed()
    cfg.checkpoint.no_save, cfg.common.profile, cfg.dataset.sample_prompts = True, False, None
    cfg.common.log_file = cfg.common.tensorboard_logdir = cfg.common.wandb_project = None
    logger.info("estimate: building the model, reading the data")
    with ready_to_train(cfg) as loop:
        return _measured(loop)


def _measured(loop: TrainLoop) -> Estimate:
    trainer, settings = loop.trainer, loop.cfg.optimization
    model, resident = trainer.get_model(), resident_memory() or 0
    # read before the updates below, which are not part of the run
    spent = trainer.cumulative_training_time()
    groups = loop.update_groups()
    at = standing(trainer, loop.epoch_itr, groups)
    logger.info("estimate: at least %d updates and %.0f seconds, then validation", LEAST, ENOUGH)
    saved = _largest_update(loop)
    seconds, count, cost = _timed_updates(loop, groups)
    tokens, each = cost.get("tokens", 0) / count, seconds / count
    left, limit = updates_left(settings, at, tokens)
    ahead = policy.validations_ahead(loop.cfg, at.updates, left, at.epoch_updates)
    valid_seconds = _validation_seconds(loop)
    eta = seconds_left(settings, left, each + ahead * valid_seconds / max(1, left or 0), spent)
    return Estimate(
        parameters=count_parameters(model),
        trained=count_parameters(model, trained_only=True),
        device=trainer.device.type,
        processes=trainer.world,
        memory=_memory(trainer, saved, resident, restored=at.updates > 0),
        tokens_an_update=tokens,
        flops_an_update=cost["flops"] / count if "flops" in cost else None,
        seconds_an_update=each,
        measured=count,
        updates_done=at.updates,
        updates_left=left,
        limit=limit,
        validations=ahead,
        validation_seconds=valid_seconds,
        seconds=eta,
    )


def _memory(trainer: Trainer, saved: int, resident: int, restored: bool) -> dict[str, int]:
    """Return bytes by part, and the peak.

    Args:
        trainer: after some updates.
        saved: what was kept for a backward pass.
        resident: what the process held before them.
        restored: whether that included the state of the optimizer.
    """
    model, criterion, trained = trainer.get_model(), trainer.criterion, trainer.parameters()
    teacher = getattr(getattr(criterion, "_teacher", None), "model", None)
    average = None if trainer.ema is None else trainer.ema.get_model()
    parts = {
        "weights": bytes_of(module_tensors(model, criterion)),
        "gradients": gradient_bytes(trainer.optimizer, trained),
        "optimizer": optimizer_bytes(trainer.optimizer, trained) or 0,
        "other_models": bytes_of(module_tensors(teacher, average)),
        "activations": saved,
    }
    there = parts["weights"] + parts["other_models"] + parts["optimizer"] * restored
    parts["process"] = 0 if trainer.device.type == "cuda" else max(0, resident - there)
    total = sum(parts.values())
    peak = peak_memory(trainer.device) or total
    return {**parts, "working": max(0, peak - total), "peak": peak}


def _room(dataset: Any, batch: Any) -> int:
    """Return rows times columns of a batch; rows alone if the dataset tells no lengths."""
    lengths = lengths_of(dataset, batch)
    return len(batch) * (1 if lengths is None else int(lengths.max()))


def _largest_update(loop: TrainLoop) -> int:
    """Take an update of the largest batch; return the bytes it kept for its backward pass."""
    trainer, batches = loop.trainer, loop.epoch_itr
    # memory must do for the largest batch, which the first updates need not meet
    dataset: Any = getattr(batches, "dataset", None)
    sample, some = trainer.first_batch, some_batches(batches)
    if some and getattr(dataset, "supports_fetch_outside_dataloader", True):
        largest = max(some, key=lambda batch: _room(dataset, batch))
        sample = batches.collate_fn([dataset[int(index)] for index in largest])
    if not isinstance(sample, dict):
        return 0
    weights = module_tensors(trainer.get_model(), trainer.criterion)
    with metrics.aggregate(new_root=True), saved_for_backward(weights) as sizes:
        trainer.train_step([sample])
    return sum(sizes.values())


def _timed_updates(loop: TrainLoop, groups: Any) -> tuple[float, int, dict[str, float]]:
    """Train until there is enough to tell the speed.

    Args:
        loop: the run.
        groups: the rest of its epoch; others follow.

    Returns:
        ``(seconds, number of updates, tokens and operations of them)``.
    """
    trainer = loop.trainer
    started, before = 0.0, dict(trainer.progress)
    # the clock starts at 0, with the last update of the warm-up
    for number, samples in enumerate(_updates(loop, groups), 1 - WARM_UP):
        with metrics.aggregate(new_root=True):
            trainer.train_step(samples)
        # as a run does that a signal ends, so that a queue sees the same status
        if loop.stop.received():
            raise SystemExit(128 + (loop.stop.number or 0))
        if number < 0:
            continue
        now = time.perf_counter()
        if number == 0:
            started, before = now, dict(trainer.progress)
            continue
        # the same on all processes, so that they stop together
        seconds = distributed_utils.longest(now - started, trainer.device)
        if seconds > MOST or (number >= LEAST and seconds >= ENOUGH):
            break
    names = [name for name in ("tokens", "flops") if name in trainer.progress]
    cost = {name: trainer.progress[name] - before.get(name, 0) for name in names}
    return seconds, number, cost


def _updates(loop: TrainLoop, groups: Any) -> Iterator[list[Any]]:
    """Yield the micro-batches of one update after the other, epoch after epoch."""
    while True:
        loop.trainer.begin_epoch(loop.epoch_itr.epoch)
        yield from groups
        groups = loop.update_groups()


def _validation_seconds(loop: TrainLoop) -> float:
    """Return what evaluating all subsets would take, by some batches of each."""
    cfg, trainer, total = loop.cfg, loop.trainer, 0.0
    if cfg.dataset.disable_validation:
        return total
    trainer.begin_valid_epoch(loop.epoch_itr.epoch)
    for subset in valid_subsets(cfg):
        batches = trainer.get_valid_iterator(subset).next_epoch_itr(
            shuffle=False, set_dataset_epoch=False
        )
        number = steps_of(cfg.dataset.max_valid_steps, len(batches))
        # validation batches are about alike: some of them stand for all
        some = min(number, VALID_BATCHES)
        started = time.perf_counter()
        with metrics.aggregate(new_root=True):
            for sample in itertools.islice(batches, some):
                trainer.valid_step(sample)
        total += (time.perf_counter() - started) / max(1, some) * number
    return total
