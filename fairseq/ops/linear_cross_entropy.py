"""Cross-entropy of a linear projection, without keeping the logits.

Every vocabulary head of this project is this function with another weight (see
docs/architecture.md): the RoBERTa and GPT heads (weight E, bias b), the CLAP head (weight E
normalised row by row), contrastive weight tying (weight E[unique targets], bias log count).

Shapes: N predicted positions, C channels, V classes, R positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean
from fairseq.ops.linear import linear, product, step_of_rows
from fairseq.ops.loss_peers import OPTIONAL, optional_backend, triton_serves
from fairseq.ops.single_backward import single_backward
from fairseq.ops.transforms import is_transformed
from fairseq.protocols import Context

Backend = Literal["auto", "reference", "chunked", "triton", "torch", "cce", "liger"]
BACKENDS = ("reference", "chunked")
# Logits of one chunk stay near the size of a last-level cache; larger chunks do not run faster.
CHUNK_ELEMENTS = 1 << 24
# On a GPU each chunk reads and writes the gradient of the whole weight, which takes as long as the
# products of some hundred rows: there only thousands of rows are worth it.
GPU_CHUNK_ELEMENTS, GPU_CHUNK_ROWS = 1 << 27, (2048, 4096)
# Below this many logits the reference's one big product is as fast and its memory does not matter.
SMALL_PROBLEM = 1 << 22


class LinearCrossEntropy(NamedTuple):
    """Per-position results, all of shape (N,); losses in nats, fp32 (fp64 for fp64 input)."""

    loss_N: Tensor
    lse_N: Tensor
    argmax_N: Tensor | None = None
    sum_logits_N: Tensor | None = None


def linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    target_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    ignore_index: int = -100,
    backend: str = "auto",
    want_argmax: bool = False,
    want_sum_logits: bool = False,
) -> LinearCrossEntropy:
    """Return ``-log softmax(hidden @ weight^T + bias)[target]`` for every position.

    Logits are fp32 whatever the input is, and so are the gradients until the upstream gradient has
    scaled them (fp16 training relies on that). Only bf16 on a GPU multiplies in bf16, with fp32
    sums; there ``triton`` rounds the logits to bf16, too.

    Args:
        hidden_NC: features, any floating type.
        weight_VC: one row per class.
        target_N: int64 class of each position; ``ignore_index`` gives loss 0 and no gradient.
        bias_V: added to the logits.
        ignore_index: target that is skipped.
        backend: ``reference`` keeps all logits in fp32; ``chunked`` computes them in blocks of rows
            and forms the gradients on the way (differentiating them again raises); ``triton``
            does so with a kernel of our own; ``torch``, ``cce`` and ``liger`` are those of others,
            for comparison; ``auto`` takes the reference for small problems, else triton for bf16
            on a GPU that has it, else chunked.
        want_argmax: also return the most likely class.
        want_sum_logits: also return the sum of the logits over the classes.

    Raises:
        ConfigError: for an unknown backend, or one whose package or device is missing.
    """
    backend = _choice(hidden_NC, weight_VC) if backend == "auto" else backend
    if backend not in BACKENDS and backend not in OPTIONAL:
        known = (*BACKENDS, *OPTIONAL)
        hint = did_you_mean(backend, known)
        raise ConfigError(
            f"unknown loss backend '{backend}'{hint}: choose auto, {', '.join(known)}"
        )
    dtype = factor_type(hidden_NC, backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # here, inside autograd: gradients come back in the types the factors had
    hidden_NC, weight_VC = hidden_NC.to(dtype), weight_VC.to(dtype)
    bias_V = None if bias_V is None else bias_V.to(wide)
    function = {"reference": _reference, "chunked": _Chunked.apply}.get(backend)
    function = function or optional_backend(
        backend, chunk_rows(hidden_NC.device, weight_VC.shape[0])
    )
    with torch.autocast(hidden_NC.device.type, enabled=False):
        results = function(
            hidden_NC, weight_VC, bias_V, target_N, ignore_index, want_argmax, want_sum_logits
        )
    return LinearCrossEntropy(*results)


def _choice(hidden_NC: Tensor, weight_VC: Tensor) -> str:
    """Return the backend that ``auto`` stands for."""
    if is_transformed() or hidden_NC.shape[0] * weight_VC.shape[0] <= SMALL_PROBLEM:
        return "reference"
    half = factor_type(hidden_NC, "triton") == torch.bfloat16
    return "triton" if half and triton_serves(hidden_NC.device) else "chunked"


def chunk_rows(device: torch.device, classes: int) -> int:
    """Return how many rows of logits a chunk has."""
    if device.type == "cpu":
        # some rows at least, whatever the vocabulary: every chunk reads the whole weight
        return max(16, CHUNK_ELEMENTS // max(1, classes))
    fewest, most = GPU_CHUNK_ROWS
    return min(most, max(fewest, GPU_CHUNK_ELEMENTS // max(1, classes)))


def factor_type(hidden: Tensor, backend: str) -> torch.dtype:
    """Return the type that both factors of the product are read in."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if hidden.dtype == torch.float64:
        return torch.float64
    if dtype == torch.bfloat16 and device == "cuda" and backend != "reference":
        return dtype
    return torch.float32


def _reference(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    ignore_index: int,
    want_argmax: bool,
    want_sum: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    logits_NV = linear(hidden_NC, weight_VC, bias_V)
    lse_N = logits_NV.logsumexp(-1)
    keep_N = target_N != ignore_index
    # gather refuses ids outside of the classes, such as -100, even where they do not count
    picked_N = logits_NV.gather(1, target_N.where(keep_N, 0)[:, None])[:, 0]
    return (
        torch.where(keep_N, lse_N - picked_N, 0.0),
        lse_N,
        logits_NV.argmax(-1) if want_argmax else None,
        logits_NV.sum(-1) if want_sum else None,
    )


def logit_chunks(
    hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, elements: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, their logits_RV in fp32 or fp64), a bounded number of elements at a time."""
    step = chunk_rows(hidden_NC.device, weight_VC.shape[0])
    if elements is not None:
        # a number that oneDNN is given whole: a few rows apart would read all of the weight again
        step = max(16, elements // max(1, weight_VC.shape[0]))
        step -= step % step_of_rows(step)
    for start in range(0, len(hidden_NC), step):
        rows = slice(start, start + step)
        yield rows, product(hidden_NC[rows], weight_VC.t(), bias_V)


def softmax_(logits_RV: Tensor) -> Tensor:
    """Turn logits into probabilities, in place; return their log-sum-exp, (R,)."""
    if logits_RV.device.type != "cpu":
        lse_R = logits_RV.logsumexp(-1)
        logits_RV.sub_(lse_R[:, None]).exp_()
        return lse_R
    # A large vocabulary's logits fill no cache, and each look at them costs like arithmetic:
    # this kernel goes row by row, and each row stays near until it is done.
    greatest_R = logits_RV.amax(-1)
    torch.softmax(logits_RV, -1, out=logits_RV)
    return greatest_R - logits_RV.amax(-1).log_()  # the greatest is exp(0) / sum


Units = tuple[Tensor | None, Tensor | None, Tensor | None]


class _ChunkedContext(Context, Protocol):
    ignore_index: int
    units: Units | None


class _Chunked(torch.autograd.Function):
    """Blocks of rows; gradients for an upstream gradient of one are formed in the forward pass.

    The backward pass of ``loss_N.sum()`` sees one number repeated (stride 0), so it only scales
    what is already there. Any other upstream gradient recomputes the logits block by block.
    """

    @staticmethod
    def forward(
        ctx: _ChunkedContext,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        ignore_index: int,
        want_argmax: bool,
        want_sum: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute the results and, if anything needs them, unit gradients."""
        n = len(hidden_NC)
        wide = torch.float64 if hidden_NC.dtype == torch.float64 else torch.float32
        loss_N, lse_N = hidden_NC.new_zeros(n, dtype=wide), hidden_NC.new_zeros(n, dtype=wide)
        argmax_N = target_N.new_zeros(n) if want_argmax else None
        sum_N = hidden_NC.new_zeros(n, dtype=wide) if want_sum else None
        gradients = (
            ProjectionGradients(ctx, hidden_NC, weight_VC) if any(ctx.needs_input_grad) else None
        )
        for rows, logits_RV in logit_chunks(hidden_NC, weight_VC, bias_V):
            keep_R = target_N[rows] != ignore_index
            index_R1 = target_N[rows].where(keep_R, 0)[:, None]
            if argmax_N is not None:
                argmax_N[rows] = logits_RV.argmax(-1)
            if sum_N is not None:
                sum_N[rows] = logits_RV.sum(-1)
            picked_R = logits_RV.gather(1, index_R1)[:, 0]
            lse_N[rows] = lse_R = softmax_(logits_RV)
            loss_N[rows] = torch.where(keep_R, lse_R - picked_R, 0.0)
            if gradients is not None:
                # softmax - onehot, written over the logits: nothing of (R, V) is allocated anew
                logits_RV.scatter_add_(1, index_R1, torch.full_like(index_R1, -1, dtype=wide))
                if keep_R.device.type != "cpu" or not bool(keep_R.all()):  # a GPU is not asked
                    logits_RV.mul_(keep_R[:, None])
                gradients.add(rows, logits_RV)
        ctx.save_for_backward(hidden_NC, weight_VC, bias_V, target_N, lse_N)
        # not saved by autograd: given away in the backward pass, they become the gradients
        ctx.units = None if gradients is None else gradients.tensors()
        ctx.ignore_index = ignore_index
        ctx.set_materialize_grads(False)
        if argmax_N is not None:
            ctx.mark_non_differentiable(argmax_N)
        return loss_N, lse_N, argmax_N, sum_N

    @staticmethod
    @single_backward
    def backward(ctx: _ChunkedContext, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the unit gradients, or recompute when positions are weighted differently.

        They are recomputed in a second backward pass, too (``retain_graph=True``).
        """
        loss_grad_N, lse_grad_N, _, sum_grad_N = upstream
        others = lse_grad_N is not None or sum_grad_N is not None
        if ctx.units and loss_grad_N is not None and not others and loss_grad_N.stride() == (0,):
            units, ctx.units = ctx.units, None
            scale = loss_grad_N[:1].sum()  # the one number, also if there is no position
            if scale.device.type != "cpu" or float(scale) != 1:
                for gradient in units:
                    if gradient is not None:
                        gradient.mul_(scale)
            return (*units, *[None] * 4)
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return (*_weighted(ctx, loss_grad_N, lse_grad_N, sum_grad_N), *[None] * 4)


def _weighted(
    ctx: _ChunkedContext,
    loss_grad_N: Tensor | None,
    lse_grad_N: Tensor | None,
    sum_grad_N: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden, weight and bias for any upstream gradients."""
    hidden_NC, weight_VC, bias_V, target_N, lse_N = ctx.saved_tensors[:5]
    gradients = ProjectionGradients(ctx, hidden_NC, weight_VC)
    for rows, logits_RV in logit_chunks(hidden_NC, weight_VC, bias_V):
        # loss = lse - logit[target]: the loss's gradient reaches every class through lse and the
        # target once more, with the other sign
        keep_R = target_N[rows] != ctx.ignore_index
        loss_grad_R = keep_R * (0.0 if loss_grad_N is None else loss_grad_N[rows])
        lse_grad_R = loss_grad_R if lse_grad_N is None else loss_grad_R + lse_grad_N[rows]
        dlogits_RV = logits_RV.sub_(lse_N[rows, None]).exp_().mul_(lse_grad_R[:, None])
        index_R1 = target_N[rows].where(keep_R, 0)[:, None]
        dlogits_RV.scatter_add_(1, index_R1, -loss_grad_R[:, None].to(dlogits_RV.dtype))
        if sum_grad_N is not None:
            dlogits_RV += sum_grad_N[rows, None]
        gradients.add(rows, dlogits_RV)
    return gradients.tensors()


class ProjectionGradients:
    """Sums up the gradients of hidden, weight and bias, those that are needed, chunk by chunk."""

    def __init__(self, ctx: Context, hidden_NC: Tensor, weight_VC: Tensor) -> None:
        self.factors = hidden_NC, weight_VC
        wide = torch.float64 if hidden_NC.dtype == torch.float64 else torch.float32
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        self.hidden_NC = torch.empty_like(hidden_NC, dtype=wide) if for_hidden else None
        self.for_weight, self.wide = for_weight, wide
        self.weight_VC: Tensor | None = None  # until the first chunk
        self.bias_V = weight_VC.new_zeros(len(weight_VC), dtype=wide) if for_bias else None

    def add(self, rows: slice, dlogits_RV: Tensor) -> None:
        """Add the share of one chunk."""
        hidden_NC, weight_VC = self.factors
        if self.bias_V is not None:
            self.bias_V += dlogits_RV.sum(0, dtype=self.bias_V.dtype)
        dlogits_RV = dlogits_RV.to(weight_VC.dtype)
        if self.hidden_NC is not None:
            self.hidden_NC[rows] = product(dlogits_RV, weight_VC)
        if not self.for_weight:
            return
        if self.weight_VC is None:
            self.weight_VC = product(dlogits_RV.t(), hidden_NC[rows])
        # addmm_ sums in place, but cannot multiply bf16 factors into an fp32 sum
        elif self.weight_VC.dtype == weight_VC.dtype:
            self.weight_VC.addmm_(dlogits_RV.t(), hidden_NC[rows])
        else:
            self.weight_VC += product(dlogits_RV.t(), hidden_NC[rows])

    def tensors(self) -> Units:
        """Return the gradients of hidden, weight and bias; None where nobody asked."""
        if self.for_weight and self.weight_VC is None:  # there was no position
            self.weight_VC = torch.zeros_like(self.factors[1], dtype=self.wide)
        return self.hidden_NC, self.weight_VC, self.bias_V
