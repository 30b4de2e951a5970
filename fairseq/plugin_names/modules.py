"""Small building blocks that plug-ins import; quantisation noise can only be off here."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.errors import UnsupportedError
from fairseq.ops.dropout import dropout
from fairseq.protocols import Context


def quant_noise(module: nn.Module, p: float, block_size: int) -> nn.Module:
    """Return ``module`` as it is.

    Args:
        module: a layer.
        p: share of the weights that gets noise; 0 for none.
        block_size: accepted for old callers.

    Raises:
        UnsupportedError: if noise is asked for.
    """
    if p > 0:
        raise UnsupportedError(f"quantisation noise is not supported: set it to 0, not {p}")
    return module


def checkpoint_wrapper(module: nn.Module, offload_to_cpu: bool = False) -> nn.Module:
    """Make a module recompute its forward pass instead of keeping its activations.

    Args:
        module: changed in place and returned; its parameters keep their names.
        offload_to_cpu: changes nothing, as ``--offload-activations``: they are recomputed.
    """
    original = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(original, *args, use_reentrant=False, **kwargs)

    module.forward = forward
    return module


class FairseqDropout(nn.Module):
    """Dropout as a module; ``module_name`` is for old callers."""

    def __init__(self, p: float, module_name: str | None = None) -> None:
        super().__init__()
        self.p, self.module_name = p, module_name

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Zero elements of ``x`` in training; ``inplace`` is for old callers."""
        return dropout(x, self.p, self.training)


class LayerDropModuleList(nn.ModuleList):
    """Layers of which each pass of training leaves some out: those drawn are what it iterates over.

    Args:
        p: probability of leaving a layer out.
        modules: the layers.

    Source: Fan et al. 2020 (LayerDrop), section 3.1.
    """

    def __init__(self, p: float, modules: Iterable[nn.Module] | None = None) -> None:
        super().__init__(modules)
        self.p = p

    def __iter__(self) -> Iterator[nn.Module]:
        drawn = torch.empty(len(self)).uniform_() if self.training and self.p else None
        for number, layer in enumerate(super().__iter__()):
            if drawn is None or drawn[number] > self.p:
                yield layer


class _ScaleContext(Context, Protocol):
    """What the forward pass of :class:`GradMultiply` leaves for the backward pass."""

    scale: float


class GradMultiply(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number: ``GradMultiply.apply(x, 0.1)``.

    Raises:
        UnsupportedError: if that gradient is to be differentiated (``create_graph=True``).
    """

    @staticmethod
    def forward(ctx: _ScaleContext, x: Tensor, scale: float) -> Tensor:
        """Return ``x``."""
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _ScaleContext, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient times the number."""
        # what f(x) is differentiated by here is s f'(x); autograd would make s^2 f''(x) of it
        if torch.is_grad_enabled() and ctx.scale not in (0, 1):
            raise UnsupportedError(
                f"GradMultiply multiplied a gradient by {ctx.scale}: that is the gradient of no "
                "function, and has no second derivatives (create_graph=True); set the number to 1"
            )
        return gradients[0] * ctx.scale, None


class Fp32LayerNorm(nn.LayerNorm):
    """A layer norm that computes in fp32 whatever the type of its input, which its output has."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        weight, bias = (None if x is None else x.float() for x in (self.weight, self.bias))
        y = F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)
        return y.type_as(input)


class Fp32GroupNorm(nn.GroupNorm):
    """A group norm that computes in fp32, as :class:`Fp32LayerNorm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (B, C, ...)."""
        weight, bias = (None if x is None else x.float() for x in (self.weight, self.bias))
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).type_as(input)


class SamePad(nn.Module):
    """Cuts off what a convolution with padding ``kernel_size // 2`` makes too much, (B, C, T)."""

    def __init__(self, kernel_size: int, causal: bool = False) -> None:
        super().__init__()
        self.remove = kernel_size - 1 if causal else int(kernel_size % 2 == 0)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Return ``x`` without its last places."""
        return x_BCT[:, :, : x_BCT.shape[2] - self.remove]


class TransposeLast(nn.Module):
    """Exchanges the last two dimensions of a tensor, or of one entry of a tuple of them."""

    def __init__(self, deconstruct_idx: int | None = None) -> None:
        super().__init__()
        self.deconstruct_idx = deconstruct_idx

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the transposed tensor."""
        chosen = x if self.deconstruct_idx is None else x[self.deconstruct_idx]
        assert isinstance(chosen, Tensor), type(chosen)
        return chosen.transpose(-2, -1)


def cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Return the cross-entropy of logits (N, V) and targets (N,), computed in fp32."""
    return F.cross_entropy(logits.float(), target, ignore_index=ignore_index, reduction=reduction)


class CharacterTokenEmbedder(nn.Module):
    """Words made of characters, which are not supported.

    Raises:
        UnsupportedError: when one is made.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        raise UnsupportedError(
            "words made of characters are not supported; split text into byte-level pieces "
            "(fairseq-bpe)"
        )
