"""Loss spikes: which update is one, and how a run gets away from it.

``skip`` leaves the weights alone. ``rollback`` does what trainers of large models do by hand
(Chowdhery et al. 2022, PaLM, section 5.1): it goes back to a checkpoint from some time before the
spike, and goes on with the data after it, so that the batches in between are never met again by
these weights. A run that was cured by starting again with another seed (the ALiBi recipe's) is the
reason why random draws change, too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.checkpoint.files import checkpoint_paths, names_of_run
from fairseq.errors import CheckpointError, FairseqError
from fairseq.files.safe_load import safe_load

if TYPE_CHECKING:
    from fairseq.config.sections import CheckpointConfig, OptimizationConfig
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Losses that must be known before one can stand out; the least --spike-window.
FEWEST = 8
# Makes the median absolute deviation of normal numbers their standard deviation.
MAD_TO_SIGMA = 1.4826
# Losses of a window may be equal; what differs by less than this share of them is no spike.
LEAST_SIGMA = 0.01
# Returns to one checkpoint before a run gives up.
MOST_RETURNS = 3


class SpikeError(FairseqError):
    """The loss spikes again and again, whatever data follow."""


class SpikePolicy:
    """Looks at the loss of each update before it is applied."""

    def __init__(self, config: OptimizationConfig) -> None:
        self.kind, self.reseeds = config.spike_policy, config.spike_reseed
        self.factor, self.window = config.spike_factor, config.spike_window
        self.back = config.spike_back

    def verdict(self, loss: float, update: int, progress: dict[str, Any]) -> str | None:
        """Return why the loss of an update is a spike, None if it is none.

        Losses are kept whether they stand out or not, so that a lasting change of level counts as
        the new level after half a window.

        Args:
            loss: of the update that would be the next, per predicted token.
            update: how many were done.
            progress: of the run, which holds the window, so that a resumed run decides alike.
        """
        if self.kind == "none" or not math.isfinite(loss):
            return None
        kept: list[list[float]] = progress.setdefault("spike_window", [])
        window = [value for _, value in kept]
        kept.append([update, loss])
        del kept[: -self.window]
        if len(window) < FEWEST:
            return None
        # median and MAD, since spikes that lie in the window would widen a mean and a deviation
        middle = statistics.median(window)
        deviation = statistics.median(abs(value - middle) for value in window)
        sigma = max(MAD_TO_SIGMA * deviation, LEAST_SIGMA * abs(middle))
        if loss <= middle + self.factor * sigma:
            return None
        return (
            f"update {update}: the loss {loss:.4g} is {(loss - middle) / sigma:.1f} deviations "
            f"above the median {middle:.4g} of the {len(window)} before (--spike-factor "
            f"{self.factor:g}); the weights stay as they are"
        )

    def seed_shift(self, progress: dict[str, Any]) -> int:
        """Return what random draws of updates depend on besides the seed: 0 before any return."""
        return int(progress.get("spike_returns", 0)) if self.reseeds else 0


def roll_back(trainer: Trainer, config: CheckpointConfig) -> tuple[str, int] | None:
    """Give a trainer the state of a checkpoint from before a spike; where it reads on stays.

    Returns:
        ``(checkpoint, its number of updates)``; None if there is none that is old enough, and
        nothing was changed.

    Raises:
        SpikeError: if the run returns to the same update again and again.
    """
    progress, spike = trainer.progress, trainer.get_num_updates()
    left: list[int] = progress.setdefault("spike_left_behind", [])
    earlier = _newest_before(config, spike - trainer.spikes.back, left)
    if earlier is None:
        logger.warning("no checkpoint is old enough to go back to; the update is skipped")
        return None
    path, step, state = earlier
    returns = progress.get("spike_returns_to", {}).get(str(step), 0) + 1
    if returns > MOST_RETURNS:
        raise SpikeError(
            f"the loss spikes although the run went back to update {step} {MOST_RETURNS} times; "
            "lower --lr, set --clip-norm, or go back further (--spike-back, --restore-file)"
        )
    left += [t for name in _all(config) if (t := _stamp(name)) not in left and _step(name) > step]
    trainer.rewind(path, state)
    # the checkpoint's schedule may be at an earlier epoch
    trainer.lr_step_begin_epoch(trainer.epoch)
    # or these weights would be saved as those of a number of tokens that others have passed
    trainer.effort.take_back()
    progress["spike_returns"] = progress.get("spike_returns", 0) + 1
    progress["spike_returns_to"] = {str(step): returns}
    progress["spike_window"] = [row for row in progress["spike_window"] if row[0] < step]
    logger.warning(
        "the loss spiked at update %s: back to %s, of update %s, and on with the data that follow",
        spike,
        path,
        step,
    )
    return path, step


def _all(config: CheckpointConfig) -> list[str]:
    return checkpoint_paths(config.save_dir, names_of_run(config.checkpoint_suffix))


def _stamp(path: str) -> int:
    """Return what tells a file from the one that takes its name later."""
    return os.stat(path).st_mtime_ns


def _step(path: str) -> int:
    """Return the updates of a checkpoint by the file beside it, -1 if that does not say."""
    try:
        return int(json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["num_updates"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _newest_before(
    config: CheckpointConfig, update: int, left: list[int]
) -> tuple[str, int, dict[str, Any]] | None:
    """Return the newest readable checkpoint up to an update, but none of those left behind."""
    steps = sorted(((_step(path), path) for path in _all(config)), reverse=True)
    for step, path in steps:
        if not 0 <= step <= update or _stamp(path) in left:
            continue
        try:
            state = safe_load(path)
        except CheckpointError as error:
            logger.warning("skipped a damaged checkpoint: %s", error)
            continue
        # weights alone cannot go on as if nothing had been
        if state.get("last_optimizer_state") is not None:
            return path, step, state
    return None
