"""The loop around the trainer: epochs, validations, checkpoints, and when to stop.

:func:`run_training` is one process of a run from start to end; the commands call it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any, cast

from fairseq import checkpoint as checkpoint_utils
from fairseq import tasks, utils
from fairseq.config.build import plain
from fairseq.config.components import draft_for_plugins
from fairseq.config.resolve import completed, required_settings, resolve
from fairseq.config.sections import FairseqConfig
from fairseq.data.batches import epochs
from fairseq.data.batches.protocol import FinishedEpoch
from fairseq.data.batches.read import workers_ended
from fairseq.data.storage.load import raise_if_valid_subsets_unintentionally_ignored
from fairseq.distributed import utils as distributed_utils
from fairseq.distributed.device import choose_device
from fairseq.distributed.signals import StopSignal
from fairseq.errors import ConfigError
from fairseq.growth.start import grow_loaded, recall_source
from fairseq.logging import metrics
from fairseq.logging.meters import StopwatchMeter, exact, safe_round
from fairseq.logging.progress_bar import BaseProgressBar, progress_of
from fairseq.logging.sinks import close_sinks
from fairseq.models.base import count_parameters
from fairseq.tasks.loading import check_targets
from fairseq.tasks.validation import figures_of, refuse_long_samples, valid_subsets
from fairseq.teacher import attach_teacher
from fairseq.training import policy, spikes
from fairseq.training.allocator import keep_freed_memory
from fairseq.training.announce import Costs
from fairseq.training.compiled import compile_parts
from fairseq.training.freeze import freeze_parts
from fairseq.training.profiling import UpdateProfiler
from fairseq.training.restore import read_start, restore
from fairseq.training.run_folder import RunFolder
from fairseq.training.samples import Sampler
from fairseq.training.trainer import Trainer
from fairseq.training.watch import Watch

logger = logging.getLogger("fairseq_cli.train")


def run_training(cfg: FairseqConfig, watch: Watch | None = None) -> float | None:
    """Train a model as ``cfg`` says, in this process.

    Args:
        cfg: the configuration; it is left as it is.
        watch: is told of every record, and how the run ended.

    Returns:
        the best validation metric, None if nothing was validated.

    Raises:
        ConfigError: for settings that are missing or contradict each other.
        SystemExit: with status 128 + n if signal n ended the run.
    """
    with ready_to_train(cfg, watch) as loop:
        with loop.profiler:
            loop.run()
        loop.watch.updates = loop.trainer.get_num_updates()
    return loop.trainer.best


@contextlib.contextmanager
def ready_to_train(cfg: FairseqConfig, watch: Watch | None = None) -> Iterator[TrainLoop]:
    """Set a run up, and clear it away at the end of the block; see :func:`run_training`.

    Yields:
        the loop, before its first update.
    """
    cfg = resolve(cfg)
    if missing := required_settings(cfg):
        raise ConfigError("training needs " + "; ".join(missing))
    metrics.reset()
    checkpoint = cfg.checkpoint
    if not checkpoint.no_save:
        checkpoint_utils.verify_checkpoint_directory(checkpoint.save_dir)
    if choose_device(cfg).type == "cpu":
        keep_freed_memory()
    if cfg.distributed_training.distributed_world_size > 1:
        distributed_utils.init_process_group(cfg.distributed_training, choose_device(cfg))
    try:
        with (
            RunFolder(checkpoint.save_dir, enabled=_writes(cfg)) as folder,
            workers_ended(),
            StopSignal() as stop,
        ):
            trainer, epoch_itr, sampler = _set_up(cfg, folder)
            with contextlib.closing(trainer.state):
                yield TrainLoop(trainer.cfg, trainer, epoch_itr, stop, folder, sampler, watch)
    finally:
        close_sinks()


def _set_up(cfg: FairseqConfig, folder: RunFolder) -> tuple[Trainer, Any, Sampler | None]:
    """Build everything, restore what there is to restore.

    Returns:
        trainer, data iterator, and what samples at validations, if this process is to.
    """
    utils.set_torch_seed(cfg.common.seed)
    # read before anything is built: the checkpoint may say what kind of model grows
    start, cfg = read_start(cfg)
    cfg = draft_for_plugins(recall_source(cfg, start.loaded))
    task = tasks.setup_task(cfg.task)
    if cfg.bpe is not None and hasattr(task, "bpe"):
        task.bpe = task.build_bpe(cfg.bpe)
    model = task.build_model(cfg.model)
    check_targets(model, task)
    start = start._replace(loaded=grow_loaded(cfg, start.loaded, task))
    # after the weights came in, before the optimizer asks which parameters are trained
    freeze_parts(model, cfg.optimization)
    criterion = task.build_criterion(cfg.criterion)
    attach_teacher(cfg, task, model, criterion)
    # what a model found out by itself belongs to what checkpoints and the run folder state
    cfg = cfg.changed(model=completed(cfg.model, model))
    cfg.freeze()  # a draft for plug-ins, too
    samples = cfg.dataset.sample_prompts is not None and distributed_utils.is_master()
    sampler = Sampler(cfg, task, model) if samples else None
    folder.describe(cfg, parameters=count_parameters(model))
    raise_if_valid_subsets_unintentionally_ignored(cfg)
    if not cfg.dataset.disable_validation:
        for subset in valid_subsets(cfg):
            task.load_dataset(subset, combine=bool(cfg.dataset.combine_valid_subsets), epoch=1)
            refuse_long_samples(cfg, task, model, subset)  # now, not after the first epoch
    if cfg.checkpoint.write_checkpoints_asynchronously:
        logger.warning("--save-async: checkpoints are written in the foreground all the same")
    compile_parts(model, cfg.common.compile, choose_device(cfg))
    trainer = Trainer(cfg, task, model, criterion)
    _, epoch_itr = restore(
        cfg.checkpoint, trainer, start, disable_iterator_cache=task.has_sharded_data("train")
    )
    path = None if start.loaded is None else start.loaded[0]
    more = {"lineage": trainer.lineage} if trainer.lineage else {}
    update = trainer.get_num_updates()
    folder.note("start", update=update, epoch=epoch_itr.epoch, checkpoint=path, **more)
    return trainer, epoch_itr, sampler


def _writes(cfg: FairseqConfig) -> bool:
    return not cfg.checkpoint.no_save and distributed_utils.is_master()


class TrainLoop:
    """Runs epochs until something says stop.

    Args:
        cfg: the configuration.
        trainer: takes the updates.
        epoch_itr: where the run stands in the data.
        stop: tells whether the process was asked to end.
        folder: keeps what happened.
        sampler: what samples after each validation.
        watch: is told of every record, and how the run ended.
    """

    def __init__(
        self,
        cfg: FairseqConfig,
        trainer: Trainer,
        epoch_itr: Any,
        stop: StopSignal,
        folder: RunFolder,
        sampler: Sampler | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.cfg, self.trainer, self.task = cfg, trainer, trainer.task
        self.epoch_itr, self.stop, self.folder = epoch_itr, stop, folder
        self.watch = Watch() if watch is None else watch
        # what validations and checkpoints are about; not epoch_itr if an epoch end is caught up on
        self.position = epoch_itr
        # what was restored lies on the disk already
        self.saved_at = self.began_at = trainer.get_num_updates()
        self.sampler = sampler
        profiled = cfg.common.profile and _writes(cfg)
        self.profiler = UpdateProfiler(cfg.checkpoint.save_dir, profiled)
        self._told_settings = False
        self.costs = Costs(trainer)

    def run(self) -> None:
        """Train until the last epoch, the last update, the time limit or a signal."""
        if self._catch_up():
            return
        max_epoch = self.cfg.optimization.max_epoch or math.inf
        complete = self._reached_limit() or self._validated_enough()
        if complete is None and self.epoch_itr.next_epoch_idx > max_epoch:
            complete = f"max_epoch: {max_epoch}"
        if complete is not None:
            logger.info("nothing to do: the run is complete (%s)", complete)
        if complete is None and self.stop.received():
            logger.warning("stopped by %s before the first update", self.stop.name)
        if complete is not None or self.stop.received():
            self._note_stop(complete or self.stop.name)
            return
        while self.epoch_itr.next_epoch_idx <= max_epoch:
            warmed_up = self.trainer.get_num_updates() > 0  # before, the rate may be 0
            if warmed_up and self.trainer.get_lr() <= self.cfg.optimization.stop_min_lr:
                self._stop_at_lowest_rate()
                return
            valid_losses, should_stop = self.train_epoch()
            if should_stop:
                return
            self.trainer.lr_step(self.epoch_itr.epoch, valid_losses[0])
            sharded = self.task.has_sharded_data("train")
            self.epoch_itr = self.position = self.trainer.get_train_iterator(
                self.epoch_itr.next_epoch_idx,
                load_dataset=sharded,
                disable_iterator_cache=sharded,
            )
        self._note_stop(f"max_epoch: {max_epoch}")

    def _note_stop(self, reason: str | None) -> None:
        self.watch.reason = reason
        self.folder.note("stop", update=self.trainer.get_num_updates(), reason=reason)

    def _catch_up(self) -> bool:
        """Do the validation that a signal prevented before the restart; tell if the run ends."""
        due = self.trainer.progress.pop("validation_due", None)
        if due is None:
            return False
        after_epoch, at_milestone = due == "epoch", due == "milestone"
        if after_epoch:
            self.position = FinishedEpoch(self.epoch_itr)
        valid_losses, should_stop = self.validate_and_save(after_epoch, at_milestone=at_milestone)
        if after_epoch and not should_stop:
            self.trainer.lr_step(self.position.epoch, valid_losses[0])
        self.position = self.epoch_itr
        return should_stop

    def _stop_at_lowest_rate(self) -> None:
        logger.info(
            "stopping training because current learning rate (%s) is smaller than or equal to "
            "minimum learning rate (--stop-min-lr=%s)",
            self.trainer.get_lr(),
            self.cfg.optimization.stop_min_lr,
        )
        if self.saved_at != self.trainer.get_num_updates():
            self._save(None, always=True)
        self._note_stop("the learning rate is at --stop-min-lr")

    def _reached_limit(self) -> str | None:
        """Return why training must end now, None if it need not."""
        settings = self.cfg.optimization
        timed = settings.stop_time_hours > 0 or settings.lr_time_budget > 0
        hours = self.trainer.hours() if timed else 0.0
        updates, tokens = self.trainer.get_num_updates(), self.trainer.progress.get("tokens", 0)
        return policy.reached_limit(settings, updates, hours, tokens)

    def _validated_enough(self) -> str | None:
        return policy.validated_enough(self.cfg.checkpoint, self.trainer.progress)

    # -- an epoch --------------------------------------------------------------------------------

    @metrics.aggregate("train")
    def train_epoch(self) -> tuple[list[float | None], bool]:
        """Train for one epoch, or what is left of it.

        Returns:
            ``(validation losses, whether the run ends)``.
        """
        trainer, groups = self.trainer, self.update_groups()
        trainer.begin_epoch(self.epoch_itr.epoch)
        self.costs.begin_epoch(self.epoch_itr, groups)
        valid_losses: list[float | None] = [None]
        should_stop = False
        with self._progress(groups, self.epoch_itr.epoch) as progress:
            for samples in progress:
                with metrics.aggregate("train_inner"):
                    updated = trainer.train_step(samples) is not None
                self.profiler.step()
                self._note_found()
                if updated:
                    self._log_inner(progress)
                else:
                    self._note_skipped()
                end_of_epoch = not groups.has_next()
                # a skipped update changes nothing, so it triggers no second validation there
                if self.stop.received() or updated or end_of_epoch:
                    valid_losses, should_stop = self.validate_and_save(end_of_epoch, updated)
                if should_stop:
                    break
            self._read_figures()
            stats = self._training_stats("train")
            progress.print(stats, tag="train", step=trainer.get_num_updates())
        metrics.reset_meters("train")
        return valid_losses, should_stop

    def _note_skipped(self) -> None:
        """Keep why an update was skipped; go back if it was a spike and the policy says so."""
        trainer = self.trainer
        self.folder.note("skipped", update=trainer.get_num_updates(), reason=trainer.skipped)
        if not (trainer.spiked and trainer.spikes.kind == "rollback"):
            return
        returned = spikes.roll_back(trainer, self.cfg.checkpoint)
        distributed_utils.barrier()  # the others have seen the checkpoints, which change now
        if returned is not None:
            self.folder.note("rollback", update=returned[1], checkpoint=returned[0])
            self._save(None, always=True)  # not those from the way to the spike

    def _read_figures(self) -> None:
        """Log the updates that nobody has looked at yet, before figures are printed or saved."""
        if not self.trainer.update_log.unread:
            return
        with metrics.aggregate("train_inner"):
            self.trainer.update_log.read()
        self._note_found()

    def _note_found(self) -> None:
        """Keep which updates were found to have changed nothing."""
        found, self.trainer.update_log.skipped = self.trainer.update_log.skipped, []
        for update, reason in found:
            self.folder.note("skipped", update=update, reason=reason)

    def update_groups(self) -> epochs.GroupedIterator:
        """Return the rest of the epoch; see :func:`fairseq.data.batches.epochs.update_groups`."""
        return epochs.update_groups(self.cfg, self.epoch_itr)

    def _progress(self, iterator: Iterator[Any], epoch: int, prefix: str | None = None) -> Any:
        cfg, common, master = self.cfg, self.cfg.common, distributed_utils.is_master()
        save_dir = cfg.checkpoint.save_dir
        bar = progress_of(
            common,
            iterator,
            prefix,
            log_format=common.log_format if master else "none",
            log_file=common.log_file if master else None,
            epoch=epoch,
            tensorboard_logdir=common.tensorboard_logdir if master else None,
            wandb_project=common.wandb_project if master else None,
            wandb_run_name=os.environ.get("WANDB_NAME", os.path.basename(save_dir)),
            wandb_folder=save_dir if _writes(cfg) else None,
            jsonl_path=os.path.join(save_dir, "metrics.jsonl") if _writes(cfg) else None,
            num_updates=self.trainer.get_num_updates(),
            total_updates=cfg.optimization.max_update or None,
        )
        if common.wandb_project and not self._told_settings:
            bar.update_config(plain(cfg))
            self._told_settings = True
        return bar

    def _log_inner(self, progress: BaseProgressBar) -> None:
        updates = self.trainer.get_num_updates()
        self.costs.note_update(updates)
        if updates % self.cfg.common.log_interval == 0:
            stats = self.costs.with_eta(self._training_stats("train_inner"))
            progress.log(stats, tag="train_inner", step=updates)
            metrics.reset_meters("train_inner")
            self.watch.trained(stats, updates, self.epoch_itr.epoch)

    @staticmethod
    def _training_stats(name: str) -> dict[str, Any]:
        stats = metrics.get_smoothed_values(name)
        stats["wall"] = safe_round(
            cast(StopwatchMeter, metrics.get_meter("default", "wall")).elapsed_time, 0
        )
        return stats

    # -- validation and checkpoints --------------------------------------------------------------

    def validate_and_save(
        self, end_of_epoch: bool, updated: bool = True, at_milestone: bool = False
    ) -> tuple[list[float | None], bool]:
        """Validate and save if it is time to.

        A signal goes first: the state is saved, and a validation that was due follows after the
        restart.

        Args:
            end_of_epoch: whether this was the last update of the epoch.
            updated: whether it changed anything; if not, counts of updates were looked at before.
            at_milestone: whether it is known that a milestone was reached, before the restart.

        Returns:
            ``(validation losses, whether the run ends)``.
        """
        updates = self.trainer.get_num_updates()
        at_milestone |= bool(checkpoint_utils.milestones(self.cfg.checkpoint, self.trainer))
        now = policy.Moment(updates, self.position.epoch, end_of_epoch, updated, at_milestone)
        reason = self._reached_limit() or self.watch.asked_to_stop(self.trainer.device)
        do_save, do_validate = policy.is_time(self.cfg, now, reason is not None)
        is_extra = not policy.due(self.cfg, now)[1]
        valid_losses: list[float | None] = [None]
        moment = "epoch" if end_of_epoch else "milestone" if at_milestone else "update"
        if do_validate:
            try:
                valid_losses = self._validate_all() or [None]
            except Exception:
                self._keep_unvalidated(moment)
                raise
        signalled = self.stop.number is not None
        if do_validate and valid_losses[0] is None:
            self.trainer.progress["validation_due"] = moment
        if valid_losses[0] is not None:
            if not is_extra:  # a run that is prolonged counts as if it had never ended
                maximize = self.cfg.checkpoint.maximize_best_checkpoint_metric
                policy.note_validation(self.trainer.progress, valid_losses[0], maximize)
            reason = reason or self._validated_enough()
            reason = reason or self.watch.asked_to_stop(self.trainer.device)
            self._sample(updates)
        should_stop = reason is not None or signalled
        saved = None
        if do_save or should_stop:
            saved = self._save(valid_losses[0], should_stop or policy.is_last_epoch(self.cfg, now))
        if reason is not None:
            logger.info("Stopping training due to %s", reason)
        if signalled:
            how = checkpoint_utils.how_it_goes_on(self.cfg.checkpoint, updates, saved)
            logger.warning("stopped by %s: %s", self.stop.name, how)
        if should_stop:
            self._note_stop(reason or self.stop.name)
            distributed_utils.barrier()  # whoever ends first would take the one that writes along
        return valid_losses, should_stop

    def _keep_unvalidated(self, moment: str) -> None:
        """Save before a failed validation ends the run; the restart begins with it."""
        updates = self.trainer.get_num_updates()
        if updates and self.saved_at != updates and distributed_utils.is_master():
            self.trainer.progress["validation_due"] = moment
            saved = self._save(None, always=True)
            how = checkpoint_utils.how_it_goes_on(self.cfg.checkpoint, updates, saved)
            logger.warning("validation failed: %s", how)

    def _sample(self, update: int) -> None:
        if self.sampler is not None:
            position = {"update": update, "epoch": self.position.epoch, "done": self.began_at}
            folder = self.folder.path if self.folder.enabled else None
            self.sampler.report(self.trainer.device, folder, position)

    def _save(self, val_loss: float | None, always: bool) -> str | None:
        self._read_figures()
        path = checkpoint_utils.save_checkpoint(
            self.cfg.checkpoint, self.trainer, self.position, val_loss, always
        )
        self.saved_at = self.trainer.get_num_updates() if path else self.saved_at
        self.watch.saved = path or self.watch.saved
        return path

    def _validate_all(self) -> list[float | None] | None:
        """Evaluate all subsets; None if a signal came before the end."""
        losses: list[float | None] = []
        for subset in valid_subsets(self.cfg):
            loss = None if self.stop.received() else self.validate(subset)
            if loss is None:
                return None
            losses.append(loss)
        return losses

    def validate(self, subset: str) -> float | None:
        """Evaluate one subset, log it, and return the metric that decides what is best.

        Returns:
            that metric, None if a signal came before the end.

        Raises:
            ConfigError: if that metric is not among what the criterion reports.
            DataError: if there is nothing to evaluate.
        """
        cfg, trainer, epoch = self.cfg, self.trainer, self.position.epoch
        trainer.begin_valid_epoch(epoch)
        batches = trainer.get_valid_iterator(subset).next_epoch_itr(
            shuffle=False, set_dataset_epoch=False
        )
        prefix = f"valid on '{subset}' subset"
        limit, model = cfg.dataset.max_valid_steps, trainer.get_model()
        with self._progress(batches, epoch, prefix) as progress:
            figures = figures_of(
                *(cfg, self.task, model, subset, progress),
                trainer.valid_step,
                limit,
                self.stop.received,
            )
            if figures is None:
                return None
            stats, aggregated = figures
            stats["num_updates"] = trainer.get_num_updates()
            metric = cfg.checkpoint.best_checkpoint_metric
            if metric not in stats:
                raise ConfigError(
                    f"--best-checkpoint-metric {metric} is not reported in validation; choose one "
                    f"of {', '.join(stats)}"
                )
            value = exact(stats[metric])
            pick = max if cfg.checkpoint.maximize_best_checkpoint_metric else min
            best = value if trainer.best is None else pick(trainer.best, value)
            digits = getattr(aggregated.get(metric), "round", None)
            stats[f"best_{metric}"] = safe_round(best, 3 if digits is None else digits)
            progress.print(stats, tag=subset, step=trainer.get_num_updates())
        self.watch.validated(stats, subset, trainer.get_num_updates(), epoch)
        return value
