"""Adafactor: second moments of matrices kept as one row and one column.

Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
algorithms 4 (matrices) and 5 (vectors), with an external learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq.config.schema import (
    DECAY,
    II,
    FairseqDataclass,
    option,
)
from fairseq.errors import ConfigError
from fairseq.optim import register_optimizer
from fairseq.optim.base import ConfiguredOptimizer, Group, Params, State
from fairseq.optim.fp32_rule import PerTensorOptimizer, zeros_like


@dataclass
class FairseqAdafactorConfig(FairseqDataclass):
    """Settings of ``--optimizer adafactor``."""

    adafactor_eps: Any = option(
        "(1e-30, 1e-3)", "floors of the squared gradient and of the parameter scale", minimum=0
    )
    clip_threshold: float = option(1.0, "largest root mean square of an update", above=0)
    decay_rate: float = option(-0.8, "exponent of the decay of the second moment", maximum=0)
    beta1: float | None = option(
        None, "decay rate of the first moment; without it there is none", **DECAY
    )
    weight_decay: float = option(0.0, "decoupled weight decay", argparse_alias="--wd", minimum=0)
    scale_parameter: bool = option(False, "multiply the learning rate by the parameter's scale")
    relative_step: bool = option(False, "refused: the learning rate is that of --lr")
    warmup_init: bool = option(False, "refused: it belongs to --relative-step")
    lr: list[float] = II("optimization.lr")


def _rms(tensor: Tensor) -> Tensor:
    """Return the root mean square of ``tensor``, 0-dim."""
    return tensor.square().mean().sqrt()


class Adafactor(PerTensorOptimizer):
    """The rule of the paper as a ``torch.optim.Optimizer``.

    State of a parameter: ``step`` (int); ``exp_avg_sq`` for vectors, ``exp_avg_sq_row`` (shape
    without the last dimension) and ``exp_avg_sq_col`` (without the last but one) otherwise;
    ``exp_avg`` if there is a first moment.

    Args:
        params: tensors or parameter groups.
        lr: learning rate.
        eps: floors of the squared gradient and of the parameter scale.
        clip_threshold: largest root mean square of an update before the learning rate.
        decay_rate: the second moment decays by ``1 - step ** decay_rate``.
        beta1: decay rate of the first moment, or None.
        weight_decay: decoupled weight decay.
        scale_parameter: multiply lr by ``max(eps[1], rms(parameter))``.
    """

    supports_flat_params = False

    def __init__(
        self,
        params: Params,
        lr: float,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
        }
        super().__init__(params, defaults)

    def init_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        state: dict[str, Any] = {"step": 0}
        if group["beta1"] is not None:
            state["exp_avg"] = zeros_like(param)
        if param.dim() >= 2:
            state["exp_avg_sq_row"] = param.new_zeros(param.shape[:-1])
            state["exp_avg_sq_col"] = param.new_zeros(param.shape[:-2] + param.shape[-1:])
        else:
            state["exp_avg_sq"] = zeros_like(param)
        return state

    def rule(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        state["step"] += 1
        # 0 at the first step (the start at zero needs no correction), towards 1 later
        decay = 1.0 - state["step"] ** group["decay_rate"]
        square = grad.square() + group["eps"][0]
        if "exp_avg_sq_row" in state:
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            row.mul_(decay).add_(square.mean(dim=-1), alpha=1.0 - decay)
            col.mul_(decay).add_(square.mean(dim=-2), alpha=1.0 - decay)
            # v = row col^T / mean(row); its inverse root factor by factor, so nothing overflows
            inverse_row = (row / row.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)
            update = grad * inverse_row * col.rsqrt().unsqueeze(-2)
        else:
            state["exp_avg_sq"].mul_(decay).add_(square, alpha=1.0 - decay)
            update = grad * state["exp_avg_sq"].rsqrt()
        # stale second moments make updates too large: they are clipped as a whole (section 6)
        update /= (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
        lr = group["lr"]
        if group["scale_parameter"]:
            lr = lr * _rms(param).clamp(min=group["eps"][1])
        update *= lr
        if group["beta1"] is not None:
            mean = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1.0 - group["beta1"])
            update = mean
        param.sub_(param * (group["weight_decay"] * lr)).sub_(update)


@register_optimizer("adafactor", dataclass=FairseqAdafactorConfig)
class FairseqAdafactor(ConfiguredOptimizer):
    """``--optimizer adafactor``.

    Raises:
        ConfigError: for ``--relative-step`` and ``--warmup-init``, which contradict ``--lr``.
    """

    torch_class = Adafactor
    arguments = {
        "eps": "adafactor_eps",
        "clip_threshold": "clip_threshold",
        "decay_rate": "decay_rate",
        "beta1": "beta1",
        "weight_decay": "weight_decay",
        "scale_parameter": "scale_parameter",
    }
    pairs = ("eps",)

    def __init__(self, cfg: FairseqAdafactorConfig, params: Params) -> None:
        if cfg.relative_step or cfg.warmup_init:
            raise ConfigError(
                "--relative-step and --warmup-init make adafactor choose its own learning rate, "
                "which contradicts --lr and --lr-scheduler; leave them out "
                "(--lr-scheduler inverse_sqrt decays alike)"
            )
        super().__init__(cfg, params)
