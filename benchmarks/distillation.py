"""What distillation at the logits costs: time and peak memory of T^2 KL between two projections.

Usage: python benchmarks/distillation.py [--quick]

Forward and backward at 2,048 tokens and V = 50,000, teacher and student of width 256: with whole
logits and torch's ``kl_div``; in chunks that autograd differentiates one by one (the scheme of
Liger's fused linear losses, in plain torch); and the operator of this project. Peak memory is what
a run needs beyond its operands; functions take turns, and the median counts. All give the same
loss, which is checked first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import main, milliseconds, peaks

from fairseq.modules.heads import Projection
from fairseq.ops.linear_distillation import linear_distillation

FORMS = ("whole logits", "autograd by chunks", "linear_distillation")
WIDTH, TEMPERATURE, ROWS_OF_CHUNK = 256, 2.0, 256


def form(name: str, tokens: int, vocabulary: int, device: str, kept: list[float]) -> Any:
    """Return a function that runs a form forward and backward once and notes its loss."""
    torch.manual_seed(0)
    s_NC, t_NC = torch.randn(2, tokens, WIDTH, device=device)
    student_VC, teacher_VC = torch.randn(2, vocabulary, WIDTH, device=device).mul_(WIDTH**-0.5)
    s_NC.requires_grad_(), student_VC.requires_grad_()
    target_N = torch.zeros(tokens, dtype=torch.int64, device=device)

    def kl(hidden_NC: Any, teacher_NC: Any) -> Any:
        log_q = F.log_softmax(hidden_NC @ student_VC.T / TEMPERATURE, -1)
        log_p = F.log_softmax(teacher_NC @ teacher_VC.T / TEMPERATURE, -1)
        return TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    def run() -> None:
        if name == "whole logits":
            loss = kl(s_NC, t_NC)
            loss.backward()
        elif name == "autograd by chunks":
            loss = torch.zeros((), device=device)
            for start in range(0, tokens, ROWS_OF_CHUNK):
                rows = slice(start, start + ROWS_OF_CHUNK)
                part = kl(s_NC[rows], t_NC[rows])
                part.backward()
                loss += part.detach()
        else:
            loss = linear_distillation(
                Projection(s_NC, student_VC, None), Projection(t_NC, teacher_VC, None), target_N,
                temperature=TEMPERATURE,
            ).loss  # fmt: skip
            loss.backward()
        kept.append(float(loss.detach()))
        s_NC.grad = student_VC.grad = None

    return run


def measure(tokens: int, vocabulary: int, rounds: int, device: str) -> dict[str, Any]:
    """Return time and peak memory of every form, and what the operator's are of the whole one's.

    Raises:
        SystemExit: if the forms disagree on the loss.
    """
    kept: list[float] = []
    makes: list[Callable[[], Any]] = [
        functools.partial(form, name, tokens, vocabulary, device, kept) for name in FORMS
    ]
    needed = peaks(makes, device)
    taken = milliseconds([make() for make in makes], rounds, device)
    if max(kept) - min(kept) > 1e-3 * max(kept):
        raise SystemExit(f"the forms disagree: {sorted(kept)}")
    table = {
        name: {"ms": round(ms, 1), "peak_MB": round(megabytes)}
        for name, ms, megabytes in zip(FORMS, taken, needed, strict=True)
    }
    return {
        f"V={vocabulary // 1000}k, {tokens} tokens": table,
        "memory_of_whole": round(needed[-1] / needed[0], 3),
        "time_of_whole": round(taken[-1] / taken[0], 3),
    }


if __name__ == "__main__":
    main("distillation", __doc__, measure, (2_048, 50_000, 5), (64, 2_000, 1))
