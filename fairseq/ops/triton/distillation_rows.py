"""Triton kernel over pairs of rows of logits, a student's and a teacher's.

With student logits s, teacher logits t (each with a bias added, if there is one), temperature T,
q = softmax(s / T) and p = softmax(t / T): the divergence ``T^2 KL(p || q)``, the likelihood
``-log softmax(s)[target]``, and the gradient of ``alpha_kl`` and ``alpha_lm`` times these,
``alpha_kl T (q - p) + alpha_lm (softmax(s) - onehot)``, written where the student's logits stood.
A pair is read twice; all arithmetic is fp32.

Source: Hinton et al. 2015, section 2. Shapes: R rows, V classes.
"""

# mypy: disable-error-code=no-untyped-def
# (Triton evaluates the annotations of a kernel and knows none for pointers.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq.ops.triton.rows import launch_shape


@triton.jit
def _online(top, weight, z):
    """Return the maximum and the sum of exponentials below it, with the numbers z added."""
    new_top = tl.maximum(top, tl.max(z, 0))
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    return new_top, weight * tl.exp(top - shift) + tl.sum(tl.exp(z - shift), 0)


@triton.jit
def _logits(row, bias, place, inside):
    """Return logits of a row in fp32, -inf outside of it."""
    z = tl.load(row + place, inside, -float("inf")).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + place, inside, 0.0)
    return z


@triton.jit
def distillation_kernel(
    student,
    teacher,
    student_bias,
    teacher_bias,
    target,
    divergence,
    likelihood,
    classes,
    student_stride,
    teacher_stride,
    ignore_index,
    temperature,
    alpha_kl,
    alpha_lm,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Work on one pair of rows."""
    # row times stride passes 2**31 for a batch of some thousand rows
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    wanted = tl.load(target + row)
    keep = wanted != ignore_index
    wanted = tl.where(keep, wanted, 0)
    # before the first pass: its reductions keep all warps from overwriting it too early
    picked = _logits(student, student_bias, wanted, wanted >= 0)
    lane = tl.arange(0, BLOCK)
    top = -float("inf")  # of s
    plain = 0.0
    top_q = -float("inf")  # of s / T
    weight_q = 0.0
    top_p = -float("inf")  # of t / T
    weight_p = 0.0
    for first in range(0, classes, BLOCK):
        inside = first + lane < classes
        s = _logits(student, student_bias, first + lane, inside)
        t = _logits(teacher, teacher_bias, first + lane, inside)
        top, plain = _online(top, plain, s)
        top_q, weight_q = _online(top_q, weight_q, s / temperature)
        top_p, weight_p = _online(top_p, weight_p, t / temperature)
    lse = top + tl.log(plain)
    lse_q = top_q + tl.log(weight_q)
    lse_p = top_p + tl.log(weight_p)
    tl.store(likelihood + row, tl.where(keep, lse - picked, 0.0))
    at_target = tl.where(keep, alpha_lm, 0.0)
    summed = 0.0
    for first in range(0, classes, BLOCK):
        inside = first + lane < classes
        s = _logits(student, student_bias, first + lane, inside)
        t = _logits(teacher, teacher_bias, first + lane, inside)
        log_q = s / temperature - lse_q
        log_p = t / temperature - lse_p
        p = tl.exp(log_p)
        # a class that the teacher rules out counts nothing, also if the student does so, too
        summed += tl.sum(tl.where(p > 0, p * (log_p - log_q), 0.0), 0)
        if GRADIENT:
            gradient = alpha_kl * temperature * (tl.exp(log_q) - p) + at_target * tl.exp(s - lse)
            gradient -= tl.where(first + lane == wanted, at_target, 0.0)
            tl.store(student + first + lane, gradient, inside)
    tl.store(divergence + row, temperature * temperature * summed)


def distillation_rows(
    student_RV: Tensor,
    teacher_RV: Tensor,
    target_R: Tensor,
    *,
    student_bias_V: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    temperature: float,
    alpha_kl: float,
    alpha_lm: float,
    ignore_index: int = -100,
    gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return divergence_R and likelihood_R, fp32, without their weights.

    Args:
        student_RV: fp32, bf16 or fp16; rows may lie apart, classes may not. Overwritten if
            ``gradient``.
        teacher_RV: the same.
        target_R: int64; ``ignore_index`` has no likelihood.
        student_bias_V: fp32 or None, added to the student's logits.
        teacher_bias_V: the same for the teacher's.
        temperature: T, of the divergence only.
        alpha_kl: weight of the divergence in the gradient.
        alpha_lm: weight of the likelihood in the gradient.
        ignore_index: target that is skipped.
        gradient: overwrite the student's logits with the gradient of the weighted sum.
    """
    assert student_RV.shape == teacher_RV.shape, (student_RV.shape, teacher_RV.shape)
    count, classes = student_RV.shape
    assert classes == 1 or student_RV.stride(1) == teacher_RV.stride(1) == 1
    assert all(b is None or b.is_contiguous() for b in (student_bias_V, teacher_bias_V))
    divergence_R, likelihood_R = student_RV.new_empty(2, count, dtype=torch.float32)
    if not count:
        return divergence_R, likelihood_R
    block, warps = launch_shape(classes)
    with torch.cuda.device(student_RV.device.index if student_RV.is_cuda else -1):
        distillation_kernel[(count,)](
            student_RV,
            teacher_RV,
            student_bias_V,
            teacher_bias_V,
            target_R.contiguous(),
            divergence_R,
            likelihood_R,
            classes,
            student_RV.stride(0),
            teacher_RV.stride(0),
            ignore_index,
            float(temperature),
            float(alpha_kl),
            float(alpha_lm),
            GRADIENT=gradient,
            BLOCK=block,
            num_warps=warps,
        )
    return divergence_R, likelihood_R
