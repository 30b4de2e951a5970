"""Activation checkpointing under its old name."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fairseq.errors import UnsupportedError


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
