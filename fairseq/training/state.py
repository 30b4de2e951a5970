"""What a training run consists of, and how it is saved and restored.

:class:`TrainingState` holds model, criterion, optimizer, schedule and counters. Masks, batch order
and dropout follow from the seed and the counters, so those, the position in the data and the meters
are all there is to restore.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from fairseq import utils
from fairseq.checkpoint import files, load_newest
from fairseq.checkpoint.layout import (
    OURS,
    descended,
    explain,
    original_cfg,
    our_record,
    read_state,
    record_of,
    upgrade_state,
)
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.base import FairseqCriterion
from fairseq.distributed import utils as distributed_utils
from fairseq.distributed.device import choose_device
from fairseq.distributed.wrap import wrap_model
from fairseq.errors import CheckpointError, FairseqError
from fairseq.files.io import PathManager, sha256_of
from fairseq.logging import meters, metrics
from fairseq.models.base import BaseFairseqModel, count_parameters
from fairseq.models.ema import EMA
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.protocols import StateDict
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.dictionaries import LABELS, check_dictionaries, dictionary_record
from fairseq.tasks.precision import warn_if_slow, weights_dtype
from fairseq.training.other_settings import (
    check_places,
    settings_in_force,
    warn_of_kept_settings,
    warn_of_other_settings,
)

logger = logging.getLogger("fairseq.trainer_state")


class OfState:
    """An attribute or a method of the trainer's state, under its own name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trainer: Any, owner: type | None = None) -> Any:
        return self if trainer is None else getattr(trainer.state, self.name)

    def __set__(self, trainer: Any, value: object) -> None:
        setattr(trainer.state, self.name, value)


class TrainingState:
    """Model, criterion, optimizer, schedule and counters of a run.

    Args:
        cfg: the whole configuration, settled.
        task: the task.
        model: built by it, on the CPU.
        criterion: built by it.

    Attributes:
        best: best validation metric among the checkpoints saved, None before the first.
        progress: what the training loop wants to find again after a resume; plain values.
        lineage: the runs whose weights this one began with, the oldest first.
        ema: moving average of the weights, None without ``--store-ema``.
    """

    def __init__(
        self,
        cfg: FairseqConfig,
        task: FairseqTask,
        model: BaseFairseqModel,
        criterion: FairseqCriterion,
    ) -> None:
        self.cfg, self.task = cfg, task
        self.device = choose_device(cfg)
        self.world = distributed_utils.get_world_size()
        self.rank = distributed_utils.get_rank()
        self.weights_dtype = weights_dtype(cfg.common, self.device)
        warn_if_slow(cfg, self.device)
        self._model = model.to(device=self.device, dtype=self.weights_dtype)
        self._criterion = criterion.to(device=self.device, dtype=self.weights_dtype)
        self._wrapped: Any = None
        self._optimizer: Any = None
        self._lr_scheduler: Any = None
        self._num_updates = 0
        self._optim_history: list[dict[str, Any]] = []
        self._started = time.time()
        self._previous_training_time = 0.0
        self.best: float | None = None
        self.progress: dict[str, Any] = {}
        # an operator of growth begins with a small model's weights, though with no checkpoint
        self.lineage: list[dict[str, Any]] = list(getattr(model, "lineage", None) or [])
        self.ema = self._build_ema()
        self._start_wall_clock()
        logger.info(
            "num. shared model params: %s (num. trained: %s)",
            f"{count_parameters(model):,}",
            f"{count_parameters(model, trained_only=True):,}",
        )

    @staticmethod
    def _start_wall_clock() -> None:
        metrics.log_start_time("wall", priority=790, round=0)

    # -- parts -----------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """Return the model, wrapped if there are several processes."""
        if self._wrapped is None:
            distributed = self.cfg.distributed_training
            if not all(getattr(x, "runs_once", True) for x in (self._criterion, self._model)):
                distributed = distributed.changed(ddp_backend="legacy_ddp")
            elif utils.drops_layers(self._model):  # other layers have a gradient in every update
                distributed = distributed.changed(find_unused_parameters=True)
            self._wrapped = wrap_model(distributed, self._model, self.device)
        return self._wrapped

    def close(self) -> None:
        """Let go of the wrapped model, which refers to the group of processes."""
        self._wrapped = None

    @property
    def criterion(self) -> Any:
        """Return the criterion."""
        return self._criterion

    def get_model(self) -> Any:
        """Return the model itself, never wrapped."""
        return self._model

    @property
    def optimizer(self) -> Any:
        """Return the optimizer; it is built on first use."""
        if self._optimizer is None:
            self._build_optimizer()
        return self._optimizer

    @property
    def lr_scheduler(self) -> Any:
        """Return the learning-rate schedule; it is built with the optimizer."""
        if self._lr_scheduler is None:
            self._build_optimizer()
        return self._lr_scheduler

    @property
    def should_save_checkpoint_on_current_rank(self) -> bool:
        """Tell whether this process writes checkpoints."""
        return self.rank == 0

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained, the criterion's parameters last."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return :meth:`parameters` by name; the criterion's names begin with ``criterion.``."""
        named = dict(self._model.named_parameters())
        named |= {f"criterion.{name}": p for name, p in self._criterion.named_parameters()}
        return {name: p for name, p in named.items() if p.requires_grad}

    def _build_ema(self) -> EMA | None:
        """Return a moving average that begins with the weights of now, or with a given model's."""
        config = self.cfg.ema
        if not config.store_ema:
            return None
        ema = EMA(self._model, config)
        if config.ema_seed_model is not None:
            seed = read_state(config.ema_seed_model)
            check_dictionaries(config.ema_seed_model, seed, self.task, (LABELS,))
            try:
                ema.restore(seed["model"], build_fp32_params=ema.fp32)
            except CheckpointError as error:
                raise explain(error, config.ema_seed_model) from error
        return ema

    def _build_optimizer(self) -> None:
        cfg, params = self.cfg, [self.named_parameters()]
        common = cfg.common
        if common.fp16 or common.bf16:
            from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer

            frugal = common.memory_efficient_fp16 or common.memory_efficient_bf16
            kind = MemoryEfficientFP16Optimizer if frugal else FP16Optimizer
            self._optimizer = kind.build_optimizer(cfg, params)
        elif common.amp:
            from fairseq.optim import AMPOptimizer

            self._optimizer = AMPOptimizer.build_optimizer(cfg, params)
        else:
            rules = cfg.optimization.param_groups
            self._optimizer = build_optimizer(cfg.optimizer, params, param_groups=rules)
        self._lr_scheduler = build_lr_scheduler(cfg.lr_scheduler, self._optimizer)
        # or the first update would have the rate that the optimizer was built with
        self._lr_scheduler.step_update(0)

    # -- counters and learning rate --------------------------------------------------------------

    def lr_step_begin_epoch(self, epoch: int) -> float:
        """Set the learning rate of an epoch."""
        self.lr_scheduler.step_begin_epoch(epoch)
        return self.lr_step_update()

    def lr_step(self, epoch: int, val_loss: float | None = None) -> float:
        """Adjust the learning rate at the end of an epoch."""
        self.lr_scheduler.step(epoch, val_loss)
        return self.lr_step_update()

    def lr_step_update(self) -> float:
        """Adjust the learning rate after an update; it is logged."""
        lr = self.lr_scheduler.step_update(self._schedule_updates())
        rates = lr if isinstance(lr, Mapping) else {"lr": lr}
        for name, rate in rates.items():
            key = "lr" if name in ("lr", "default") else f"lr_{name}"
            metrics.log_scalar(key, rate, weight=0, priority=300)
        return rates.get("default", next(iter(rates.values())))

    def _schedule_updates(self) -> int:
        """Return what schedules take for the number of updates."""
        settings = self.cfg.optimization
        if not settings.lr_time_budget:
            return self.get_num_updates()
        share = min(1.0, self.hours() / settings.lr_time_budget)
        return round(share * settings.max_update)

    def hours(self) -> float:
        """Return the hours of training so far, restarts added up, the same on all processes."""
        # clocks differ, and one process alone must not see the limit
        return distributed_utils.longest(self.cumulative_training_time() / 3600, self.device)

    def get_lr(self) -> float:
        """Return the learning rate of the next update."""
        return self.optimizer.get_lr()

    def get_num_updates(self) -> int:
        """Return the number of updates done."""
        return self._num_updates

    def set_num_updates(self, num_updates: int) -> None:
        """Set the number of updates done, and the learning rate that follows."""
        self._num_updates = num_updates
        self.lr_step_update()
        metrics.log_scalar("num_updates", num_updates, weight=0, priority=200)

    def cumulative_training_time(self) -> float:
        """Return the seconds trained so far, restarts added up."""
        return time.time() - self._started + self._previous_training_time

    # -- saving ----------------------------------------------------------------------------------

    @functools.cached_property
    def _original_cfg(self) -> dict[str, Any]:
        return original_cfg(self.cfg)  # the configuration is final by now

    @functools.cached_property
    def _dictionary_record(self) -> dict[str, Any]:
        return dictionary_record(self.task)

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs, in the original's layout."""
        history = {
            "criterion_name": self._criterion.__class__.__name__,
            "optimizer_name": self.optimizer.__class__.__name__,
            "lr_scheduler_state": self.lr_scheduler.state_dict(),
            "num_updates": self.get_num_updates(),
        }
        has_criterion_state = utils.has_parameters(self._criterion)
        state: StateDict = {
            "args": None,
            "cfg": self._original_cfg,
            "model": self._model.state_dict(),
            "criterion": self._criterion.state_dict() if has_criterion_state else None,
            "optimizer_history": [*self._optim_history, history],
            "task_state": self.task.state_dict(),
            "extra_state": {
                "metrics": metrics.state_dict(),
                "previous_training_time": self.cumulative_training_time(),
                OURS: our_record(
                    self.cfg,
                    self.progress,
                    facts=self._criterion.facts(),
                    lineage=self.lineage,
                    optimized=self.optimizer.names_of(self.named_parameters()),
                )
                | self._dictionary_record,
            },
        }
        if self.ema is not None:
            state["extra_state"].update(self.ema.state())
        if not self.cfg.checkpoint.no_save_optimizer_state:
            state["last_optimizer_state"] = self.optimizer.state_dict()
        return state

    def save_checkpoint(
        self, filename: str, extra_state: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write the state to ``filename``.

        Args:
            filename: where to.
            extra_state: position in the data, validation metric and the like.
            facts: what the side file says.

        Raises:
            CheckpointError: if it cannot be written.
        """
        state = self.state_dict()
        state["extra_state"].update(extra_state)
        files.write_checkpoint(state, filename, facts or {})

    # -- restoring -------------------------------------------------------------------------------

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Mapping[str, Any] | None = None,
        reset_meters: bool = False,
        loaded: tuple[str, dict[str, Any]] | None = None,
    ) -> dict[str, Any] | None:
        """Restore a run.

        Args:
            filename: the checkpoint; a damaged ``checkpoint_last`` is replaced by the newest good
                one beside it.
            reset_optimizer: take the weights only; updates count from 0.
            reset_lr_scheduler: do not restore the schedule.
            optimizer_overrides: replace values of the optimizer's groups.
            reset_meters: do not restore the meters.
            loaded: ``(path, content)`` of the checkpoint, if it was read already.

        Returns:
            its ``extra_state``, None if there is no such file.

        Raises:
            CheckpointError: if it does not fit.
        """
        if loaded is None and not PathManager.exists(filename):
            logger.info("No existing checkpoint found %s", filename)
            return None
        filename, state = loaded or load_newest(filename)
        check_dictionaries(filename, state, self.task, (LABELS,) if reset_optimizer else ())
        if "grown_by" not in state:  # growth says itself whether the function stays
            warn_of_other_settings(filename, state, self.cfg)
        self._load_modules(filename, state)
        extra_state, record = state["extra_state"], record_of(state)
        if reset_optimizer:
            self.lineage = descended(state, filename, state.get("grown_by") or "finetune")
        else:
            self._criterion.check_facts(record.get("facts") or {})
            self.lineage = list(record.get("lineage") or [])
            self._check_lineage()
        self._optim_history = state["optimizer_history"]
        self._optimizer = self._lr_scheduler = None  # masters are copied from the loaded weights
        if not reset_optimizer:
            self._load_optimizer(filename, state, reset_lr_scheduler, optimizer_overrides)
        elif state.get("carried") is not None:  # through growth
            state["carried"].give(self.optimizer, self.named_parameters())
        self._load_ema(extra_state, anew=reset_optimizer)
        if not reset_optimizer and not reset_meters:
            self.progress = dict(record.get("progress") or {})
        self.task.load_state_dict(state["task_state"])
        position = extra_state.get("train_iterator") or {}
        if not reset_meters:
            self._load_meters(extra_state, begins_epoch=not position.get("iterations_in_epoch"))
        logger.info(
            "Loaded checkpoint %s (epoch %s @ %s updates)",
            filename,
            position.get("epoch"),
            self.get_num_updates(),
        )
        return extra_state

    def rewind(self, filename: str, state: StateDict) -> None:
        """Take weights, optimizer, schedule and average of a checkpoint of this very run.

        Figures, progress and the position in the data stay.
        """
        state = upgrade_state(state)
        self._load_modules(filename, state)
        history, self._optim_history = self._optim_history, state["optimizer_history"]
        self._optimizer = self._lr_scheduler = None
        self._load_optimizer(filename, state, False, None)
        self._optim_history = history
        self._load_ema(state["extra_state"], anew=False)

    def _check_lineage(self) -> None:
        """Warn if the file that the run began with is another one by now."""
        named = self.cfg.checkpoint.finetune_from_model
        if named and self.lineage and PathManager.exists(named):
            last = self.lineage[-1]
            if sha256_of(named) != last.get("sha256"):
                logger.warning(
                    "this run began with the weights of %s (SHA-256 %s), which %s does not hold "
                    "any more; it goes on from its own checkpoint",
                    last.get("source"),
                    last.get("sha256"),
                    named,
                )

    def _load_modules(self, filename: str, state: Mapping[str, Any]) -> None:
        try:
            self._model.load_state_dict(state["model"], model_cfg=self.cfg.model)
            trained = state.get("criterion") or {}
            if utils.has_parameters(self._criterion) and trained:
                self._criterion.load_state_dict(trained)
            elif trained:
                # contrastive weight tying's
                head = "; fairseq-export --add-head copy makes a projection part of the head"
                logger.warning(
                    "%s was trained with a loss that has weights of its own (%s), which are not "
                    "used%s",
                    filename,
                    ", ".join(trained),
                    head if "projection.weight" in trained else "",
                )
        except (FairseqError, RuntimeError) as error:
            raise explain(error, filename) from error

    def _load_optimizer(
        self,
        filename: str,
        state: Mapping[str, Any],
        reset_lr_scheduler: bool,
        overrides: Mapping[str, Any] | None,
    ) -> None:
        last = self._optim_history[-1]
        if state.get("last_optimizer_state") is None:
            logger.warning("%s holds no optimizer state; updates count from 0", filename)
            return
        for what, part in (("criterion", self._criterion), ("optimizer", self.optimizer)):
            name, saved = part.__class__.__name__, last.get(f"{what}_name")
            if saved != name:
                raise CheckpointError(
                    f"{filename} was written with the {what} {saved}, this run has {name}; please "
                    "reset the optimizer (--reset-optimizer)"
                )
        if not reset_lr_scheduler:
            self.lr_scheduler.load_state_dict(last["lr_scheduler_state"])
        given, overrides = settings_in_force(self.optimizer), dict(overrides or {})
        self.optimizer.load_state_dict(state["last_optimizer_state"], overrides)
        if names := record_of(state).get("optimized"):
            check_places(filename, names, self.optimizer.names_of(self.named_parameters()))
        warn_of_kept_settings(filename, given, settings_in_force(self.optimizer), overrides)
        self.set_num_updates(last["num_updates"])
        if "lr" in overrides and self.get_lr() != overrides["lr"]:
            logger.warning("--optimizer-overrides: lr is what the schedule says; give another --lr")

    def _load_ema(self, extra_state: Mapping[str, Any], anew: bool) -> None:
        self.ema = self._build_ema()
        if self.ema is not None and not anew:
            self.ema.load_state(extra_state)
            self.ema.update_freq_counter = self._num_updates % max(1, self.cfg.ema.ema_update_freq)

    def _load_meters(self, extra_state: Mapping[str, Any], begins_epoch: bool) -> None:
        self._previous_training_time = extra_state.get("previous_training_time", 0.0)
        self._started = time.time()
        if "metrics" not in extra_state:
            return
        # the clock that comes along is that of a process which has ended: it starts anew below
        metrics.load_state_dict(extra_state["metrics"])
        self._start_wall_clock()
        if begins_epoch:
            # written at the end of an epoch, whose figures have been printed
            metrics.reset_meters("train")
        for meter in (metrics.get_meters("default") or {}).values():
            if isinstance(meter, meters.TimeMeter):
                # speeds are those of this process
                meter.reset()
