"""Criterions: the registry, its decorator, and the names that plug-ins import."""

from __future__ import annotations

from typing import Any

from fairseq import catalog
from fairseq.lazy import lazy_names
from fairseq.registry import setup_registry

(
    build_criterion_,
    register_criterion_,
    CRITERION_REGISTRY,
    CRITERION_DATACLASS_REGISTRY,
) = setup_registry("--criterion", default="cross_entropy", rows=catalog.CRITERIONS)


def register_criterion(name: str, dataclass: type | None = None) -> Any:
    """Return a decorator that registers a criterion class.

    Raises:
        ValueError: if the class does not extend ``FairseqCriterion`` or the name is taken.
    """
    from fairseq.criterions.base import FairseqCriterion
    from fairseq.registry import register_class

    return register_class(CRITERION_REGISTRY, name, dataclass, FairseqCriterion)


def build_criterion(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
    """Build the criterion that ``cfg`` names for ``task``."""
    return build_criterion_(cfg, task)


__getattr__, __dir__, _names = lazy_names(
    __name__,
    {
        "FairseqCriterion": "fairseq.criterions.base",
        "LegacyFairseqCriterion": "fairseq.criterions.base",
    },
)
__all__ = ["CRITERION_REGISTRY", "build_criterion", "register_criterion"]
