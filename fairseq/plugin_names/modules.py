"""Quantisation noise, which plug-ins wrap their layers in: here it can only be off."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fairseq.errors import UnsupportedError


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
        offload_to_cpu: not supported.

    Raises:
        UnsupportedError: if activations are to be offloaded.
    """
    if offload_to_cpu:
        raise UnsupportedError("--offload-activations is not supported; recompute them instead")
    original = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(original, *args, use_reentrant=False, **kwargs)

    module.forward = forward
    return module
