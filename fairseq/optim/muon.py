r"""Muon for the matrices of hidden layers, Adam (of ``adam``) for everything else.

The rule for a matrix of R rows and C columns with gradient G and momentum buffer M::

    M <- mu * M + (1 - mu) * G
    U  = (1 - mu) * G + mu * M
    p <- p - lr * wd * p
    p <- p - lr * s * orthogonal(U)

``orthogonal`` sends the singular values of U to about 1, see :func:`orthogonalized`. The factor s
is ``0.2 * sqrt(max(R, C))`` ("match_rms_adamw": updates as large as Adam's, so that one rate fits
all parameters) or ``sqrt(max(1, R / C))`` ("original").

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the factor
0.2 is that of Liu et al. 2025 ("Muon is Scalable for LLM Training"), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fairseq.config.schema import DECAY, option
from fairseq.errors import ConfigError
from fairseq.optim import register_optimizer
from fairseq.optim.adam import Adam, FairseqAdam, FairseqAdamConfig
from fairseq.optim.base import Group, Params, State
from fairseq.optim.fp32_rule import Item, PerTensorOptimizer, zeros_like
from fairseq.optim.param_groups import fitting

# Jordan's quintic: steepest slope at 0, so that small singular values rise within a few steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7  # keeps the division by the norm of a zero gradient finite
Adjustment = Literal["match_rms_adamw", "original"]


@dataclass
class FairseqMuonConfig(FairseqAdamConfig):
    """Settings of ``--optimizer muon``; those of Adam are for the other parameters."""

    muon_params: str = option("layers.", "matrices with this in their names are Muon's", new=True)
    muon_momentum: float = option(
        0.95, "decay rate of the running mean of gradients", new=True, **DECAY
    )
    muon_steps: int = option(
        5, "steps of the Newton-Schulz iteration", new=True, minimum=1, maximum=99
    )
    muon_adjust_lr: Adjustment = option(
        "match_rms_adamw", "factor of the rate by shape; original: sqrt(max(1, R/C))", new=True
    )
    muon_impl: Literal["auto", "torch", "reference"] = option(
        "auto", "which code computes; auto: torch's own where it has one", new=True
    )


def orthogonalized(update_RC: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return ``f(f(...f(X)))``, f(X) = aX + (bA + cA^2)X, A = X X^T, for X = update / its norm.

    The quintic moves all singular values to about 1 (0.7 to 1.2) within five steps. A matrix of
    more rows than columns is transposed, which makes A small.

    Args:
        update_RC: any matrix.
        steps: how often f is applied.
        dtype: what is computed in, and returned.
    """
    a, b, c = COEFFICIENTS
    tall = update_RC.size(0) > update_RC.size(1)
    x = update_RC.to(dtype)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def shape_factor(kind: str, rows: int, columns: int) -> float:
    """Return the factor s of the module's rule."""
    if kind == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def torch_kernel() -> Callable[..., None] | None:
    """Return the function under ``torch.optim.Muon``, None where torch has none there."""
    try:
        from torch.optim._muon import muon
    except ImportError:
        return None
    return muon


class Muon(Adam):
    """The rule of this module on groups with ``muon=True``, Adam's on the others.

    State of a matrix: ``momentum_buffer`` (fp32, its shape).

    Args:
        params: torch parameter groups, each with the key ``"muon"``.
        momentum: mu.
        ns_steps: steps of the iteration.
        adjust_lr: see :func:`shape_factor`.
        kernel: what computes, :meth:`rule` if None.
        dtype: what :meth:`rule` orthogonalizes in.
        **adam: as for :class:`~fairseq.optim.adam.Adam`.
    """

    supports_flat_params = False

    def __init__(
        self,
        params: Params,
        momentum: float = 0.95,
        ns_steps: int = 5,
        adjust_lr: str = "match_rms_adamw",
        kernel: Callable[..., None] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        **adam: Any,
    ) -> None:
        muon_defaults = {
            "muon": False,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "adjust_lr": adjust_lr,
        }
        super().__init__(params, **adam, more=muon_defaults)
        self.muon_kernel, self.dtype = kernel, dtype
        self.skips_on_device = False  # matrices have another rule

    def init_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        if not group["muon"]:
            return super().init_state(param, group)
        return {"momentum_buffer": zeros_like(param)}

    def update(self, items: list[Item], group: Group, scale: float | Tensor) -> None:
        """Hand matrices to :meth:`rule` one by one, everything else to Adam."""
        # Adam's update would hand matrices to its fused kernel: past it, to the frame
        parent = PerTensorOptimizer if group["muon"] else Adam
        parent.update(self, items, group, scale)

    def rule(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        if not group["muon"]:
            super().rule(param, grad, state, group)
            return
        lr, momentum, buffer = group["lr"], group["momentum"], state["momentum_buffer"]
        if self.muon_kernel is not None:
            self.muon_kernel(
                [param],
                [grad],
                [buffer],
                lr=lr,
                weight_decay=group["weight_decay"],
                momentum=momentum,
                nesterov=True,
                ns_coefficients=COEFFICIENTS,
                ns_steps=group["ns_steps"],
                eps=EPS,
                adjust_lr_fn=group["adjust_lr"],
                has_complex=False,
            )
            return
        # a mean, not a sum of gradients: the orthogonal matrix is the same, and eps keeps its
        # meaning
        buffer.lerp_(grad, 1 - momentum)
        direction = orthogonalized(grad.lerp(buffer, momentum), group["ns_steps"], self.dtype)
        param.mul_(1 - lr * group["weight_decay"])
        param.add_(direction, alpha=-lr * shape_factor(group["adjust_lr"], *param.shape))


@register_optimizer("muon", dataclass=FairseqMuonConfig)
class FairseqMuon(FairseqAdam):
    """``--optimizer muon``, over groups with the key ``"muon"`` that ``build_optimizer`` makes.

    Raises:
        ConfigError: if torch's implementation is not there.
    """

    splits_by_name = True

    def _make(self, params: list[Any]) -> Muon:
        cfg = self.cfg
        kernel = None if cfg.muon_impl == "reference" else torch_kernel()
        if cfg.muon_impl == "torch" and kernel is None:
            raise ConfigError("--muon-impl torch: this torch has no Muon; use reference")
        return Muon(
            params,
            momentum=cfg.muon_momentum,
            ns_steps=cfg.muon_steps,
            adjust_lr=cfg.muon_adjust_lr,
            kernel=kernel,
            impl=self._implementation(params),
            **self.optimizer_config,
        )

    @staticmethod
    def settings_by_name(cfg: Any, named: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """Return ``muon``: is it a matrix (two dimensions) whose name holds ``--muon-params``?

        Embeddings and heads lie outside the layers, and a step of equal size in all directions
        makes no sense for their rows, of which most have no gradient.
        """
        matrices = [name for name, tensor in named.items() if tensor.dim() == 2]
        chosen = set(fitting("--muon-params", cfg.muon_params, matrices))
        return {name: {"muon": name in chosen} for name in named}
