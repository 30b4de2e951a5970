"""The loss primitive on a GPU: a matrix product, one kernel over rows, two matrix products.

Logits are kept for a block of rows only, in the type of the factors (bf16 training rounds them to
bf16; sums, losses and the gradients of the factors are fp32), and their gradients are written
where they stood. Rows of the block begin at multiples of 64 numbers, which the matrix products
want; V itself may be anything.

Shapes: N predicted positions, C channels, V classes, R positions of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fairseq.ops.single_backward import single_backward
from fairseq.ops.triton.rows import Upstream, rows
from fairseq.protocols import Context

ROW_MULTIPLE = 64


class Operands(NamedTuple):
    """What the loss is computed from.

    Attributes:
        hidden_NC: features, fp32 or bf16.
        weight_VC: one row per class, of the same type.
        bias_V: fp32, added to the logits.
        scale_V: fp32 and not 0, multiplied into the logits before the bias; ``1 / |weight_v|``
            makes the head of CLAP without a normalised copy of the weight.
        target_N: int64.
        ignore_index: target that is skipped.
        block_rows: rows of logits that exist at once.
    """

    hidden_NC: Tensor
    weight_VC: Tensor
    bias_V: Tensor | None
    scale_V: Tensor | None
    target_N: Tensor
    ignore_index: int
    block_rows: int

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, their logits_RV without scale and bias), in one buffer used again."""
        n, classes = len(self.hidden_NC), len(self.weight_VC)
        width = -(-classes // ROW_MULTIPLE) * ROW_MULTIPLE
        buffer = self.hidden_NC.new_empty(min(n, self.block_rows), width)
        for start in range(0, n, self.block_rows):
            part = slice(start, min(n, start + self.block_rows))
            logits_RV = buffer[: part.stop - start, :classes]
            # into a view: rows lie apart where V is no multiple of 64
            torch.mm(self.hidden_NC[part], self.weight_VC.t(), out=logits_RV)
            yield part, logits_RV


class _Context(Context, Protocol):
    plain: tuple[int, int]


class LinearCrossEntropyFunction(torch.autograd.Function):
    """Unit gradients in the forward pass; other upstream gradients compute the logits again."""

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        scale_V: Tensor | None,
        target_N: Tensor,
        ignore_index: int,
        want_argmax: bool,
        want_sum: bool,
        block_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute loss_N, lse_N, argmax_N and sum_N and, if anything needs them, gradients."""
        operands = Operands(
            hidden_NC, weight_VC, bias_V, scale_V, target_N, ignore_index, block_rows
        )
        loss_N, lse_N = hidden_NC.new_empty(2, len(hidden_NC), dtype=torch.float32)
        sum_N = torch.empty_like(loss_N) if want_sum else None
        argmax_N = torch.empty_like(target_N) if want_argmax else None
        wanted = any(ctx.needs_input_grad)
        gradients = _Gradients(operands, ctx.needs_input_grad[:4])
        for part, logits_RV in operands.blocks():
            outputs = (t if t is None else t[part] for t in (lse_N, loss_N, sum_N, argmax_N))
            _rows(operands, part, logits_RV, *outputs, gradient=wanted)
            gradients.add(part, logits_RV)
        ctx.save_for_backward(*operands[:5], lse_N, *gradients.tensors())
        ctx.plain = ignore_index, block_rows
        ctx.set_materialize_grads(False)
        if argmax_N is not None:
            ctx.mark_non_differentiable(argmax_N)
        return loss_N, lse_N, argmax_N, sum_N

    @staticmethod
    @single_backward
    def backward(ctx: _Context, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the unit gradients, or recompute when positions are weighted differently."""
        loss_grad_N, lse_grad_N, _, sum_grad_N = upstream
        *_, d_hidden, d_weight, d_bias, d_scale = ctx.saved_tensors
        units = d_hidden, d_weight, d_bias, d_scale
        others = lse_grad_N is not None or sum_grad_N is not None
        if loss_grad_N is not None and not others and loss_grad_N.stride() == (0,):
            scale = loss_grad_N[:1].sum()  # the one number, also if there is no position
            return (*(g if g is None else g * scale for g in units), *[None] * 5)
        hidden_NC, weight_VC, bias_V, scale_V, target_N, lse_N = ctx.saved_tensors[:6]
        operands = Operands(hidden_NC, weight_VC, bias_V, scale_V, target_N, *ctx.plain)
        gradients = _Gradients(operands, ctx.needs_input_grad[:4])
        for part, logits_RV in operands.blocks():
            grads = (t if t is None else t[part] for t in (loss_grad_N, lse_grad_N, sum_grad_N))
            _rows(operands, part, logits_RV, lse_N[part], upstream=Upstream(*grads))
            gradients.add(part, logits_RV)
        return (*gradients.tensors(), *[None] * 5)


def _rows(operands: Operands, part: slice, logits_RV: Tensor, *outputs: Any, **wanted: Any) -> None:
    rows(
        logits_RV,
        operands.target_N[part],
        *outputs,
        scale_V=operands.scale_V,
        bias_V=operands.bias_V,
        ignore_index=operands.ignore_index,
        **wanted,
    )


class _Gradients:
    """Sums up in fp32, block by block, the gradients that are needed."""

    def __init__(self, operands: Operands, needed: tuple[bool, ...]) -> None:
        self.operands, self.needed = operands, needed
        hidden, weight, bias, scale = needed
        fp32 = torch.float32
        self.hidden_NC = torch.empty_like(operands.hidden_NC, dtype=fp32) if hidden else None
        # a sum begins with the first block, not with zeros that would be read back
        self.sums: dict[str, Tensor] = {}
        self.for_weight, self.for_bias = weight or scale, bias

    def add(self, part: slice, dlogits_RV: Tensor) -> None:
        """Add the share of one block, given the gradients of its unscaled products."""
        if self.hidden_NC is not None:
            self.hidden_NC[part] = _product(dlogits_RV, self.operands.weight_VC)
        if self.for_weight:
            self._sum("weight", _product(dlogits_RV.t(), self.operands.hidden_NC[part]))
        if self.for_bias:
            self._sum("bias", dlogits_RV.sum(0, dtype=torch.float32))

    def _sum(self, name: str, share: Tensor) -> None:
        self.sums[name] = self.sums[name].add_(share) if name in self.sums else share

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight, bias and scale; None where nobody asked."""
        weight_VC, scale_V = self.operands.weight_VC, self.operands.scale_V
        _, for_weight, for_bias, for_scale = self.needed
        if not len(self.operands.hidden_NC):  # there was no block
            none_VC = torch.zeros_like(weight_VC, dtype=torch.float32)
            self.sums = {"weight": none_VC, "bias": none_VC.sum(1)}
        d_weight, d_bias, d_scale = self.sums.get("weight"), self.sums.get("bias"), None
        if d_bias is not None and scale_V is not None:
            d_bias = d_bias / scale_V  # the bias comes after the scale
        if for_scale and d_weight is not None and scale_V is not None:
            # <dW_v, W_v> = s_v sum_n dz_nv (h_n . W_v), so no logit has to be kept for this
            d_scale = torch.linalg.vecdot(d_weight, weight_VC.float()) / scale_V
        return (
            self.hidden_NC,
            d_weight if for_weight else None,
            d_bias if for_bias else None,
            d_scale,
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product in fp32."""
    if left.dtype == torch.float32:
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32)
