"""``--compile``: layers, or the whole model, run forward and backward by torch.compile.

Modules are compiled in place, so names in checkpoints stay. What the compiler cannot follow runs as
it does without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fairseq.errors import ConfigError
from fairseq.modules.transformer_layer import TransformerLayer

BACKEND: Any = "inductor"


def compile_parts(model: nn.Module, kind: str, device: torch.device) -> None:
    """Let calls of a model, or of its layers, be compiled when they first happen.

    Args:
        model: not wrapped; changed in place.
        kind: ``off``, ``layer`` or ``full``.
        device: where it will compute.

    Raises:
        ConfigError: if nothing can be compiled on this machine, or the model has no layers of ours.
    """
    if kind == "off":
        return
    layers = [module for module in model.modules() if isinstance(module, TransformerLayer)]
    parts = [model] if kind == "full" else layers
    if not parts:
        raise ConfigError(
            f"--compile layer: {type(model).__name__} has no layers to compile; use full or off"
        )
    _try(kind, device)
    for part in parts:
        part.compile(backend=BACKEND)


def _try(kind: str, device: torch.device) -> None:
    """Compile something small: better now than in the middle of the first update."""
    try:
        torch.compile(torch.sin, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # compilers fail in their own ways
        inner = getattr(error, "inner_exception", error)  # what a backend raised itself
        cause = (str(inner).strip() or type(inner).__name__).splitlines()[0]
        raise ConfigError(
            f"--compile {kind} does not work on this machine: {cause}. It needs a C++ compiler on "
            "a CPU, and Triton on a GPU; use --compile off"
        ) from error
