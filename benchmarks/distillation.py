"""What distillation at the logits costs: time and peak memory of T^2 KL between two projections.

Usage: python benchmarks/distillation.py [--quick]

Forward and backward at 2,048 tokens and V = 50,000, teacher and student of width 256: with whole
logits and torch's ``kl_div``; by chunks of rows whose gradients ``torch.func`` takes one by one
(the scheme of Liger's fused linear losses, written here); by ``liger-kernel`` itself, in plain
torch, where it is installed; and by the operator of this project. Peak memory is what a run needs
beyond its operands; functions take turns, and the median counts. All give the same loss and the
same gradient, which is checked.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import main, milliseconds, peaks

from fairseq.modules.heads import Projection
from fairseq.ops.linear_distillation import linear_distillation

FORMS = ("whole logits", "torch.func by chunks", "liger-kernel", "linear_distillation")
WIDTH, TEMPERATURE, ROWS_OF_CHUNK = 256, 2.0, 256


def why_not(name: str) -> str:
    """Return why a form cannot run here, nothing if it can."""
    if name == "liger-kernel" and importlib.util.find_spec("liger_kernel") is None:
        return "not installed"
    return ""


def liger(operands: tuple[Any, ...], target_N: Any) -> Any:
    """Return the loss by liger-kernel: its JSD with beta 0 is the forward divergence."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, temperature=TEMPERATURE,
        compiled=False, chunk_size=ROWS_OF_CHUNK,
    )(*operands, target_N)  # fmt: skip
    # a mean over rows without the factor T^2
    return loss * TEMPERATURE**2 * len(target_N)


def form(
    name: str, tokens: int, vocabulary: int, device: str, kept: list[tuple[float, float, float]]
) -> Callable[[], None]:
    """Return a function that runs a form forward and backward once.

    It notes its loss and the norms of the gradients of the student's hidden states and weights.
    """
    if name in FORMS[1:3] and tokens > 1:
        form(name, 1, 8, device, [])()  # imports what torch loads late, which is no cost of a form
    torch.manual_seed(0)
    s_NC, t_NC = torch.randn(2, tokens, WIDTH, device=device)
    student_VC, teacher_VC = torch.randn(2, vocabulary, WIDTH, device=device).mul_(WIDTH**-0.5)
    s_NC.requires_grad_(), student_VC.requires_grad_()
    target_N = torch.zeros(tokens, dtype=torch.int64, device=device)

    def kl(hidden_NC: Any, weight_VC: Any, teacher_NC: Any) -> Any:
        log_q = F.log_softmax(hidden_NC @ weight_VC.T / TEMPERATURE, -1)
        log_p = F.log_softmax(teacher_NC @ teacher_VC.T / TEMPERATURE, -1)
        return TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    def by_chunks() -> Any:
        differentiated = torch.func.grad_and_value(kl, argnums=(0, 1))
        loss, parts, grad_VC = torch.zeros((), device=device), [], torch.zeros_like(student_VC)
        for start in range(0, tokens, ROWS_OF_CHUNK):
            rows = slice(start, start + ROWS_OF_CHUNK)
            (part_RC, weight_VC), value = differentiated(s_NC[rows], student_VC, t_NC[rows])
            parts.append(part_RC.detach())
            grad_VC += weight_VC.detach()
            loss = loss + value.detach()
        s_NC.grad, student_VC.grad = torch.cat(parts), grad_VC.detach()
        return loss

    def run() -> None:
        if name == "torch.func by chunks":
            loss = by_chunks()
        else:
            if name == "whole logits":
                loss = kl(s_NC, student_VC, t_NC)
            elif name == "liger-kernel":
                loss = liger((s_NC, student_VC, t_NC, teacher_VC), target_N)
            else:
                loss = linear_distillation(
                    Projection(s_NC, student_VC, None), Projection(t_NC, teacher_VC, None),
                    target_N, temperature=TEMPERATURE,
                ).loss  # fmt: skip
            loss.backward()
        norms = [float(torch.linalg.vector_norm(x.grad)) for x in (s_NC, student_VC)]
        kept.append((float(loss.detach()), *norms))
        s_NC.grad = student_VC.grad = None

    return run


def measure(tokens: int, vocabulary: int, rounds: int, device: str) -> dict[str, Any]:
    """Return time and peak memory of every form, and what the operator's are of the whole one's.

    Raises:
        SystemExit: if the forms disagree on the loss or the gradient.
    """
    kept: list[tuple[float, float, float]] = []
    names = [name for name in FORMS if not why_not(name)]
    makes: list[Callable[[], Any]] = [
        functools.partial(form, name, tokens, vocabulary, device, kept) for name in names
    ]
    needed = peaks(makes, device)
    taken = milliseconds([make() for make in makes], rounds, device)
    for figures in zip(*kept, strict=True):
        if max(figures) - min(figures) > 1e-3 * max(figures):
            raise SystemExit(f"the forms disagree: {sorted(figures)}")
    measured = dict(zip(names, zip(taken, needed, strict=True), strict=True))
    table: dict[str, dict[str, Any]] = {}
    for name in FORMS:
        ms, megabytes = measured.get(name, (None, None))
        table[name] = {
            "ms": ms and round(ms, 1),
            "peak_MB": megabytes and round(megabytes),
            "note": why_not(name),
        }
    return {
        f"V={vocabulary // 1000}k, {tokens} tokens": table,
        "memory_of_whole": round(needed[-1] / needed[0], 3),
        "time_of_whole": round(taken[-1] / taken[0], 3),
    }


if __name__ == "__main__":
    main("distillation", __doc__, measure, (2_048, 50_000, 5), (64, 2_000, 1))
