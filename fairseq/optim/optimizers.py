"""The simpler optimizers: sgd, adagrad and adadelta of torch, nag and adamax of our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.config.schema import (
    DECAY,
    II,
    SHARE,
    FairseqDataclass,
    option,
)
from fairseq.optim import register_optimizer
from fairseq.optim.base import ConfiguredOptimizer, Group, Params, State
from fairseq.optim.fp32_rule import PerTensorOptimizer, zeros_like


@dataclass
class SGDConfig(FairseqDataclass):
    """Settings of ``--optimizer sgd``."""

    momentum: float = option(0.0, "momentum factor", **DECAY)
    weight_decay: float = option(
        0.0, "weight decay, added to the gradient", argparse_alias="--wd", minimum=0
    )
    lr: list[float] = II("optimization.lr")


@register_optimizer("sgd", dataclass=SGDConfig)
class SGD(ConfiguredOptimizer):
    """``--optimizer sgd``: torch's stochastic gradient descent."""

    torch_class = torch.optim.SGD
    arguments = {"momentum": "momentum", "weight_decay": "weight_decay"}
    supports_flat_params = True


@dataclass
class AdagradConfig(FairseqDataclass):
    """Settings of ``--optimizer adagrad``."""

    weight_decay: float = option(
        0.0, "weight decay, added to the gradient", argparse_alias="--wd", minimum=0
    )
    lr: list[float] = II("optimization.lr")


@register_optimizer("adagrad", dataclass=AdagradConfig)
class Adagrad(ConfiguredOptimizer):
    """``--optimizer adagrad``: torch's Adagrad."""

    torch_class = torch.optim.Adagrad
    supports_flat_params = True


@dataclass
class AdadeltaConfig(FairseqDataclass):
    """Settings of ``--optimizer adadelta``."""

    adadelta_rho: float = option(0.9, "decay rate of the running means", **SHARE)
    adadelta_eps: float = option(1e-6, "added to the running means", minimum=0)
    weight_decay: float = option(
        0.0, "weight decay, added to the gradient", argparse_alias="--wd", minimum=0
    )
    anneal_eps: bool = option(False, "a flag that nothing reads", inert=True)
    lr: list[float] = II("optimization.lr")


@register_optimizer("adadelta", dataclass=AdadeltaConfig)
class Adadelta(ConfiguredOptimizer):
    """``--optimizer adadelta``: torch's Adadelta."""

    torch_class = torch.optim.Adadelta
    arguments = {"rho": "adadelta_rho", "eps": "adadelta_eps", "weight_decay": "weight_decay"}
    supports_flat_params = True


@dataclass
class FairseqNAGConfig(FairseqDataclass):
    """Settings of ``--optimizer nag``."""

    momentum: float = option(0.99, "momentum factor", **DECAY)
    weight_decay: float = option(0.0, "decoupled weight decay", minimum=0)
    lr: list[float] = II("optimization.lr")


class NAG(PerTensorOptimizer):
    """Nesterov's accelerated gradient with the learning rate inside the velocity.

    With the previous rate lr'::

        u <- momentum * (lr / lr') * u - lr * g
        p <- (1 - lr * wd) * p + momentum * u - lr * g

    State of a parameter: ``momentum_buffer`` (u). Source: Sutskever et al. 2013, section 2, and
    Bengio et al. 2013, section 3.5, with u rescaled when the learning rate changes.
    """

    def __init__(
        self, params: Params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "lr_old": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def init_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        return {"momentum_buffer": zeros_like(param)}

    def rule(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        lr, momentum = group["lr"], group["momentum"]
        # the velocity holds the old rate: rescale it; after a rate of 0 there is none to divide by
        change = lr / group["lr_old"] if group["lr_old"] > 0 else lr
        velocity = state["momentum_buffer"].mul_(momentum * change).add_(grad, alpha=-lr)
        param.mul_(1 - lr * group["weight_decay"])
        param.add_(velocity, alpha=momentum).add_(grad, alpha=-lr)

    def step(self, closure: Callable[[], float] | None = None, scale: float | Tensor = 1.0) -> Any:
        loss = super().step(closure, scale)
        for group in self.param_groups:
            group["lr_old"] = group["lr"]
        return loss


@register_optimizer("nag", dataclass=FairseqNAGConfig)
class FairseqNAG(ConfiguredOptimizer):
    """``--optimizer nag``: Nesterov's accelerated gradient."""

    torch_class = NAG
    arguments = {"momentum": "momentum", "weight_decay": "weight_decay"}


@dataclass
class FairseqAdamaxConfig(FairseqDataclass):
    """Settings of ``--optimizer adamax``."""

    adamax_betas: Any = option("(0.9, 0.999)", "decay rates of mean and maximum", **DECAY)
    adamax_eps: float = option(1e-8, "added to the running maximum", minimum=0)
    weight_decay: float = option(0.0, "decoupled weight decay", argparse_alias="--wd", minimum=0)
    no_bias_correction: bool = option(False, "do not correct the mean for its start at zero")
    lr: list[float] = II("optimization.lr")


class Adamax(PerTensorOptimizer):
    """Adam with the maximum norm, and decoupled weight decay::

        p <- p - lr * wd * p
        m <- b1 * m + (1 - b1) * g
        u <- max(b2 * u, |g|)
        p <- p - lr / (1 - b1^t) * m / (u + eps)

    State of a parameter: ``step`` (int), ``exp_avg`` (m), ``exp_inf`` (u).
    Source: Kingma and Ba 2015, algorithm 2.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
        }
        super().__init__(params, defaults)

    def init_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        return {
            "step": 0,
            "exp_avg": zeros_like(param),
            "exp_inf": zeros_like(param),
        }

    def rule(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, largest = state["exp_avg"], state["exp_inf"]
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        torch.maximum(largest.mul_(beta2), grad.abs(), out=largest)
        correction = 1 - beta1 ** state["step"] if group["bias_correction"] else 1.0
        param.add_(param, alpha=-group["lr"] * group["weight_decay"])
        param.addcdiv_(mean, largest + group["eps"], value=-group["lr"] / correction)


@register_optimizer("adamax", dataclass=FairseqAdamaxConfig)
class FairseqAdamax(ConfiguredOptimizer):
    """``--optimizer adamax``: Adam with the maximum norm."""

    torch_class = Adamax
    arguments = {"betas": "adamax_betas", "eps": "adamax_eps", "weight_decay": "weight_decay"}
    pairs = ("betas",)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {**super().optimizer_config, "bias_correction": not self.cfg.no_bias_correction}
