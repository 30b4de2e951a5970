"""Cross-entropy of a linear projection, without keeping the logits.

Every vocabulary head of this project is this function with another weight (see
docs/architecture.md): the RoBERTa and GPT heads (weight E, bias b), the CLAP head (weight E normalised row by row),
contrastive weight tying (weight E[unique targets], bias log count).

Shapes: N predicted positions, C channels, V classes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean

Backend = Literal["auto", "reference", "chunked"]
BACKENDS = ("reference", "chunked")
# Logits of one chunk stay near the size of a last-level cache; larger chunks do not run faster.
CHUNK_ELEMENTS = 1 << 24
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

    Args:
        hidden_NC: features, any floating type.
        weight_VC: one row per class.
        target_N: int64 class of each position; ``ignore_index`` gives loss 0 and no gradient.
        bias_V: added to the logits.
        ignore_index: target that is skipped.
        backend: ``reference`` keeps all logits in fp32; ``chunked`` computes them in blocks of rows
            and forms the gradients on the way; ``auto`` chooses by size.
        want_argmax: also return the most likely class.
        want_sum_logits: also return the sum of the logits over the classes.

    Raises:
        ConfigError: for an unknown backend.
    """
    if backend == "auto":
        backend = (
            "reference" if hidden_NC.shape[0] * weight_VC.shape[0] <= SMALL_PROBLEM else "chunked"
        )
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        raise ConfigError(
            f"unknown loss backend '{backend}'{hint}: choose auto, {', '.join(BACKENDS)}"
        )
    dtype = _compute_dtype(hidden_NC)
    hidden_NC, weight_VC = hidden_NC.to(dtype), weight_VC.to(dtype)
    with torch.autocast(hidden_NC.device.type, enabled=False):
        if backend == "reference":
            loss_N, lse_N, sum_N, argmax_N = _reference(
                hidden_NC, weight_VC, bias_V, target_N, ignore_index
            )
        else:
            loss_N, lse_N, sum_N, argmax_N = _Chunked.apply(
                hidden_NC, weight_VC, bias_V, target_N, ignore_index, want_argmax, want_sum_logits
            )
    return LinearCrossEntropy(
        loss_N, lse_N, argmax_N if want_argmax else None, sum_N if want_sum_logits else None
    )


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the type the product is computed in: autocast's where it is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _logits(hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_NV = _wide(hidden_NC @ weight_VC.t())
    return logits_NV if bias_V is None else logits_NV + bias_V.to(logits_NV.dtype)


def _reference(
    hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_N: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits_NV = _logits(hidden_NC, weight_VC, bias_V)
    lse_N = logits_NV.logsumexp(-1)
    keep_N = target_N != ignore_index
    picked_N = logits_NV.gather(1, target_N.where(keep_N, 0)[:, None])[:, 0]
    loss_N = torch.where(keep_N, lse_N - picked_N, 0.0)
    return loss_N, lse_N, logits_NV.sum(-1), logits_NV.argmax(-1)


def _rows_per_chunk(classes: int) -> int:
    return max(16, CHUNK_ELEMENTS // max(1, classes))


class _Chunked(torch.autograd.Function):
    """Blocks of rows; gradients for an upstream gradient of one are formed in the forward pass.

    The backward pass of ``loss_N.sum()`` sees one number repeated (stride 0), so it only scales
    what is already there. Any other upstream gradient recomputes the logits block by block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        ignore_index: int,
        want_argmax: bool,
        want_sum: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute losses and, if anything needs them, unit gradients."""
        n, classes = hidden_NC.shape[0], weight_VC.shape[0]
        wide = torch.float64 if hidden_NC.dtype == torch.float64 else torch.float32
        loss_N, lse_N = hidden_NC.new_zeros(n, dtype=wide), hidden_NC.new_zeros(n, dtype=wide)
        sum_N = hidden_NC.new_zeros(n, dtype=wide) if want_sum else None
        argmax_N = target_N.new_zeros(n) if want_argmax else None
        gradients = _Gradients(hidden_NC, weight_VC, bias_V) if any(ctx.needs_input_grad) else None
        step = _rows_per_chunk(classes)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            logits_RV = _logits(hidden_NC[rows], weight_VC, bias_V)
            target_R = target_N[rows]
            keep_R = target_R != ignore_index
            index_R1 = target_R.where(keep_R, 0)[:, None]
            if argmax_N is not None:
                argmax_N[rows] = logits_RV.argmax(-1)
            if sum_N is not None:
                sum_N[rows] = logits_RV.sum(-1)
            lse_N[rows] = lse_R = logits_RV.logsumexp(-1)
            loss_N[rows] = torch.where(keep_R, lse_R - logits_RV.gather(1, index_R1)[:, 0], 0.0)
            if gradients is not None:
                dlogits_RV = logits_RV.sub_(lse_R[:, None]).exp_()
                dlogits_RV.scatter_add_(1, index_R1, torch.full_like(index_R1, -1, dtype=wide))
                gradients.add(rows, dlogits_RV.mul_(keep_R[:, None]), hidden_NC, weight_VC)
        saved = gradients.tensors() if gradients is not None else (None, None, None)
        ctx.save_for_backward(hidden_NC, weight_VC, bias_V, target_N, lse_N, *saved)
        ctx.ignore_index = ignore_index
        ctx.set_materialize_grads(False)
        if argmax_N is not None:
            ctx.mark_non_differentiable(argmax_N)
        return loss_N, lse_N, sum_N, argmax_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the unit gradients, or recompute when positions are weighted differently."""
        loss_grad_N, lse_grad_N, sum_grad_N = upstream[:3]
        hidden_NC, weight_VC, bias_V, target_N, lse_N, dhidden, dweight, dbias = ctx.saved_tensors
        uniform = loss_grad_N is not None and loss_grad_N.stride() == (0,)
        if uniform and lse_grad_N is None and sum_grad_N is None and len(target_N):
            assert loss_grad_N is not None
            scale = loss_grad_N[0]
            scaled = [
                None if g is None else g * scale.to(g.dtype) for g in (dhidden, dweight, dbias)
            ]
            return (*scaled, None, None, None, None)
        gradients = _Gradients(hidden_NC, weight_VC, bias_V)
        step = _rows_per_chunk(weight_VC.shape[0])
        for start in range(0, len(target_N), step):
            rows = slice(start, start + step)
            logits_RV = _logits(hidden_NC[rows], weight_VC, bias_V)
            p_RV = logits_RV.sub_(lse_N[rows, None]).exp_()
            dlogits_RV = torch.zeros_like(p_RV)
            if loss_grad_N is not None:
                keep_R = target_N[rows] != ctx.ignore_index
                g_R1 = (loss_grad_N[rows] * keep_R)[:, None].to(p_RV.dtype)
                dlogits_RV += p_RV * g_R1
                dlogits_RV.scatter_add_(1, target_N[rows].where(keep_R, 0)[:, None], -g_R1)
            if lse_grad_N is not None:
                dlogits_RV += p_RV * lse_grad_N[rows, None]
            if sum_grad_N is not None:
                dlogits_RV += sum_grad_N[rows, None]
            gradients.add(rows, dlogits_RV, hidden_NC, weight_VC)
        return (*gradients.tensors(), None, None, None, None)


class _Gradients:
    """Accumulates the gradients of hidden, weight and bias over chunks of rows."""

    def __init__(self, hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None) -> None:
        wide = torch.float64 if weight_VC.dtype == torch.float64 else torch.float32
        self.hidden_NC = torch.empty_like(hidden_NC)
        self.weight_VC = torch.zeros_like(weight_VC, dtype=wide)
        self.bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=wide)
        self.types = (weight_VC.dtype, None if bias_V is None else bias_V.dtype)

    def add(self, rows: slice, dlogits_RV: Tensor, hidden_NC: Tensor, weight_VC: Tensor) -> None:
        """Add the share of one chunk."""
        if self.bias_V is not None:
            self.bias_V += dlogits_RV.sum(0)
        narrow_RV = dlogits_RV.to(weight_VC.dtype)
        self.hidden_NC[rows] = narrow_RV @ weight_VC
        if self.weight_VC.dtype == weight_VC.dtype:
            self.weight_VC.addmm_(narrow_RV.t(), hidden_NC[rows])
        else:  # sums over chunks in fp32, whatever the type of the products
            self.weight_VC += narrow_RV.t() @ hidden_NC[rows]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients in the types of their inputs."""
        bias = None if self.bias_V is None else self.bias_V.to(self.types[1])
        return self.hidden_NC, self.weight_VC.to(self.types[0]), bias
