"""Activation functions by the names of the original's flags."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean


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
