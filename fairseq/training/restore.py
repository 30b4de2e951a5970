"""How a run begins: the file is chosen once, read once, restored, and says where the data stand."""

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

from fairseq.checkpoint import checkpoint_paths, checkpoint_to_start_from, load_newest
from fairseq.checkpoint.layout import data_rng_of, with_data_rng
from fairseq.config.schema import parse_literal
from fairseq.config.sections import CheckpointConfig, FairseqConfig
from fairseq.errors import ConfigError
from fairseq.training import policy
from fairseq.training.trainer import Trainer

logger = logging.getLogger("fairseq.checkpoint_utils")
run_logger = logging.getLogger("fairseq_cli.train")


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
        path: the file, which need not exist.
        resets: what of it is not taken over.
        loaded: ``(path, content)`` of what was read; the path is another one if that file is
            damaged. None: nothing was read so far.
    """

    path: str
    resets: dict[str, bool]
    loaded: tuple[str, dict[str, Any]] | None = None


def read_start(cfg: FairseqConfig) -> tuple[Start, FairseqConfig]:
    """Read what the run starts from, if anything; return the configuration that goes with it.

    A run that goes on stays with the masks and the batch order it began with.

    Raises:
        CheckpointError: if the file is damaged.
        MissingFileError: if a file that the user named does not exist.
    """
    path, resets = checkpoint_to_start_from(cfg.checkpoint)
    loaded = load_newest(path) if os.path.exists(path) else None
    if loaded is None and not cfg.checkpoint.no_save:
        _name_others(path, cfg.checkpoint.save_dir)
    goes_on = loaded is not None and not resets["reset_dataloader"]
    mode = data_rng_of(loaded[1]) if loaded is not None and goes_on else "philox"
    if mode != "philox" and cfg.dataset.data_rng == "auto":
        run_logger.info("continuing with --data-rng %s, as the checkpoint began", mode)
    return Start(path, resets, loaded), with_data_rng(cfg, mode)


def _name_others(path: str, save_dir: str) -> None:
    """Warn of checkpoints that the run might have been meant to start from."""
    others = checkpoint_paths(save_dir, r"checkpoint.*\.pt")
    if others:
        run_logger.warning(
            "there is no %s, so this run begins from scratch, although %s holds %s; to go on "
            "from one of them, name it with --restore-file",
            path,
            save_dir,
            ", ".join(os.path.basename(other) for other in others[:5]),
        )


def restore(
    cfg: CheckpointConfig, trainer: Trainer, start: Start, **passthrough_args: Any
) -> tuple[Any, Any]:
    """Restore a run, or begin one.

    Args:
        cfg: the checkpoint section.
        trainer: what is restored.
        start: what the run starts from.
        **passthrough_args: for ``trainer.get_train_iterator``.

    Returns:
        ``(extra_state or None, training iterator)``.
    """
    resets = start.resets
    extra_state = trainer.load_checkpoint(
        start.path,
        resets["reset_optimizer"],
        resets["reset_lr_scheduler"],
        parse_literal(cfg.optimizer_overrides),
        reset_meters=resets["reset_meters"],
        **({} if start.loaded is None else {"loaded": start.loaded}),
    )
    fresh = resets["reset_optimizer"] or resets["reset_meters"]
    fresh = policy.asks_other_metric(cfg, trainer.progress) or fresh
    if extra_state is not None and "best" in extra_state and not fresh:
        trainer.best = extra_state["best"]
    kind = type(trainer.task).__name__
    if extra_state is not None and kind in extra_state:
        trainer.task.set_checkpoint_dict(extra_state[kind])
    position = None if extra_state is None else extra_state.get("train_iterator")
    if extra_state is not None and position is None and not resets["reset_dataloader"]:
        logger.warning("%s holds no position in the data: beginning with epoch 1", start.path)
    if position is None or resets["reset_dataloader"]:
        trainer.progress.pop("validation_due", None)
        epoch_itr = trainer.get_train_iterator(epoch=1, load_dataset=True, **passthrough_args)
        trainer.lr_step(epoch_itr.epoch)
        return extra_state, epoch_itr
    epoch = position["epoch"]
    epoch_itr = trainer.get_train_iterator(epoch=epoch, load_dataset=True, **passthrough_args)
    epoch_itr.load_state_dict(position)
    after_epoch = epoch > 1 and position.get("iterations_in_epoch", 0) == 0
    if resets["reset_optimizer"] or resets["reset_lr_scheduler"]:
        trainer.lr_step(epoch)
    elif after_epoch and "validation_due" not in trainer.progress:
        # checkpoints are written before the schedule takes its step at the end of the epoch
        ended = policy.Moment(trainer.get_num_updates(), epoch - 1, end_of_epoch=True)
        # a run that is prolonged counts as if it had never ended, with a validation of its own
        was_due = policy.due(trainer.cfg, ended)[1]
        trainer.lr_step(epoch - 1, extra_state.get("val_loss") if was_due else None)
    return extra_state, epoch_itr


def load_checkpoint(
    cfg: CheckpointConfig, trainer: Trainer, **passthrough_args: Any
) -> tuple[Any, Any]:
    """Choose, read and restore at once, for programs with a loop of their own; see :func:`restore`.

    Raises:
        ConfigError: for a reset beside ``--finetune-from-model``.
    """
    if cfg.finetune_from_model is not None and any(
        (cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader)
    ):
        raise ConfigError(
            "--finetune-from-model can not be set together with either --reset-optimizer or "
            "reset_lr_scheduler or reset_meters or reset_dataloader; it resets them all: drop the "
            "others"
        )
    return restore(cfg, trainer, Start(*checkpoint_to_start_from(cfg)), **passthrough_args)
