"""What the precision modes share: an optimizer around another one, which does the work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor

from fairseq.config.sections import FairseqConfig
from fairseq.optim import build_optimizer
from fairseq.optim.base import FairseqOptimizer, Params
from fairseq.optim.read_settings import setting
from fairseq.protocols import Settings


class WrappingOptimizer(FairseqOptimizer):
    """Hands everything on that a precision mode does not change.

    Args:
        cfg: the whole configuration (``common``, ``optimization``, ``optimizer``).
        params: those of the model.
        optimizer: the wrapped one.
    """

    def __init__(
        self, cfg: Settings, params: Iterable[Tensor], optimizer: FairseqOptimizer
    ) -> None:
        super().__init__(setting(cfg, "optimizer"))
        self.model_params = list(params)
        self.wrapped_optimizer = optimizer
        self._optimizer = optimizer.optimizer

    @classmethod
    def build_optimizer(cls, cfg: FairseqConfig, params: Params, **kwargs: Any) -> Self:
        """Build the optimizer of ``cfg.optimizer`` over ``params`` and wrap it."""
        rules = setting(cfg, "optimization.param_groups", "")
        optimizer = build_optimizer(cfg.optimizer, params, param_groups=rules)
        return cls(cfg, optimizer.params, optimizer, **kwargs)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return self.wrapped_optimizer.optimizer_config

    def get_lr(self) -> float:
        return self.wrapped_optimizer.get_lr()

    def set_lr(self, lr: float) -> None:
        self.wrapped_optimizer.set_lr(lr)

    def all_reduce_grads(self, module: object) -> None:
        self.wrapped_optimizer.all_reduce_grads(module)

    @property
    def supports_flat_params(self) -> bool:
        return self.wrapped_optimizer.supports_flat_params
