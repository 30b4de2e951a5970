"""When a product, a loss or a mask is wanted in a form that PyTorch can transform.

Autograd functions of our own know values and gradients. ``torch.func`` (gradients of each sample,
``vmap``, ``jvp``), forward derivatives, tracers and modes that look at every operation want
operations of PyTorch itself: ``auto`` then takes the backend that is made of them.
"""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad


def is_transformed() -> bool:
    """Tell whether ``torch.func`` or forward-mode differentiation is at work."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Tell whether operations are compiled, traced, counted or transformed as they run."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or is_transformed()
    )
