"""Layer normalisation: PyTorch's by default, NVIDIA apex's on request."""

from __future__ import annotations

from typing import Any

from torch import nn

from fairseq.errors import ConfigError


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
