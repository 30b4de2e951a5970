"""Criterions: the registry, its decorator, and the names that plug-ins import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq.config.registries import CRITERION_REGISTRY
from fairseq.config.registry import register_class, setup_registry
from fairseq.lazy import lazy_names
from fairseq.protocols import Settings, Task

_build, _register, _rows, CRITERION_DATACLASS_REGISTRY = setup_registry(
    "--criterion", default="cross_entropy", registry=CRITERION_REGISTRY
)


def register_criterion(name: str, dataclass: type | None = None) -> Callable[[type], type]:
    """Return a decorator that registers a criterion class.

    Raises:
        RegistryError: if the class does not extend ``FairseqCriterion`` or the name is taken.
    """
    from fairseq.criterions.base import FairseqCriterion

    return register_class(CRITERION_REGISTRY, name, dataclass, FairseqCriterion)


def build_criterion(cfg: Settings, task: Task, from_checkpoint: bool = False) -> Any:
    """Build the criterion that ``cfg`` names for ``task``; the last argument is for old callers."""
    return _build(cfg, task)


__getattr__, __dir__, _names = lazy_names(
    __name__,
    {
        "FairseqCriterion": "fairseq.criterions.base",
        "LegacyFairseqCriterion": "fairseq.criterions.base",
    },
)
__all__ = [
    "CRITERION_DATACLASS_REGISTRY",
    "CRITERION_REGISTRY",
    "FairseqCriterion",
    "LegacyFairseqCriterion",
    "build_criterion",
    "register_criterion",
]
