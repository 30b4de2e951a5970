"""Optimizers: the registry, and the names that plug-ins import from here.

The precision wrappers are imported when they are first asked for.
"""

from __future__ import annotations

from typing import Any

from fairseq.config.refused import REFUSED_WORDS, why_refused
from fairseq.config.registries import OPTIMIZER_REGISTRY
from fairseq.config.registry import setup_registry
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.lazy import lazy_names
from fairseq.optim.base import (
    FairseqOptimizer,
    LegacyFairseqOptimizer,
    Params,
    named_trainable,
    trainable,
)
from fairseq.optim.param_groups import arrange
from fairseq.optim.read_settings import setting

__all__ = [
    "OPTIMIZER_DATACLASS_REGISTRY",
    "OPTIMIZER_REGISTRY",
    "AMPOptimizer",
    "FP16Optimizer",
    "FairseqOptimizer",
    "LegacyFairseqOptimizer",
    "MemoryEfficientFP16Optimizer",
    "build_optimizer",
    "groups_by_name",
    "register_optimizer",
]

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


def _name(cfg: object) -> Any:
    return cfg if isinstance(cfg, str) else setting(cfg, "_name") or setting(cfg, "optimizer")


def groups_by_name(cfg: object, param_groups: str = "") -> bool:
    """Tell whether parameters are grouped by their names: by rules, or by the optimizer itself."""
    return bool(param_groups) or getattr(
        OPTIMIZER_REGISTRY.get(_name(cfg)), "splits_by_name", False
    )


def build_optimizer(
    cfg: object, params: Params, *extra: object, param_groups: str = ""
) -> FairseqOptimizer:
    """Build the optimizer that ``cfg`` names.

    Args:
        cfg: its configuration (with ``_name``), a flat namespace (with ``optimizer``) or a name.
        params: tensors, dicts ``name -> tensor``, or torch parameter groups; what requires no
            gradient is left out.
        *extra: passed on to the class.
        param_groups: rules by name, see :mod:`fairseq.optim.param_groups`.

    Raises:
        RegistryError: if no optimizer is named, or an unknown one.
        ConfigError: if parameters are to be grouped by names and have none, or a rule is wrong.
        UnsupportedError: if the original's optimizer is left out here; the reason is given.
    """
    name, params = _name(cfg), list[Any](params)
    if name in REFUSED_WORDS and name not in OPTIMIZER_REGISTRY:
        raise UnsupportedError(f"--optimizer {why_refused(name)}")
    if not groups_by_name(cfg, param_groups):
        return _build(cfg, trainable(params), *extra)
    named = named_trainable(params)
    if not named:
        trainable(params)  # says so if nothing is trained
        raise ConfigError(
            f"--optimizer {name} and --param-groups go by names: give dicts of name and tensor"
        )
    by_optimizer = OPTIMIZER_REGISTRY[name].settings_by_name(cfg, named)
    optimizer: FairseqOptimizer = _build(cfg, arrange(named, param_groups, by_optimizer), *extra)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
        has_decay = "weight_decay" in optimizer.optimizer.defaults
        if "weight_decay" in group.get("by_rule", ()) and not has_decay:
            raise ConfigError(f"--param-groups: --optimizer {name} has no weight decay to set")
    return optimizer
