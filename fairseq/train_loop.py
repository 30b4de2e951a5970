"""The loop around the trainer: epochs, validations, checkpoints, and when to stop.

:func:`run_training` is one process of a run from start to end; the commands call it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from typing import Any, cast

from fairseq import checkpoint_utils, tasks, utils
from fairseq.checkpoint_state import data_rng_of, settle_data_rng
from fairseq.config.resolve import required_settings, resolve
from fairseq.config.sections import FairseqConfig
from fairseq.data import iterators
from fairseq.data.data_utils import raise_if_valid_subsets_unintentionally_ignored
from fairseq.device import choose_device
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.logging.meters import StopwatchMeter
from fairseq.logging.progress_bar import BaseProgressBar, progress_bar
from fairseq.models.base import count_parameters
from fairseq.run_folder import RunFolder
from fairseq.signals import StopSignal
from fairseq.trainer import Trainer

logger = logging.getLogger("fairseq_cli.train")


def run_training(cfg: FairseqConfig) -> float | None:
    """Train a model as ``cfg`` says, in this process.

    Args:
        cfg: the configuration; it is settled, and frozen once everything is built.

    Returns:
        the best validation metric, None if nothing was validated.

    Raises:
        ConfigError: for settings that are missing or contradict each other.
    """
    missing = required_settings(resolve(cfg))
    if missing:
        raise ConfigError("training needs " + "; ".join(missing))
    metrics.reset()
    checkpoint = cfg.checkpoint
    if not checkpoint.no_save:
        checkpoint_utils.verify_checkpoint_directory(checkpoint.save_dir)
    if cfg.distributed_training.distributed_world_size > 1:
        distributed_utils.init_process_group(cfg.distributed_training, choose_device(cfg))
    with RunFolder(checkpoint.save_dir, enabled=_writes(cfg)) as folder, StopSignal() as stop:
        utils.set_torch_seed(cfg.common.seed)
        loaded = _read_checkpoint(cfg)
        task = tasks.setup_task(cfg.task)
        if cfg.bpe is not None and hasattr(task, "bpe"):
            task.bpe = task.build_bpe(cfg.bpe)
        model = task.build_model(cfg.model)
        criterion = task.build_criterion(cfg.criterion)
        cfg.freeze()
        folder.describe(cfg, parameters=count_parameters(model))
        raise_if_valid_subsets_unintentionally_ignored(cfg)
        if not cfg.dataset.disable_validation:
            for subset in _valid_subsets(cfg):
                combine = bool(cfg.dataset.combine_valid_subsets)
                task.load_dataset(subset, combine=combine, epoch=1)
        trainer = Trainer(cfg, task, model, criterion)
        trainer.use_loaded(loaded)
        extra_state, epoch_itr = checkpoint_utils.load_checkpoint(
            checkpoint, trainer, disable_iterator_cache=task.has_sharded_data("train")
        )
        TrainLoop(cfg, trainer, task, epoch_itr, stop).run()
    return trainer.best


def _read_checkpoint(cfg: FairseqConfig) -> tuple[str, dict[str, Any]] | None:
    """Read what the run starts from, if anything, and settle the source of its randomness.

    A run that goes on stays with the masks and the batch order it began with.
    """
    path, resets = checkpoint_utils.checkpoint_to_start_from(cfg.checkpoint)
    loaded = checkpoint_utils.load_newest(path) if os.path.exists(path) else None
    goes_on = loaded is not None and not resets["reset_dataloader"]
    mode = data_rng_of(loaded[1]) if loaded is not None and goes_on else "philox"
    if mode != "philox" and cfg.dataset.data_rng == "auto":
        logger.info("continuing with --data-rng %s, as the checkpoint began", mode)
    settle_data_rng(cfg, mode)
    return loaded


def _writes(cfg: FairseqConfig) -> bool:
    return not cfg.checkpoint.no_save and distributed_utils.is_master()


def _valid_subsets(cfg: FairseqConfig) -> list[str]:
    return cfg.dataset.valid_subset.replace(" ", "").split(",")


class TrainLoop:
    """Runs epochs until something says stop.

    Args:
        cfg: the configuration.
        trainer: takes the updates.
        task: of the trainer.
        epoch_itr: where the run stands in the data.
        stop: tells whether the process was asked to end.
    """

    def __init__(
        self, cfg: FairseqConfig, trainer: Trainer, task: Any, epoch_itr: Any, stop: StopSignal
    ) -> None:
        self.cfg, self.trainer, self.task = cfg, trainer, task
        self.epoch_itr, self.stop = epoch_itr, stop
        self.validations_without_progress = 0
        self.best_for_patience: float | None = None

    def run(self) -> None:
        """Train until the last epoch, the last update, the time limit or a signal."""
        max_epoch = self.cfg.optimization.max_epoch or math.inf
        if self._reached_limit():
            logger.info("nothing to do: the run is complete (%s)", self._reached_limit())
            return
        while self.epoch_itr.next_epoch_idx <= max_epoch:
            if self.trainer.get_lr() <= self.cfg.optimization.stop_min_lr:
                logger.info(
                    "stopping training because current learning rate (%s) is smaller than or "
                    "equal to minimum learning rate (--stop-min-lr=%s)",
                    self.trainer.get_lr(),
                    self.cfg.optimization.stop_min_lr,
                )
                return
            valid_losses, should_stop = self.train_epoch()
            if should_stop:
                return
            self.trainer.lr_step(self.epoch_itr.epoch, valid_losses[0])
            sharded = self.task.has_sharded_data("train")
            self.epoch_itr = self.trainer.get_train_iterator(
                self.epoch_itr.next_epoch_idx,
                load_dataset=sharded,
                disable_iterator_cache=sharded,
            )

    def _reached_limit(self) -> str | None:
        """Return why training must end now, None if it need not."""
        optimization, updates = self.cfg.optimization, self.trainer.get_num_updates()
        if optimization.max_update and updates >= optimization.max_update:
            return f"num_updates: {updates} >= max_update: {optimization.max_update}"
        hours = self.trainer.cumulative_training_time() / 3600
        if optimization.stop_time_hours > 0 and hours > optimization.stop_time_hours:
            return f"cumulative_training_time: {hours} > stop_time_hours"
        return None

    # -- an epoch --------------------------------------------------------------------------------

    @metrics.aggregate("train")
    def train_epoch(self) -> tuple[list[float | None], bool]:
        """Train for one epoch, or what is left of it.

        Returns:
            ``(validation losses, whether the run ends)``.
        """
        cfg, trainer, epoch_itr = self.cfg, self.trainer, self.epoch_itr
        batches = epoch_itr.next_epoch_itr(
            fix_batches_to_gpus=cfg.distributed_training.fix_batches_to_gpus,
            shuffle=epoch_itr.next_epoch_idx > cfg.dataset.curriculum,
        )
        frequencies = cfg.optimization.update_freq
        update_freq = frequencies[min(epoch_itr.epoch, len(frequencies)) - 1]
        groups = iterators.GroupedIterator(
            batches, update_freq, skip_remainder_batch=cfg.optimization.skip_remainder_batch
        )
        trainer.begin_epoch(epoch_itr.epoch)
        valid_losses: list[float | None] = [None]
        should_stop = False
        with self._progress(groups, epoch_itr.epoch) as progress:
            for samples in progress:
                with metrics.aggregate("train_inner"):
                    updated = trainer.train_step(samples) is not None
                if updated:
                    self._log_inner(progress)
                end_of_epoch = not groups.has_next()
                if updated or end_of_epoch:
                    valid_losses, should_stop = self.validate_and_save(end_of_epoch)
                if should_stop:
                    break
            stats = self._training_stats("train")
            progress.print(stats, tag="train", step=trainer.get_num_updates())
        metrics.reset_meters("train")
        return valid_losses, should_stop

    def _progress(self, iterator: Iterator[Any], epoch: int, prefix: str | None = None) -> Any:
        cfg, common, master = self.cfg, self.cfg.common, distributed_utils.is_master()
        save_dir = cfg.checkpoint.save_dir
        bar: BaseProgressBar = progress_bar(
            iterator,
            log_format=common.log_format if master else "none",
            log_interval=common.log_interval,
            log_file=common.log_file if master else None,
            epoch=epoch,
            prefix=prefix,
            tensorboard_logdir=common.tensorboard_logdir if master else None,
            default_log_format="simple" if common.no_progress_bar else "rich",
            wandb_project=common.wandb_project if master else None,
            wandb_run_name=os.environ.get("WANDB_NAME", os.path.basename(save_dir)),
            jsonl_path=os.path.join(save_dir, "metrics.jsonl") if _writes(cfg) else None,
            num_updates=self.trainer.get_num_updates(),
            total_updates=cfg.optimization.max_update or None,
        )
        return bar

    def _log_inner(self, progress: BaseProgressBar) -> None:
        updates = self.trainer.get_num_updates()
        if updates % self.cfg.common.log_interval == 0:
            progress.log(self._training_stats("train_inner"), tag="train_inner", step=updates)
            metrics.reset_meters("train_inner")

    @staticmethod
    def _training_stats(name: str) -> dict[str, Any]:
        stats = metrics.get_smoothed_values(name)
        stats["wall"] = round(
            cast(StopwatchMeter, metrics.get_meter("default", "wall")).elapsed_time, 0
        )
        return stats

    # -- validation and checkpoints --------------------------------------------------------------

    def validate_and_save(self, end_of_epoch: bool) -> tuple[list[float | None], bool]:
        """Validate and save if it is time to.

        Returns:
            ``(validation losses, whether the run ends)``.
        """
        cfg, updates, epoch = self.cfg, self.trainer.get_num_updates(), self.epoch_itr.epoch
        data, checkpoint = cfg.dataset, cfg.checkpoint
        reason = self._reached_limit()
        signalled = self.stop.received()
        max_epoch = cfg.optimization.max_epoch
        is_last = reason is not None or (end_of_epoch and max_epoch and epoch >= max_epoch)
        interval_save = (
            checkpoint.save_interval_updates > 0
            and updates > 0
            and updates % checkpoint.save_interval_updates == 0
            and updates >= data.validate_after_updates
        )
        do_save = (
            bool(is_last)
            or (end_of_epoch and epoch % checkpoint.save_interval == 0)
            or interval_save
        )
        do_validate = (
            not data.disable_validation
            and not signalled
            and updates >= data.validate_after_updates
            and (
                (not end_of_epoch and do_save)
                or (end_of_epoch and epoch % data.validate_interval == 0)
                or bool(is_last)
                or self._interval(data.validate_interval_updates, updates)
            )
        )
        valid_losses: list[float | None] = [None]
        if do_validate:
            valid_losses = [self.validate(subset) for subset in _valid_subsets(cfg)]
        out_of_patience = self._out_of_patience(valid_losses[0])
        if do_save or signalled or out_of_patience:
            checkpoint_utils.save_checkpoint(
                checkpoint, self.trainer, self.epoch_itr, valid_losses[0]
            )
        elif valid_losses[0] is not None:
            self._note_best(valid_losses[0])
        if reason is not None:
            logger.info("Stopping training due to %s", reason)
        if signalled:
            logger.warning("stopping after update %s: %s", updates, self.stop.reason())
        return valid_losses, reason is not None or signalled or out_of_patience

    @staticmethod
    def _interval(interval: int, updates: int) -> bool:
        return interval > 0 and updates > 0 and updates % interval == 0

    def _note_best(self, value: float) -> None:
        """Remember the best metric also when nothing is saved."""
        maximize = self.cfg.checkpoint.maximize_best_checkpoint_metric
        if checkpoint_utils.is_better(value, self.trainer.best, maximize):
            self.trainer.best = value

    def _out_of_patience(self, value: float | None) -> bool:
        checkpoint = self.cfg.checkpoint
        if checkpoint.patience <= 0 or value is None:
            return False
        best = self.best_for_patience
        sign = 1 if checkpoint.maximize_best_checkpoint_metric else -1
        if best is None or sign * value > sign * best:
            self.best_for_patience, self.validations_without_progress = value, 0
            return False
        self.validations_without_progress += 1
        if self.validations_without_progress < checkpoint.patience:
            return False
        logger.info(
            "early stop since valid performance hasn't improved for last %s runs",
            checkpoint.patience,
        )
        return True

    def validate(self, subset: str) -> float:
        """Evaluate one subset, log it, and return the metric that decides what is best.

        Raises:
            ConfigError: if that metric is not among what the criterion reports.
        """
        cfg, trainer = self.cfg, self.trainer
        if cfg.dataset.fixed_validation_seed is not None:
            utils.set_torch_seed(cfg.dataset.fixed_validation_seed)
        trainer.begin_valid_epoch(self.epoch_itr.epoch)
        batches = trainer.get_valid_iterator(subset).next_epoch_itr(
            shuffle=False, set_dataset_epoch=False
        )
        prefix = f"valid on '{subset}' subset"
        with (
            self._progress(batches, self.epoch_itr.epoch, prefix) as progress,
            metrics.aggregate(new_root=True) as aggregated,
        ):
            for number, sample in enumerate(progress):
                limit = cfg.dataset.max_valid_steps
                if limit is not None and number >= limit:
                    break
                trainer.valid_step(sample)
            stats = aggregated.get_smoothed_values()
            if hasattr(self.task, "post_validate"):
                self.task.post_validate(trainer.get_model(), stats, aggregated)
            stats["num_updates"] = trainer.get_num_updates()
            metric = cfg.checkpoint.best_checkpoint_metric
            if metric not in stats:
                raise ConfigError(
                    f"--best-checkpoint-metric {metric} is not reported in validation; choose one "
                    f"of {', '.join(stats)}"
                )
            if trainer.best is not None:
                pick = max if cfg.checkpoint.maximize_best_checkpoint_metric else min
                stats[f"best_{metric}"] = pick(trainer.best, stats[metric])
            progress.print(stats, tag=subset, step=trainer.get_num_updates())
        return stats[metric]
