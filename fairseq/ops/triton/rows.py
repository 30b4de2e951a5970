"""Triton kernel over rows of logits: log-sum-exp, loss and gradient where the logits stand.

One program works on one row. It reads the row once for an online log-sum-exp (Milakov and
Gimelshein 2018, algorithm 3) and, where a gradient is wanted, once more to overwrite every logit
with its gradient. All arithmetic is fp32 whatever type the logits are stored in.

Shapes: R rows, V classes; s_v scale and b_v bias of a class; z_rv = s_v logits_rv + b_v.
"""

# mypy: disable-error-code=no-untyped-def
# (Triton evaluates the annotations of a kernel and knows none for pointers.)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Classes a program holds at once. With 32 warps that is 8 numbers a thread, so that the two
# reads of a row stay close enough in time for the second one to hit the cache.
MAX_BLOCK = 8192
CLASSES_PER_WARP = 256


@triton.jit
def _overwrite_row(
    logits, scale, bias, loss_grad, lse_grad, total_grad, row, wanted, keep, log_sum, classes, lane,
    KNOWN_LSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the gradient of one row in the place of its logits; see :func:`row_kernel`."""
    at_target = tl.where(keep, 1.0, 0.0)
    if KNOWN_LSE:
        at_target = 0.0 * at_target
        if loss_grad is not None:
            at_target = tl.where(keep, tl.load(loss_grad + row), 0.0)
    at_all = at_target
    if lse_grad is not None:
        at_all += tl.load(lse_grad + row)
    constant = 0.0
    if total_grad is not None:
        constant = tl.load(total_grad + row)
    for first in range(0, classes, BLOCK):
        inside = first + lane < classes
        z = tl.load(logits + first + lane, inside, 0.0).to(tl.float32)
        factor = 1.0
        if scale is not None:
            factor = tl.load(scale + first + lane, inside, 0.0)
            z *= factor
        if bias is not None:
            z += tl.load(bias + first + lane, inside, 0.0)
        gradient = at_all * tl.exp(z - log_sum) + constant
        gradient -= tl.where(first + lane == wanted, at_target, 0.0)
        tl.store(logits + first + lane, gradient * factor, inside)


@triton.jit
def row_kernel(
    logits,
    scale,
    bias,
    target,
    lse,
    loss,
    total,
    best,
    loss_grad,
    lse_grad,
    total_grad,
    classes,
    stride,
    ignore_index,
    GRADIENT: tl.constexpr,
    KNOWN_LSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Work on one row; pointers that are None cost nothing.

    ``GRADIENT`` overwrites the logits with
    ``s_v (g_lse p_v - g_loss [v = target] + g_total)``, where p is the softmax of z. Without
    upstream gradients that is the gradient of the loss alone.
    ``KNOWN_LSE`` reads the log-sum-exp instead of computing it.
    """
    # row times stride passes 2**31 for a batch of some thousand rows
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    wanted = tl.load(target + row)
    keep = wanted != ignore_index
    wanted = tl.where(keep, wanted, 0)
    lane = tl.arange(0, BLOCK)
    if KNOWN_LSE:
        log_sum = tl.load(lse + row)
    else:
        # read before the first pass: its reductions keep all warps from overwriting it too early
        picked = tl.load(logits + wanted).to(tl.float32)
        if scale is not None:
            picked *= tl.load(scale + wanted)
        if bias is not None:
            picked += tl.load(bias + wanted)
        top = -float("inf")
        weight = 0.0
        summed = 0.0
        place = tl.zeros((), tl.int32)
        for first in range(0, classes, BLOCK):
            inside = first + lane < classes
            z = tl.load(logits + first + lane, inside, 0.0).to(tl.float32)
            if scale is not None:
                z *= tl.load(scale + first + lane, inside, 0.0)
            if bias is not None:
                z += tl.load(bias + first + lane, inside, 0.0)
            if total is not None:
                summed += tl.sum(tl.where(inside, z, 0.0), 0)
            z = tl.where(inside, z, -float("inf"))
            block_top = tl.max(z, 0)
            if best is not None:
                block_place = first + tl.argmax(z, 0)
                # greater, not equal: of equal logits the first wins, as for torch.argmax
                place = tl.where((block_top > top) | (first == 0), block_place, place)
            new_top = tl.maximum(top, block_top)
            # -inf minus -inf is not a number: nothing has been seen that counts
            shift = tl.where(new_top == -float("inf"), 0.0, new_top)
            weight = weight * tl.exp(top - shift) + tl.sum(tl.exp(z - shift), 0)
            top = new_top
        log_sum = top + tl.log(weight)
        tl.store(lse + row, log_sum)
        if loss is not None:
            tl.store(loss + row, tl.where(keep, log_sum - picked, 0.0))
        if total is not None:
            tl.store(total + row, summed)
        if best is not None:
            tl.store(best + row, place.to(tl.int64))
    if GRADIENT:
        _overwrite_row(
            logits, scale, bias, loss_grad, lse_grad, total_grad, row, wanted, keep, log_sum,
            classes, lane, KNOWN_LSE, BLOCK,
        )  # fmt: skip


class Upstream(NamedTuple):
    """Gradients of an objective with respect to the results of the rows, (R,) fp32 each."""

    loss_R: Tensor | None = None
    lse_R: Tensor | None = None
    total_R: Tensor | None = None


def launch_shape(classes: int) -> tuple[int, int]:
    """Return (classes in a block, warps of a program) for rows of so many classes."""
    block = min(MAX_BLOCK, max(32, triton.next_power_of_2(classes)))
    return block, min(32, max(1, block // CLASSES_PER_WARP))


def rows(
    logits_RV: Tensor,
    target_R: Tensor,
    lse_R: Tensor,
    loss_R: Tensor | None = None,
    total_R: Tensor | None = None,
    best_R: Tensor | None = None,
    *,
    scale_V: Tensor | None = None,
    bias_V: Tensor | None = None,
    ignore_index: int = -100,
    gradient: bool = False,
    upstream: Upstream | None = None,
) -> None:
    """Fill in the results of each row, and overwrite the logits with their gradient if wanted.

    Args:
        logits_RV: fp32, bf16 or fp16; rows may lie apart, classes may not.
        target_R: int64.
        lse_R: fp32; written, or read where ``upstream`` is given.
        loss_R: fp32, written: ``lse - z[target]``, 0 where ``ignore_index`` stands.
        total_R: fp32, written: the sum of z over the classes.
        best_R: int64, written: the class with the largest z.
        scale_V: fp32 factors s.
        bias_V: fp32 summands b.
        ignore_index: target without loss and gradient.
        gradient: overwrite the logits with the gradient of the sum of the losses.
        upstream: overwrite them with the gradient for these upstream gradients instead.
    """
    (count, classes), known = logits_RV.shape, upstream is not None
    assert logits_RV.stride(1) == 1 or classes == 1, "classes of a row lie side by side"
    if not count:
        return
    block, warps = launch_shape(classes)
    vectors: list[Any] = [scale_V, bias_V, target_R, lse_R, loss_R, total_R, best_R]
    vectors += [t if t is None else t.contiguous() for t in upstream or Upstream()]
    assert all(t is None or t.is_contiguous() for t in vectors)
    # -1 changes no device: on a CPU the kernel is interpreted
    with torch.cuda.device(logits_RV.device.index if logits_RV.is_cuda else -1):
        row_kernel[(count,)](
            logits_RV,
            *vectors,
            classes,
            logits_RV.stride(0),
            ignore_index,
            GRADIENT=gradient or known,
            KNOWN_LSE=known,
            BLOCK=block,
            num_warps=warps,
        )
