"""What is done to every position by itself: layer norms, products with a weight, activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fairseq.aliases import NAMES
from fairseq.errors import ConfigError, did_you_mean
from fairseq.lazy import lazy_names
from fairseq.ops.linear import linear as multiply

__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return ``layer(x)``, shape (..., out_features), by :func:`fairseq.ops.linear.linear`.

    Layers stay PyTorch's own, not a subclass, so that whoever looks for them finds them
    (quantization compares types). One that was replaced, patched or has hooks is called as it is.
    """
    hooks = (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
        or layer._backward_pre_hooks or "forward" in layer.__dict__
    )  # fmt: skip
    if type(layer) is not nn.Linear or hooks or torch_module._has_any_global_hook():
        y: Tensor = layer(x)
        return y
    return multiply(x, layer.weight, layer.bias)


def LayerNorm(
    normalized_shape: int,
    eps: float = 1e-5,
    elementwise_affine: bool = True,
    export: bool = False,
    implementation: str = "torch",
) -> nn.Module:
    """Return a layer normalisation over the last dimension.

    Args:
        normalized_shape: channels.
        eps: added to the variance.
        elementwise_affine: learn a scale and a shift.
        export: accepted for old callers.
        implementation: ``torch`` or ``apex`` (NVIDIA apex, which must be installed with its
            CUDA extensions; the package of that name on PyPI is something else).

    Raises:
        ConfigError: if apex is asked for and not usable.
    """
    if implementation == "apex":
        return _apex_layer_norm()(normalized_shape, eps, elementwise_affine)
    return nn.LayerNorm(normalized_shape, eps, elementwise_affine)


def _apex_layer_norm() -> Any:
    try:
        from apex.normalization import FusedLayerNorm
    except ImportError as error:
        raise ConfigError(
            "--layer-norm apex needs NVIDIA apex built with its CUDA extensions "
            "(github.com/NVIDIA/apex, not the PyPI package 'apex'); use --layer-norm torch"
        ) from error
    return FusedLayerNorm


def gelu(x: Tensor) -> Tensor:
    """Return the exact GELU, computed in fp32. Source: Hendrycks and Gimpel 2016, section 2."""
    return F.gelu(x.float()).type_as(x) if x.dtype == torch.float16 else F.gelu(x)


def gelu_accurate(x: Tensor) -> Tensor:
    """Return the tanh approximation of the GELU. Source: Hendrycks and Gimpel 2016, section 2."""
    return F.gelu(x, approximate="tanh")


def linear(x: Tensor) -> Tensor:
    """Return ``x``."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": gelu,
    "gelu_fast": gelu_accurate,
    "gelu_accurate": gelu_accurate,
    "tanh": torch.tanh,
    "linear": linear,
    "swish": F.silu,
}


def get_activation_fn(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation called ``name``; raise ``ConfigError`` for an unknown one."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation '{name}'{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def get_available_activation_fns() -> list[str]:
    """Return the names of the activation functions."""
    return list(ACTIVATIONS)
