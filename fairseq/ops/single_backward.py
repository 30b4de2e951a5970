"""A guard for backward passes whose result cannot be differentiated again."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq.errors import UnsupportedError
from fairseq.protocols import Context

Backward = Callable[..., tuple[Tensor | None, ...]]


def single_backward(backward: Backward) -> Backward:
    """Decorate the ``backward`` of an autograd function that may be differentiated once only.

    torch's own ``once_differentiable`` notices a second derivative only if the upstream gradient
    needs one, which that of ``loss.backward(create_graph=True)`` does not: the second derivative
    then lacks this function's share, without an error.

    Raises:
        UnsupportedError: when the backward pass itself is recorded (``create_graph=True``).
    """
    checked = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Context, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "this loss forms its gradients in the forward pass and cannot be differentiated "
                "twice (create_graph=True); choose --loss-backend reference"
            )
        return checked(ctx, *upstream)

    return run
