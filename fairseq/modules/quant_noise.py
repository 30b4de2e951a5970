"""Quantisation noise, which plug-ins wrap their layers in: here it can only be off."""

from __future__ import annotations

from torch import nn

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
