"""Optimizers: the registry, and the names that plug-ins import from here.

The precision wrappers are imported when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fairseq.config.registries import OPTIMIZER_REGISTRY
from fairseq.config.registry import setup_registry
from fairseq.errors import UnsupportedError
from fairseq.lazy import lazy_names
from fairseq.optim.base import FairseqOptimizer, LegacyFairseqOptimizer, trainable
from fairseq.optim.read_settings import setting

__all__ = [
    "OPTIMIZER_DATACLASS_REGISTRY",
    "OPTIMIZER_REGISTRY",
    "REFUSED",
    "AMPOptimizer",
    "FP16Optimizer",
    "FairseqOptimizer",
    "LegacyFairseqOptimizer",
    "MemoryEfficientFP16Optimizer",
    "build_optimizer",
    "register_optimizer",
]

# Optimizers of the original that are left out on purpose: name -> why, and what to use instead.
REFUSED = {
    "lamb": "it needs the LAMB kernel of NVIDIA apex; use adam",
    "cpu_adam": "it needs DeepSpeed; adam is fused on the CPU, too",
    "composite": "parameter groups with own optimizers are not supported; use one optimizer",
}

_build, register_optimizer, _rows, OPTIMIZER_DATACLASS_REGISTRY = setup_registry(
    "--optimizer", base_class=FairseqOptimizer, required=True, registry=OPTIMIZER_REGISTRY
)

__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "AMPOptimizer": "fairseq.optim.amp_optimizer",
        "FP16Optimizer": "fairseq.optim.fp16_optimizer",
        "MemoryEfficientFP16Optimizer": "fairseq.optim.fp16_optimizer",
    },
)


def build_optimizer(cfg: Any, params: Iterable[Any], *extra: Any) -> FairseqOptimizer:
    """Build the optimizer that ``cfg`` names.

    Args:
        cfg: its configuration (with ``_name``), a flat namespace (with ``optimizer``) or a name.
        params: tensors, dicts ``name -> tensor``, or torch parameter groups; what requires no
            gradient is left out.
        *extra: passed on to the class.

    Raises:
        RegistryError: if no optimizer is named, or an unknown one.
        UnsupportedError: if the original's optimizer is left out here; the reason is given.
    """
    name = cfg if isinstance(cfg, str) else setting(cfg, "_name") or setting(cfg, "optimizer")
    if name in REFUSED and name not in OPTIMIZER_REGISTRY:
        raise UnsupportedError(f"--optimizer {name} is not supported: {REFUSED[name]}")
    return _build(cfg, trainable(params), *extra)
