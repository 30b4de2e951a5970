"""The gradient norm and its clipping, in fp32 whatever the type of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm of all ``gradients`` together, a 0-dim fp32 (or fp64) tensor.

    Half-precision gradients are squared and summed in fp32, so that their norm cannot overflow
    before it leaves the range of fp32.
    """
    wide = [g for g in gradients if g.dtype in (torch.float32, torch.float64)]
    narrow = [g for g in gradients if g.dtype not in (torch.float32, torch.float64)]
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in narrow]
    if wide:
        norms.append(torch.nn.utils.get_total_norm(wide))
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_grad_norm_(
    params: Tensor | Iterable[Tensor],
    max_norm: float,
    aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scale gradients in place by ``min(1, max_norm / (norm + 1e-6))`` and return their norm.

    Args:
        params: parameters whose ``grad`` counts; those without one are skipped.
        max_norm: the bound; 0 or less measures without clipping.
        aggregate_norm_fn: turns the norm of this process into that of all of them.

    Returns:
        the norm before clipping, a 0-dim tensor on the device of the gradients.
    """
    params = [params] if isinstance(params, Tensor) else list(params)
    gradients = [p.grad for p in params if p.grad is not None]
    if gradients:
        norm = total_norm(gradients)
    else:
        norm = torch.zeros((), device=params[0].device if params else None)
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm)
    if max_norm > 0 and gradients:
        scale_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def scale_(gradients: list[Tensor], factor: float | Tensor) -> None:
    """Multiply every tensor of ``gradients`` in place by a number or a 0-dim tensor."""
    if gradients:
        if isinstance(factor, Tensor):
            factor = factor.to(gradients[0].device)
        torch._foreach_mul_(gradients, factor)
