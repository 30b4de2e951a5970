"""Dropout: PyTorch's on accelerators, one that draws 16 bits an element on the CPU.

On a CPU most of dropout's time goes into its random numbers: PyTorch draws one per element. Here
one 64-bit number decides four elements, which is several times faster (benchmarks/). The
probability is rounded to a multiple of 2^-16; kept elements are scaled by the rounded value, so
the expectation is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.ops.transforms import is_transformed
from fairseq.protocols import Context

LEVELS = 1 << 16
BACKENDS = ("reference", "packed")


def dropout(x: Tensor, p: float, training: bool = True, backend: str = "auto") -> Tensor:
    """Zero elements with probability ``p`` and scale the others by ``1 / (1 - p)``.

    Args:
        x: any shape, floating.
        p: in [0, 1]; 0 returns ``x`` itself.
        training: outside training ``x`` comes back.
        backend: ``reference`` (PyTorch's), ``packed`` (16 bits an element, any device), or
            ``auto``: packed on the CPU, outside of ``torch.func`` and ``torch.compile``, which
            draws numbers its own way.

    Source: Srivastava et al. 2014, section 4.
    """
    if not training or p == 0.0:
        return x
    dropped = round(p * LEVELS)
    if backend == "auto":
        plain = not is_transformed() and not torch.compiler.is_compiling()
        backend = "packed" if x.device.type == "cpu" and plain else "reference"
    if backend != "packed" or not 0 < dropped < LEVELS:
        return F.dropout(x, p, training)
    return _Packed.apply(x, dropped)


class _DropoutContext(Context, Protocol):
    dropped: int


class _Packed(torch.autograd.Function):
    """Keeps the random bits for the backward pass: two bytes an element.

    The mask is made in the type of ``x``: bool times float would convert through a copy.
    """

    @staticmethod
    def forward(ctx: _DropoutContext, x: Tensor, dropped: int) -> Tensor:
        """Apply a fresh mask."""
        bits = draw_bits(x.shape, x.device)
        ctx.save_for_backward(bits)
        ctx.dropped = dropped
        return _kept(x, bits, dropped)

    @staticmethod
    def backward(ctx: _DropoutContext, *gradients: Tensor) -> tuple[Tensor, None]:
        """Apply the same mask to the gradient."""
        (bits,) = ctx.saved_tensors
        return _kept(gradients[0], bits, ctx.dropped), None


def draw_bits(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return uniform int16 numbers from torch's global generator, one 64-bit draw for four."""
    n = math.prod(shape)
    words = torch.empty((n + 3) // 4, dtype=torch.int64, device=device)
    # None stands for the end of the range: 2**63 itself is no int64
    return words.random_(-(2**63), None).view(torch.int16)[:n].view(shape)


def _kept(x: Tensor, bits: Tensor, dropped: int) -> Tensor:
    """Return ``x``, scaled, where the bits (int16, uniform) are not among the lowest levels."""
    keep = torch.empty_like(x, requires_grad=False)
    # int16 counts from -2**15, so its lowest levels are the most negative
    torch.ge(bits, dropped - LEVELS // 2, out=keep)
    return keep.mul_(x).mul_(LEVELS / (LEVELS - dropped))
