r"""Adam with decoupled weight decay, on torch's fused kernels.

The rule, with gradient g and step t = 1, 2, ...::

    p <- p - lr * wd * p
    m <- b1 * m + (1 - b1) * g
    v <- b2 * v + (1 - b2) * g^2
    p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

so eps joins sqrt(v) before the bias correction of v. The kernels of torch and apex add their eps
to the corrected root; multiply numerator and denominator by c = 1 / sqrt(1 - b2^t)::

    lr * sqrt(1 - b2^t) * m / (sqrt(v) + eps) = lr * m / (sqrt(v) * c + eps * c)

and the same rule comes out of them when they are given eps * c, a number per group and step.

Source: Kingma and Ba 2015, section 2 (the order of eps is that of its last paragraph);
Loshchilov and Hutter 2019 (decoupled weight decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fairseq.config.schema import (
    DECAY,
    II,
    FairseqDataclass,
    option,
)
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.optim import register_optimizer
from fairseq.optim.base import ConfiguredOptimizer, Group, Params, State, scale_
from fairseq.optim.fp32_rule import Item, PerTensorOptimizer, zeros_like
from fairseq.protocols import StateDict

FUSED_DEVICES = ("cpu", "cuda", "mps")


@dataclass
class FairseqAdamConfig(FairseqDataclass):
    """Settings of ``--optimizer adam``."""

    adam_betas: Any = option("(0.9, 0.999)", "decay rates of the two running means", **DECAY)
    adam_eps: float = option(1e-8, "added to the root of the second running mean", minimum=0)
    weight_decay: float = option(0.0, "decoupled weight decay", minimum=0)
    weight_decay_mode: Literal["all", "matrices"] = option(
        "all", "what decays; matrices: not biases, norms and other vectors", new=True
    )
    adam_impl: Literal["auto", "fused", "reference", "apex"] = option(
        "auto", "which code computes; auto: torch's fused kernel where the device has one", new=True
    )
    use_old_adam: bool = option(False, "same as --adam-impl reference")
    fp16_adam_stats: bool = option(False, "refused: running means are kept in fp32")
    lr: list[float] = II("optimization.lr")


class Adam(PerTensorOptimizer):
    """The rule of this module as a ``torch.optim.Optimizer``.

    State of a parameter: ``step`` (int), ``exp_avg`` and ``exp_avg_sq`` (fp32, its shape).

    Args:
        params: tensors or parameter groups.
        lr: learning rate.
        betas: decay rates (b1, b2).
        eps: see the module.
        weight_decay: see the module.
        impl: ``"fused"``, ``"reference"`` or ``"apex"``.
        more: further settings of groups, with their defaults.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        impl: str = "reference",
        more: Mapping[str, object] | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "amsgrad": False, **(more or {})})
        self.kernel: Callable[..., None] | None = None
        if impl != "reference":
            self.kernel = apex_kernel() if impl == "apex" else fused_kernel
        self.skips_on_device = impl == "fused"
        self.found_inf: Tensor | None = None  # torch's name for what makes the kernel do nothing

    def init_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        """Return zero running means, laid out in memory like ``param``."""
        return {
            "step": 0,
            "exp_avg": zeros_like(param),
            "exp_avg_sq": zeros_like(param),
        }

    def rule(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = square.sqrt().add_(group["eps"])  # before the correction: see the module
        correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        # decay first: it must shrink the old weight, not the updated one
        param.add_(param, alpha=-group["lr"] * group["weight_decay"])
        param.addcdiv_(mean, root, value=-group["lr"] * correction)

    def step(self, closure: Callable[[], float] | None = None, scale: float | Tensor = 1.0) -> Any:
        """Update every parameter that has a gradient; what would skip it holds for this once."""
        try:
            return super().step(closure, scale)
        finally:
            self.found_inf = None

    def update(self, items: list[Item], group: Group, scale: float | Tensor) -> None:
        """Hand ``items`` to the kernel, together where they share device and step."""
        if self.kernel is None:
            super().update(items, group, scale)
            return
        # parameters that joined later (or had no gradient at times) count their own steps
        buckets: dict[tuple[torch.device, int], list[Item]] = {}
        for param, grad, state in items:
            state["step"] += 1
            # fused kernels walk the memory, not the indices
            item = (param, _laid_out_like(param, grad), state)
            buckets.setdefault((param.device, state["step"]), []).append(item)
        more = {} if self.found_inf is None else {"found_inf": self.found_inf}
        for (_, step), bucket in buckets.items():
            self.kernel(bucket, step, group, scale, **more)


def _laid_out_like(param: Tensor, other: Tensor) -> Tensor:
    """Return ``other`` with the strides of ``param``, copied only if they differ."""
    if other.stride() == param.stride():
        return other
    return torch.empty_like(param, dtype=other.dtype).copy_(other)


def _columns(items: list[Item]) -> tuple[list[Tensor], ...]:
    """Return the lists (parameters, gradients, first means, second means) of ``items``."""
    params, grads, states = zip(*items, strict=True)
    means = [state["exp_avg"] for state in states]
    return list(params), list(grads), means, [state["exp_avg_sq"] for state in states]


def _corrected_eps(group: Group, step: int) -> float:
    """Return the eps that makes a kernel which adds it after bias correction follow our rule."""
    return group["eps"] / math.sqrt(1 - group["betas"][1] ** step)


def fused_kernel(
    items: list[Item],
    step: int,
    group: Group,
    scale: float | Tensor,
    found_inf: Tensor | None = None,
) -> None:
    """Apply update ``step`` to ``items`` by torch's fused AdamW.

    Args:
        items: parameters of one device, in fp32 or fp64.
        step: 1 for the first update.
        group: the hyperparameters.
        scale: the gradients are divided by it (in place) on the way.
        found_inf: 0-dim, fp32; nothing changes (but gradients, if there is a scale) where it is 1.
    """
    params, grads, means, squares = _columns(items)
    device = params[0].device
    if not isinstance(scale, Tensor) and scale != 1.0:
        scale = torch.full((), scale, dtype=torch.float32, device=device)
    # the kernel counts up its own counters: a fresh view of one filled vector per parameter
    counters = list(torch.full((len(params),), float(step - 1), device=device).unbind())
    adamw(
        params,
        grads,
        means,
        squares,
        [],
        counters,
        fused=True,
        grad_scale=scale if isinstance(scale, Tensor) else None,
        found_inf=found_inf,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=_corrected_eps(group, step),
        maximize=False,
    )


def apex_kernel() -> Callable[..., None]:
    """Return the counterpart of :func:`fused_kernel` on NVIDIA apex.

    Raises:
        ConfigError: if apex with its CUDA extensions is not installed.
    """
    try:
        import amp_C
        from apex.multi_tensor_apply import multi_tensor_applier
    except ImportError as error:
        raise ConfigError(
            "--adam-impl apex needs NVIDIA apex built with its CUDA extensions (the package of "
            "that name on PyPI is another one). --adam-impl fused needs nothing and is as fast."
        ) from error

    def kernel(items: list[Item], step: int, group: Group, scale: float | Tensor) -> None:
        params, grads, means, squares = _columns(items)
        if isinstance(scale, Tensor) or scale != 1.0:
            scale_(grads, 1.0 / scale)
        decoupled = bias_correction = 1
        multi_tensor_applier(
            amp_C.multi_tensor_adam,
            torch.zeros(1, dtype=torch.int, device=params[0].device),
            # in the order that the kernel of apex expects
            [grads, params, means, squares],
            group["lr"],
            *group["betas"],
            _corrected_eps(group, step),
            step,
            decoupled,
            bias_correction,
            group["weight_decay"],
        )

    return kernel


def _without_decay_on_vectors(params: list[Tensor] | list[Group]) -> list[dict[str, Any]]:
    """Split parameters (or groups) so that those of fewer than two dimensions do not decay."""
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    split = []
    for group in groups:
        matrices = [p for p in group["params"] if p.dim() > 1]
        vectors = [p for p in group["params"] if p.dim() <= 1]
        split.append({**group, "params": matrices})
        split.append({"weight_decay": 0.0, **group, "params": vectors})  # --param-groups wins
    return [group for group in split if group["params"]]


@register_optimizer("adam", dataclass=FairseqAdamConfig)
class FairseqAdam(ConfiguredOptimizer):
    """``--optimizer adam``.

    Raises:
        ConfigError: if the chosen implementation is not available for these parameters.
        UnsupportedError: for ``--fp16-adam-stats``.
    """

    arguments = {"betas": "adam_betas", "eps": "adam_eps", "weight_decay": "weight_decay"}
    pairs = ("betas",)

    def __init__(self, cfg: FairseqAdamConfig, params: Params) -> None:
        items: list[Any] = list(params)
        if getattr(cfg, "fp16_adam_stats", False):
            raise UnsupportedError(
                "--fp16-adam-stats is not supported: Adam's running means stay in fp32. Leave it "
                "out; --memory-efficient-fp16 or sharding saves more memory."
            )
        if getattr(cfg, "weight_decay_mode", "all") == "matrices":
            items = _without_decay_on_vectors(items)
        super().__init__(cfg, items)

    def _make(self, params: list[Any]) -> Adam:
        return Adam(params, impl=self._implementation(params), **self.optimizer_config)

    def _implementation(self, params: list[Any]) -> str:
        chosen = getattr(self.cfg, "adam_impl", "auto")
        if getattr(self.cfg, "use_old_adam", False):
            chosen = "reference"
        tensors = [p for g in params for p in (g["params"] if isinstance(g, dict) else [g])]
        devices = {tensor.device.type for tensor in tensors}
        if chosen == "auto":
            return "fused" if devices <= set(FUSED_DEVICES) else "reference"
        if chosen == "fused" and not devices <= set(FUSED_DEVICES):
            raise ConfigError(
                f"--adam-impl fused does not run on {', '.join(sorted(devices))}; use reference"
            )
        if chosen == "apex" and devices != {"cuda"}:
            raise ConfigError("--adam-impl apex runs on CUDA only; use fused")
        return chosen

    def load_state_dict(
        self, state_dict: StateDict, optimizer_overrides: Mapping[str, object] | None = None
    ) -> None:
        """Load a state of ours, of the original, of torch's AdamW or of apex (fp32 means)."""
        super().load_state_dict(state_dict, optimizer_overrides)
        for group in self.param_groups:
            group_step = group.pop("step", 0)  # apex counts per group
            for param in group["params"]:
                state = self.optimizer.state.get(param)
                if state and "exp_avg" in state:
                    state["step"] = int(state.get("step", group_step))
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = _laid_out_like(param, state[name])
