"""Products with a weight, by the faster of the two libraries that PyTorch brings for a CPU.

PyTorch multiplies fp32 matrices by MKL. On AMD processors with AVX-512 the oneDNN that it brings,
too, takes a tenth to a third less time for ``x W^T`` and for ``dy W`` (the vocabulary's product,
with an odd number of columns, gains most); ``dy^T x`` is left to MKL, which is ahead there
(``python benchmarks/ops.py``). Which one is taken depends on the processor and the shapes
alone, so that a run that goes on gets the bits it would have got.

Shapes: N rows, K summed over, M columns.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.ops.transforms import is_watched
from fairseq.protocols import Context

BACKENDS = ("torch", "onednn")
# With fewer rows oneDNN's own ordering of the weight costs more than it gains.
FEWEST_ROWS = 64


def linear(
    x: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Return ``x W^T + b``, shape (..., M), as :func:`torch.nn.functional.linear` does.

    Args:
        x: shape (..., K).
        weight_MK: the weight.
        bias_M: added to every row.
        backend: ``torch``, ``onednn`` (fp32 on a CPU), or ``auto``.
    """
    if backend == "auto":
        backend = "onednn" if _is_faster(x, weight_MK) else "torch"
    if backend == "torch":
        return F.linear(x, weight_MK, bias_M)
    result: Tensor = _Linear.apply(x, weight_MK, bias_M)
    return result


def product(left_NK: Tensor, right_KM: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """Return ``left right + b``, shape (N, M), outside autograd; fp32 for bf16 factors (GPUs)."""
    if left_NK.dtype == torch.bfloat16:
        out_NM = torch.mm(left_NK, right_KM, out_dtype=torch.float32)
        return out_NM if bias_M is None else out_NM.add_(bias_M)
    if left_NK.is_contiguous() and _is_faster(left_NK, right_KM):
        return _by_onednn(left_NK, right_KM.t(), bias_M)
    return left_NK @ right_KM if bias_M is None else torch.addmm(bias_M, left_NK, right_KM)


def _is_faster(left: Tensor, right: Tensor) -> bool:
    """Tell whether oneDNN is to multiply: two fp32 matrices, many rows, watched by nobody."""
    return (
        left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and not is_watched()
        and left.numel() >= FEWEST_ROWS * max(1, left.shape[-1])
        and not torch.is_autocast_enabled("cpu")
        and processor_prefers_onednn()
    )


@functools.cache
def processor_prefers_onednn() -> bool:
    """Tell whether this is an AMD processor with AVX-512, where oneDNN was found to be faster."""
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False
    # what torch.compile calls for such a layer; not documented, so it may be missing one day
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return maker and there and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _by_onednn(left: Tensor, right_MK: Tensor, bias_M: Tensor | None) -> Tensor:
    """Multiply, with a number of rows that returns; the few rows beyond it are added or left over.

    oneDNN compiles code for every number of rows and keeps it, for as many as a thousand of them;
    predicted tokens and lengths of sentences come in any number.
    """
    columns = left.shape[-1]
    rows = left.numel() // max(1, columns)
    step = step_of_rows(rows)
    if rows % step == 0:
        return _onednn(left, right_MK, bias_M)
    left_NK = left.reshape(rows, columns)
    if columns <= len(right_MK):  # more rows of the narrower factor: the result is a view
        padded_NK = left_NK.new_zeros(rows + step - rows % step, columns)
        padded_NK[:rows] = left_NK
        out_NM = _onednn(padded_NK, right_MK, bias_M)[:rows]
    else:  # the last rows apart: the narrower result is what is written together
        whole = rows - rows % step
        out_NM = left.new_empty(rows, len(right_MK))
        out_NM[:whole] = _onednn(left_NK[:whole], right_MK, bias_M)
        out_NM[whole:] = F.linear(left_NK[whole:], right_MK, bias_M)
    return out_NM.view(*left.shape[:-1], -1)


def step_of_rows(rows: int) -> int:
    """Return what numbers of rows are multiples of: 16 of them from one power of 2 to the next."""
    return 1 << max(0, rows.bit_length() - 5)


def _onednn(left: Tensor, right_MK: Tensor, bias_M: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right_MK, bias_M, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """``x W^T + b`` and its gradients, which can be differentiated themselves."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(x, weight_MK)
        return _by_onednn(x, weight_MK, bias_M)

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias, those that are needed."""
        x, weight_MK = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        to_rows_NM = gradients[0].reshape(-1, len(weight_MK))
        multiply = torch.mm if torch.is_grad_enabled() else product  # recorded: create_graph=True
        return (
            multiply(to_rows_NM, weight_MK).view(x.shape) if needs_x else None,
            to_rows_NM.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            to_rows_NM.sum(0) if needs_bias else None,
        )
