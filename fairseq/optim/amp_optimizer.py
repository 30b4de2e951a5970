"""Automatic mixed precision: fp32 weights, autocast in the model, a gradient scaler here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.optim.base import FairseqOptimizer
from fairseq.optim.loss_scaler import cannot_fall
from fairseq.optim.read_settings import setting
from fairseq.optim.wrapping import WrappingOptimizer
from fairseq.protocols import Settings, StateDict

logger = logging.getLogger(__name__)


def amp_dtype(cfg: object, device: torch.device) -> torch.dtype:
    """Return the type that ``--amp`` casts to on ``device``.

    ``--amp-dtype auto`` means bfloat16 on the CPU and on CUDA devices that compute with it.
    """
    chosen = setting(cfg, "common.amp_dtype", "auto")
    if chosen == "auto":
        has_bf16 = device.type == "cpu" or (
            device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        chosen = "bf16" if has_bf16 else "fp16"
    return torch.bfloat16 if chosen == "bf16" else torch.float16


class AMPOptimizer(WrappingOptimizer):
    """An fp32 optimizer behind torch's ``GradScaler`` (which is off under bfloat16).

    Args:
        cfg: the whole configuration.
        params: the fp32 parameters.
        fp32_optimizer: the optimizer over them.
    """

    def __init__(
        self, cfg: Settings, params: Iterable[Tensor], fp32_optimizer: FairseqOptimizer
    ) -> None:
        super().__init__(cfg, params, fp32_optimizer)
        self.fp32_optimizer = fp32_optimizer
        device = self.model_params[0].device
        self.dtype = amp_dtype(cfg, device)
        self.min_loss_scale = setting(cfg, "common.min_loss_scale", 1e-4)
        self.scaler = torch.amp.GradScaler(
            device.type,
            init_scale=float(setting(cfg, "common.amp_init_scale", 2**7)),
            growth_interval=setting(cfg, "common.amp_scale_window", 2000),
            enabled=self.dtype == torch.float16,
        )

    @property
    def next_loss_scale(self) -> float:
        """The loss scale after one more overflow."""
        return self.scaler.get_scale() * self.scaler.get_backoff_factor()

    def state_dict(self) -> dict[str, Any]:
        return {**self.fp32_optimizer.state_dict(), "grad_scaler": self.scaler.state_dict()}

    def load_state_dict(
        self, state_dict: StateDict, optimizer_overrides: Mapping[str, object] | None = None
    ) -> None:
        self.fp32_optimizer.load_state_dict(state_dict, optimizer_overrides)
        if self.scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.scaler.load_state_dict(state_dict["grad_scaler"])

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Unscale and clip gradients, return their norm (not finite after an overflow).

        After an overflow :meth:`step` still has to be called: it skips the update and lowers the
        scale.

        Raises:
            FloatingPointError: if the loss scale cannot fall any further.
        """
        # the threshold of clipping is meant for true gradients, so unscaling comes first
        self.scaler.unscale_(self.optimizer)
        norm = self.fp32_optimizer.clip_grad_norm(max_norm, aggregate_norm_fn)
        if self.scaler.is_enabled() and not torch.isfinite(norm):
            if self.next_loss_scale <= self.min_loss_scale:
                raise cannot_fall(self.min_loss_scale, "--amp-dtype bf16")
            logger.info("AMP: overflow detected, setting scale to %s", self.next_loss_scale)
        return norm

    def step(
        self,
        closure: Callable[[], float] | None = None,
        scale: float | Tensor = 1.0,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Update the weights unless a gradient is not finite, then adapt the scale."""
        assert closure is None and groups is None and scale == 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @property
    def skips_on_device(self) -> bool:
        """Whether a step can be left out on the device: not where the scale depends on it."""
        return not self.scaler.is_enabled() and super().skips_on_device
