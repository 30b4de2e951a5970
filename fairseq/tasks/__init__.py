"""Tasks: the registry, its decorator, and the names that plug-ins import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fairseq import catalog
from fairseq.config.plugins import import_modules
from fairseq.config.references import settled_alone
from fairseq.config.registries import TASK_REGISTRY
from fairseq.config.registry import DataclassView, register_class, typed_config
from fairseq.config.schema import FairseqDataclass
from fairseq.errors import RegistryError
from fairseq.lazy import lazy_names
from fairseq.protocols import Settings

TASK_DATACLASS_REGISTRY = DataclassView(TASK_REGISTRY)
# checkpoints file the state of a task under the name of its class
TASK_CLASS_NAMES = {target.partition(":")[2] for target in catalog.TASKS.values()}
import_tasks = import_modules


def register_task(name: str, dataclass: type | None = None) -> Callable[[type], type]:
    """Return a decorator that registers a task class.

    A name that two plug-ins register keeps its first class.

    Raises:
        RegistryError: if the class does not extend ``FairseqTask``, or two classes share a name.
    """

    def decorate(cls: type) -> type:
        from fairseq.tasks.base import FairseqTask

        if name not in TASK_REGISTRY and cls.__name__ in TASK_CLASS_NAMES:
            raise RegistryError(f"Cannot register task with duplicate class name ({cls.__name__})")
        registered = register_class(TASK_REGISTRY, name, dataclass, FairseqTask, True)(cls)
        TASK_CLASS_NAMES.add(registered.__name__)
        return registered

    return decorate


def get_task(name: str) -> Any:
    """Return the task class of that name."""
    return TASK_REGISTRY[name]


def setup_task(cfg: Settings, **kwargs: Any) -> Any:
    """Set up the task that ``cfg`` names.

    Args:
        cfg: its configuration (with ``_name``), or a Namespace or mapping with ``task``.
        **kwargs: passed on to the class's ``setup_task``.
    """
    get = cfg.get if isinstance(cfg, Mapping) else lambda key: getattr(cfg, key, None)
    task = get("task")
    name = task if isinstance(task, str) else get("_name")
    if name is None:
        raise RegistryError("the configuration names no task; give --task")
    cls = TASK_REGISTRY[name]
    config = settled_alone(typed_config(cls, cfg))
    return cls.setup_task(config, **kwargs)


__getattr__, __dir__, _names = lazy_names(
    __name__,
    {"FairseqTask": "fairseq.tasks.base", "LegacyFairseqTask": "fairseq.tasks.base"},
)
__all__ = [
    "TASK_CLASS_NAMES",
    "TASK_DATACLASS_REGISTRY",
    "TASK_REGISTRY",
    "FairseqDataclass",
    "FairseqTask",
    "LegacyFairseqTask",
    "get_task",
    "import_tasks",
    "register_task",
    "setup_task",
]
