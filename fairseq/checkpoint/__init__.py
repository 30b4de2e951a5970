"""Checkpoints, as the trainer and the hub see them: when to save what, what to start from.

The files themselves are :mod:`fairseq.checkpoint.files`' business, their content
:mod:`fairseq.checkpoint.layout`'s.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fairseq.aliases import NAMES
from fairseq.checkpoint import files
from fairseq.checkpoint.files import checkpoint_paths, load_or_newest_good
from fairseq.checkpoint.layout import config_of, upgrade_state
from fairseq.config.sections import LAST_CHECKPOINT, RESETS
from fairseq.errors import CheckpointError, MissingFileError
from fairseq.files.io import PathManager, checkpoints_there
from fairseq.files.safe_load import safe_load
from fairseq.lazy import lazy_names
from fairseq.logging.deferred import to_python
from fairseq.rng import derive_seed

if TYPE_CHECKING:
    from fairseq.config.sections import CheckpointConfig
    from fairseq.data.batches.epochs import EpochBatchIterator
    from fairseq.protocols import Settings, StateDict
    from fairseq.training.trainer import Trainer


logger = logging.getLogger("fairseq.checkpoint_utils")

__all__ = ["checkpoint_paths", "load_checkpoint", "save_checkpoint"]

__getattr__, __dir__, _ = lazy_names(__name__, NAMES[__name__])


def verify_checkpoint_directory(save_dir: str) -> None:
    """Create the run folder and make sure it can be written to.

    Raises:
        CheckpointError: if it cannot.
    """
    probe = os.path.join(save_dir, f".dummy-{os.getpid()}")
    try:
        os.makedirs(save_dir, exist_ok=True)
        with open(probe, "w", encoding="utf-8"):
            pass
        os.unlink(probe)
    except OSError as error:
        raise CheckpointError(f"cannot write to --save-dir {save_dir}: {error}") from error


# -- saving ----------------------------------------------------------------------------------------


def is_better(value: float, best: float | None, maximize: bool) -> bool:
    """Tell whether ``value`` is at least as good as ``best``; what is not finite never is."""
    if not math.isfinite(value):
        return False
    return best is None or (value >= best if maximize else value <= best)


def _suffix(cfg: Settings) -> str:
    """Return what is inserted before ``.pt``; configurations of old programs may lack it."""
    return getattr(cfg, "checkpoint_suffix", None) or ""


def _names(
    cfg: CheckpointConfig,
    epoch: int,
    updates: int,
    end_of_epoch: bool,
    val_loss: float | None,
    best: bool,
) -> list[str]:
    """Return the names this moment's checkpoint gets, the one to be written first."""
    suffix = _suffix(cfg)
    names = []
    if end_of_epoch and not cfg.no_epoch_checkpoints and epoch % max(1, cfg.save_interval) == 0:
        names.append(f"checkpoint{epoch}{suffix}.pt")
    interval = cfg.save_interval_updates
    if not end_of_epoch and interval > 0 and updates % interval == 0:
        names.append(f"checkpoint_{epoch}_{updates}{suffix}.pt")
    if best:
        names.append(f"checkpoint_best{suffix}.pt")
    kept = cfg.keep_best_checkpoints
    if val_loss is not None and kept > 0 and _among_best(cfg, val_loss):
        # two of equal rounded value need two names; derived, so that a repeated run names them
        # alike
        digit = derive_seed(0, "best-checkpoint", epoch, updates) % kept
        metric = cfg.best_checkpoint_metric
        names.append(f"checkpoint.best_{metric}_{val_loss:.3f}{digit}{suffix}.pt")
    if not cfg.no_last_checkpoints:
        names.append(f"checkpoint_last{suffix}.pt")
    return names


def milestones(cfg: CheckpointConfig, trainer: Trainer) -> list[str]:
    """Return the names of checkpoints that were asked for by updates or tokens, and are due."""
    suffix, updates = _suffix(cfg), trainer.get_num_updates()
    names = [
        f"checkpoint_update{update}{suffix}.pt"
        for update in getattr(cfg, "save_at_updates", ())
        if update == updates
    ]
    window = trainer.effort.window if hasattr(trainer, "effort") else None
    before, after = window or (0, 0)
    return names + [
        f"checkpoint_tokens{tokens}{suffix}.pt"
        for tokens in getattr(cfg, "save_at_tokens", ())
        if before < tokens <= after
    ]


def _best_paths(cfg: CheckpointConfig) -> list[str]:
    """Return the kept best checkpoints, best first."""
    metric = re.escape(cfg.best_checkpoint_metric)
    # the digit behind the value counts as a further decimal: it decides between equals
    pattern = rf"checkpoint\.best_{metric}_(-?\d+\.?\d*){re.escape(_suffix(cfg))}\.pt"
    # the largest comes first
    paths = checkpoint_paths(cfg.save_dir, pattern)
    return paths if cfg.maximize_best_checkpoint_metric else paths[::-1]


def _among_best(cfg: CheckpointConfig, val_loss: float) -> bool:
    """Tell whether a checkpoint of this value belongs to the best ones that are kept."""
    kept = _best_paths(cfg)
    if not math.isfinite(val_loss) or len(kept) < cfg.keep_best_checkpoints:
        return math.isfinite(val_loss)
    worst = re.search(r"_(-?\d+\.\d{3})", os.path.basename(kept[cfg.keep_best_checkpoints - 1]))
    return worst is None or is_better(
        val_loss, float(worst[1]), cfg.maximize_best_checkpoint_metric
    )


def save_checkpoint(
    cfg: CheckpointConfig,
    trainer: Trainer,
    epoch_itr: EpochBatchIterator,
    val_loss: float | None,
    always: bool = False,
) -> str | None:
    """Save the run under every name it deserves now, then delete what need not be kept.

    In between, ``task.post_save(file, updates)`` is called.

    Args:
        cfg: the checkpoint section.
        trainer: whose state is saved; only the first process writes.
        epoch_itr: the training iterator.
        val_loss: the metric of the validation that just ended, None if there was none.
        always: write a file even if the settings give this moment no name: the run ends.

    Returns:
        the file that was written, None if nothing was.

    Raises:
        CheckpointError: if the file could not be written.
    """
    val_loss = to_python(val_loss)
    best = val_loss is not None and is_better(
        val_loss, trainer.best, cfg.maximize_best_checkpoint_metric
    )
    if best:
        trainer.best = val_loss
    if cfg.no_save or not trainer.should_save_checkpoint_on_current_rank:
        return None
    epoch, updates = epoch_itr.epoch, trainer.get_num_updates()
    end_of_epoch = epoch_itr.end_of_epoch()
    names = _names(cfg, epoch, updates, end_of_epoch, val_loss, best)
    names = [*milestones(cfg, trainer), *names]
    if not names and always:
        names = [f"checkpoint_{epoch}_{updates}{_suffix(cfg)}.pt"]
    if not names:
        return None
    started = time.perf_counter()
    extra_state = {"train_iterator": epoch_itr.state_dict(), "val_loss": val_loss}
    if trainer.best is not None:
        extra_state["best"] = trainer.best
    extra_state.update(trainer.task.get_checkpoint_dict())
    first, *others = (os.path.join(cfg.save_dir, name) for name in names)
    facts = {"epoch": epoch, "num_updates": updates, "val_loss": val_loss}
    trainer.save_checkpoint(first, extra_state, facts)
    for path in others:
        files.link_checkpoint(first, path)
    logger.info(
        "Saved checkpoint %s (epoch %s @ %s updates, score %s) (writing took %.2f seconds)",
        first,
        epoch,
        updates,
        "unknown: not validated" if val_loss is None else val_loss,
        time.perf_counter() - started,
    )
    trainer.task.post_save(first, updates)
    _delete_old(cfg, end_of_epoch)
    return first


def how_it_goes_on(cfg: CheckpointConfig, updates: int, saved: str | None) -> str:
    """Say what a run that was asked to end after so many updates leaves behind.

    Args:
        cfg: the checkpoint section.
        updates: how many were done.
        saved: the file that was written, None if this process writes none.
    """
    if cfg.no_save:
        return f"nothing is saved of its {updates} updates (--no-save)"
    named = cfg.no_last_checkpoints and saved is not None
    again = [f"--{name.replace('_', '-')}" for name in RESETS if getattr(cfg, name)]
    if cfg.restore_file != LAST_CHECKPOINT and not named:
        again.insert(0, "--restore-file")
    # with them it would begin again where it began
    without = f" without {', '.join(again)}" if again else ""
    how = f"--restore-file {saved}" if named else "the same command"
    goes_on = "goes on from there"
    if cfg.no_save_optimizer_state:  # which the count of updates is a part of, as in the original
        goes_on = (
            "begins with its weights at update 0: there is no optimizer state to go on with "
            "(--no-save-optimizer-state)"
        )
    return f"saved at update {updates}; {how}{without} {goes_on}"


def _delete_old(cfg: CheckpointConfig, end_of_epoch: bool) -> None:
    suffix = re.escape(_suffix(cfg))
    surplus: list[str] = []
    if not end_of_epoch and cfg.keep_interval_updates > 0:
        numbered = checkpoint_paths(cfg.save_dir, rf"checkpoint_\d+_(\d+){suffix}\.pt", True)
        pattern = cfg.keep_interval_updates_pattern
        if pattern > 0:
            numbered = [(path, step) for path, step in numbered if int(step) % pattern != 0]
        surplus += [path for path, _ in numbered[cfg.keep_interval_updates :]]
    if cfg.keep_last_epochs > 0:
        surplus += checkpoint_paths(cfg.save_dir, rf"checkpoint(\d+){suffix}\.pt")[
            cfg.keep_last_epochs :
        ]
    if cfg.keep_best_checkpoints > 0:
        surplus += _best_paths(cfg)[cfg.keep_best_checkpoints :]
    for path in surplus:
        files.delete_checkpoint(path)


# -- restoring -------------------------------------------------------------------------------------


def with_suffix(path: str, suffix: str) -> str:
    """Return ``path`` with ``suffix`` inserted before ``.pt``."""
    return f"{path.removesuffix('.pt')}{suffix}.pt" if suffix else path


def checkpoint_to_start_from(cfg: CheckpointConfig) -> tuple[str, dict[str, bool]]:
    """Return the file a run starts from and what of it is not taken over.

    Raises:
        MissingFileError: if a file that the user named does not exist.
    """
    resets = {name: getattr(cfg, name) for name in RESETS}
    suffix = _suffix(cfg)
    if cfg.restore_file != LAST_CHECKPOINT:
        path = with_suffix(cfg.restore_file, suffix)
        if not PathManager.exists(path):
            raise MissingFileError(
                f"--restore-file not found: {path} (it is not looked up inside --save-dir). "
                f"{checkpoints_there(path)}"
            )
        return path, resets
    path = os.path.join(cfg.save_dir, f"checkpoint_last{suffix}.pt")
    if PathManager.exists(path):
        return path, resets
    for flag in ("continue_once", "finetune_from_model", "grow_from"):
        named = getattr(cfg, flag, None)
        if named is None:
            continue
        if not PathManager.exists(named):
            what = f"--{flag.replace('_', '-')} not found: {named}"
            raise MissingFileError(f"{what}. {checkpoints_there(named)}")
        if flag != "continue_once":
            logger.info("loading the weights of %s; everything else starts afresh", named)
            resets = dict.fromkeys(resets, True)
        return named, resets
    return path, resets


def load_checkpoint_to_cpu(
    path: str, arg_overrides: Mapping[str, object] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """Load a checkpoint of any age; ``"cfg"`` is replaced by the upgraded configuration.

    Args:
        path: the file.
        arg_overrides: values that replace the checkpoint's.
        load_on_all_ranks: accepted for old callers.
    """
    return _upgrade_state_dict(safe_load(path), arg_overrides)


def _upgrade_state_dict(
    state: StateDict, arg_overrides: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the content of a checkpoint of any age as the function above does, in place."""
    state = upgrade_state(state)
    state["cfg"] = config_of(state, arg_overrides).thawed()  # old programs write to it
    state["args"] = None
    return state


def load_newest(path: str) -> tuple[str, dict[str, Any]]:
    """Load a checkpoint or, if it is damaged, the newest good one beside it; upgraded."""
    loaded_from, state = load_or_newest_good(path)
    return loaded_from, upgrade_state(state)
