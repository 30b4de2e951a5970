"""The loss scale of fp16 training: halved on overflow, doubled after a quiet window."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fairseq.protocols import StateDict

_COUNTERS = ("iter", "last_overflow_iter", "last_rescale_iter", "overflows_since_rescale")


class LowestScaleError(OverflowError):
    """An overflow at the threshold: no lower scale will cure it."""


def cannot_fall(minimum: float, without_scale: str) -> FloatingPointError:
    """Return the error for a loss scale at its minimum, with the flag that needs none."""
    return FloatingPointError(
        f"Minimum loss scale reached ({minimum}). Your loss is probably exploding. Try a lower "
        "learning rate, gradient clipping (--clip-norm), a larger batch, or "
        f"{without_scale}, which needs no loss scale."
    )


class DynamicLossScaler:
    """Keep the loss scale and decide about every update.

    Args:
        init_scale: first scale.
        scale_factor: what the scale is multiplied or divided by.
        scale_window: updates without overflow after which the scale grows.
        tolerance: share of overflows since the last change of scale below which it stays.
        threshold: the scale never falls below it.
        min_loss_scale: a scale that falls to it ends the training.
    """

    def __init__(
        self,
        init_scale: float = 2.0**15,
        scale_factor: float = 2.0,
        scale_window: int = 2000,
        tolerance: float = 0.0,
        threshold: float | None = None,
        min_loss_scale: float = 1e-4,
    ) -> None:
        self.loss_scale = float(init_scale)
        self.scale_factor = scale_factor
        self.scale_window = scale_window
        self.tolerance = tolerance
        self.threshold = threshold
        self.min_loss_scale = min_loss_scale
        self.iter = 0
        # updates count from 0: with -1 the first window is as long as all others
        self.last_overflow_iter = -1
        self.last_rescale_iter = -1
        self.overflows_since_rescale = 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return ``loss`` multiplied by the scale."""
        return loss * self.loss_scale

    def update(self) -> None:
        """Count one update without overflow; double the scale at the end of a window."""
        if (self.iter - self.last_overflow_iter) % self.scale_window == 0:
            self.loss_scale *= self.scale_factor
            self.last_rescale_iter = self.iter
        self.iter += 1

    def check_overflow(self, grad_norm: float | Tensor) -> None:
        """Raise if the norm of the gradients says that an fp16 number overflowed.

        Raises:
            OverflowError: the batch is to be skipped; the scale is already the new one.
            LowestScaleError: it is to be skipped, and the scale stays at the threshold.
            FloatingPointError: the scale cannot fall any further.
        """
        if math.isfinite(float(grad_norm)):
            return
        previous = self.loss_scale
        # right after a change of scale no update has passed yet
        since_rescale = max(1, self.iter - self.last_rescale_iter)
        self.last_overflow_iter = self.iter
        self.overflows_since_rescale += 1
        if self.overflows_since_rescale / since_rescale >= self.tolerance:
            self.loss_scale /= self.scale_factor
            if self.threshold is not None:
                self.loss_scale = max(self.loss_scale, self.threshold)
            self.last_rescale_iter = self.iter
            self.overflows_since_rescale = 0
        if self.loss_scale <= self.min_loss_scale:
            self.loss_scale = previous
            raise cannot_fall(self.min_loss_scale, "--bf16")
        self.iter += 1
        at_threshold = self.threshold is not None and previous <= self.threshold
        kind = LowestScaleError if at_threshold else OverflowError
        raise kind(f"setting loss scale to: {self.loss_scale}")

    def state_dict(self) -> dict[str, Any]:
        """Return the scale's history, without the scale itself."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore what :meth:`state_dict` returned; absent counters stay as they are."""
        for name in _COUNTERS:
            if name in state_dict:
                setattr(self, name, int(state_dict[name]))
