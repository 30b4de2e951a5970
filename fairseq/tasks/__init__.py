"""Tasks: the registry, its decorator, and the names that plug-ins import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq import catalog
from fairseq.dataclass import FairseqDataclass
from fairseq.errors import RegistryError
from fairseq.lazy import lazy_names
from fairseq.registry import DataclassView, Registry, config_class, register_class

TASK_REGISTRY = Registry("task", catalog.TASKS)
TASK_DATACLASS_REGISTRY = DataclassView(TASK_REGISTRY)
TASK_CLASS_NAMES: set[str] = set()


def register_task(name: str, dataclass: type | None = None) -> Callable[[type], type]:
    """Return a decorator that registers a task class.

    A name registered twice keeps its first class.

    Raises:
        ValueError: if the class does not extend ``FairseqTask``, or two classes share a name.
    """

    def decorate(cls: type) -> type:
        from fairseq.tasks.base import FairseqTask

        if cls.__name__ in TASK_CLASS_NAMES and name not in TASK_REGISTRY:
            raise RegistryError(f"Cannot register task with duplicate class name ({cls.__name__})")
        registered = register_class(TASK_REGISTRY, name, dataclass, FairseqTask, True)(cls)
        TASK_CLASS_NAMES.add(registered.__name__)
        return registered

    return decorate


def get_task(name: str) -> Any:
    """Return the task class of that name."""
    return TASK_REGISTRY[name]


def setup_task(cfg: Any, **kwargs: Any) -> Any:
    """Set up the task that ``cfg`` (a configuration or a Namespace) names."""
    name = getattr(cfg, "task", None)
    if not isinstance(name, str):
        name = getattr(cfg, "_name", None)
    if name is None:
        raise RegistryError("the configuration names no task; give --task")
    cls = TASK_REGISTRY[name]
    dataclass = config_class(cls)
    if dataclass is not None and not isinstance(cfg, dataclass):
        cfg = dataclass.from_namespace(cfg)
    return cls.setup_task(cfg, **kwargs)


__getattr__, __dir__, _names = lazy_names(
    __name__,
    {"FairseqTask": "fairseq.tasks.base", "LegacyFairseqTask": "fairseq.tasks.base"},
)
__all__ = ["FairseqDataclass", "get_task", "register_task", "setup_task"]
