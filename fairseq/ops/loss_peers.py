"""Optional ways to compute the loss primitive: our Triton kernel, and those of other projects.

They are imported on use, and an error names what is missing. The others' ways are there to check
and to measure against; they know per-position losses, and everything else is derived from those.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.lazy import require_library

OPTIONAL = ("triton", "torch", "cce", "liger")
Results = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
Losses = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


def optional_backend(name: str, block_rows: int) -> Callable[..., Results]:
    """Return the function of a backend of ``OPTIONAL``.

    It takes hidden_NC, weight_VC, bias_V, target_N, ignore_index, want_argmax and want_sum, and
    returns loss_N, lse_N, argmax_N and sum_N.

    Args:
        name: the backend.
        block_rows: rows of logits that may exist at once (our kernel; others decide themselves).

    Raises:
        ConfigError: if the package it needs is missing.
    """
    if name == "triton":
        require_library("triton", "the loss backend 'triton'")
        return functools.partial(_triton, block_rows)
    return functools.partial(_derived, name, _LOSSES[name]())


@functools.cache
def triton_serves(device: torch.device) -> bool:
    """Return whether our kernel can run there: Triton, and a GPU with units for bf16."""
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _triton(
    block_rows: int, hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, *rest: Any
) -> Results:
    from fairseq.ops.triton.linear_cross_entropy import LinearCrossEntropyFunction

    require_kernel(hidden_NC)
    return LinearCrossEntropyFunction.apply(hidden_NC, weight_VC, bias_V, None, *rest, block_rows)


def require_kernel(hidden_NC: Tensor) -> None:
    """Raise ``ConfigError`` unless our kernels can run where these features are."""
    require_library("triton", "the loss backend 'triton'")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not hidden_NC.is_cuda and not interpreted:
        raise ConfigError(
            f"the loss backend 'triton' needs a CUDA GPU, but the tensors are on "
            f"{hidden_NC.device}: choose auto, chunked or reference"
        )
    if hidden_NC.dtype == torch.float64:
        raise ConfigError("the loss backend 'triton' sums in fp32: for fp64 choose chunked")


def _derived(
    name: str,
    losses: Losses,
    hidden_NC: Tensor,
    weight_VC: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    ignore_index: int,
    want_argmax: bool,
    want_sum: bool,
) -> Results:
    """Return the results of the primitive, given losses of other projects."""
    if want_argmax:
        raise ConfigError(
            f"the loss backend '{name}' does not tell the likeliest class: choose auto"
        )
    keep_N = target_N != ignore_index
    some_N = target_N.where(keep_N, 0)
    bias_V = None if bias_V is None else bias_V.to(hidden_NC.dtype)
    raw_N = losses(hidden_NC, weight_VC, bias_V, some_N)
    wide = raw_N.dtype if raw_N.dtype == torch.float64 else torch.float32
    raw_N = raw_N.to(wide)
    # loss plus the logit of the target is the log-sum-exp, which others do not return
    picked_N = torch.linalg.vecdot(hidden_NC.to(wide), F.embedding(some_N, weight_VC).to(wide))
    sum_N = hidden_NC.to(wide) @ weight_VC.sum(0, dtype=wide) if want_sum else None
    if bias_V is not None:
        picked_N = picked_N + bias_V[some_N]
        sum_N = None if sum_N is None else sum_N + bias_V.sum(dtype=wide)
    return raw_N.where(keep_N, 0.0), raw_N + picked_N, None, sum_N


def _of_torch() -> Losses:
    if not hasattr(F, "linear_cross_entropy"):
        raise ConfigError(
            f"the loss backend 'torch' needs torch 2.13 or newer, this is {torch.__version__}"
        )

    def losses(
        hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> Tensor:
        return F.linear_cross_entropy(
            hidden_NC,
            weight_VC,
            target_N,
            linear_bias=bias_V,
            reduction="none",
            options=torch.nn.LinearCrossEntropyOptions(),
        )

    return losses


def _of_cce() -> Losses:
    cce = require_library("cut_cross_entropy", "the loss backend 'cce'", "cut-cross-entropy")

    def losses(
        hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> Tensor:
        # the variant that drops no gradient of a rare class
        return cce.linear_cross_entropy(
            hidden_NC,
            weight_VC,
            target_N,
            bias=bias_V,
            reduction="none",
            impl="cce_kahan_full_c",
        )

    return losses


def _of_liger() -> Losses:
    module = "liger_kernel.transformers.fused_linear_cross_entropy"
    liger = require_library(module, "the loss backend 'liger'", "liger-kernel")
    compute = liger.LigerFusedLinearCrossEntropyLoss(reduction="none", accum_dtype=torch.float32)

    def losses(
        hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> Tensor:
        return compute(weight_VC, hidden_NC, target_N, bias_V)

    return losses


_LOSSES: dict[str, Callable[[], Losses]] = {
    "torch": _of_torch,
    "cce": _of_cce,
    "liger": _of_liger,
}
