"""Registries: names of components, known without importing the code behind them.

A :class:`Registry` is a mapping from name to class. Its rows come from the static catalogue
(``name -> "module:attribute"``, imported on first access), from the decorators of plug-ins, and
from the entry-point group ``fairseq.plugins`` of installed packages.
"""

from __future__ import annotations

import argparse
import importlib
import logging
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fairseq.aliases import NAMES
from fairseq.config.ranges import check_fields
from fairseq.config.refused import REFUSED_WORDS, why_refused
from fairseq.config.schema import FairseqDataclass
from fairseq.errors import RegistryError, did_you_mean
from fairseq.lazy import lazy_names

logger = logging.getLogger(__name__)
__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


def load_attribute(target: str) -> Any:
    """Import ``"package.module:attribute"`` and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry(UserDict[str, Any]):
    """A lazy mapping of names to objects.

    Args:
        kind: what the names stand for ("model", "task"), for messages.
        rows: static rows, ``name -> "module:attribute"``.
    """

    def __init__(self, kind: str, rows: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._catalogue = dict(rows or {})
        super().__init__(self._catalogue)

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            if name in REFUSED_WORDS:
                raise RegistryError(f"{self.kind} '{name}': {why_refused(name)}")
            hint = did_you_mean(str(name), self.data)
            raise RegistryError(
                f"unknown {self.kind} '{name}'{hint}. Is a --user-dir missing? "
                f"Known: {', '.join(sorted(self.data))}"
            )
        value = self.data[name]
        if isinstance(value, str):
            value = self.data[name] = load_attribute(value)
        return value

    def claim(self, name: str, value: object) -> bool:
        """Put ``value`` under ``name``, unless a plug-in has that name already.

        A plug-in takes a name of the catalogue over, with a warning. The module behind a row of
        the catalogue registers itself when it is imported, which changes nothing for a plug-in.

        Returns:
            False if the name belongs to another plug-in.
        """
        row, holder = self._catalogue.get(name), self.data.get(name)
        if row is not None and _target(value) == row:
            if holder == row or holder is None:
                self.data[name] = value
            return True
        if holder is not None and not (row is not None and row in (holder, _target(holder))):
            return False
        if holder is not None:
            logger.warning(
                "the plug-in %s replaces the %s '%s' of fairseq; rename it to have both",
                _target(value),
                self.kind,
                name,
            )
        self.data[name] = value
        return True


def _target(value: object) -> str:
    """Return where a class or function was defined, as rows of the catalogue write it."""
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"


class DataclassView(Mapping[str, Any]):
    """The configuration classes of a registry: ``name -> dataclass`` for those that have one."""

    def __init__(self, registry: Mapping[str, object]) -> None:
        self._registry = registry

    def __getitem__(self, name: str) -> Any:
        kind = config_class(self._registry[name])
        if kind is None:
            raise KeyError(name)
        return kind

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._registry if config_class(self._registry[name]) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._registry and config_class(self._registry[str(name)]) is not None


def config_class(component: object) -> Any:
    """Return the dataclass stored on a registered class by its decorator, or None."""
    return getattr(component, "__dataclass", None)


def register_class(
    registry: Registry,
    name: str,
    dataclass: type | None = None,
    base_class: type | None = None,
    keep_first: bool = False,
) -> Callable[[type], type]:
    """Return the class decorator behind every ``register_*``.

    Args:
        registry: where the row goes.
        name: the word that users write.
        dataclass: configuration class; it is stored on the class as ``__dataclass``.
        base_class: class the component must derive from.
        keep_first: of two plug-ins' classes the first is returned, instead of raising.

    Raises:
        RegistryError: on a name that two plug-ins register, or a class or dataclass of the wrong
            kind.
    """

    def decorate(cls: type) -> type:
        if base_class is not None and not issubclass(cls, base_class):
            raise RegistryError(
                f"{registry.kind} '{name}': {cls.__name__} must extend {base_class.__name__}"
            )
        if dataclass is not None and not issubclass(dataclass, FairseqDataclass):
            raise RegistryError(
                f"{registry.kind} '{name}': {dataclass.__name__} must extend FairseqDataclass"
            )
        if not registry.claim(name, cls):
            if keep_first:
                return registry[name]
            raise RegistryError(f"Cannot register duplicate {registry.kind} ({name})")
        setattr(cls, "__dataclass", dataclass)
        return cls

    return decorate


# What setup_registry was called for: {"criterion": {"registry": ..., "default": ...}, ...}
REGISTRIES: dict[str, dict[str, Any]] = {}


def setup_registry(
    registry_name: str,
    base_class: type | None = None,
    default: str | None = None,
    required: bool = False,
    registry: Registry | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any], Registry, DataclassView]:
    """Create a registry with its builder and decorator.

    Args:
        registry_name: flag name such as ``"--lr-scheduler"``.
        base_class: class that every component must extend.
        default: name used when none is given.
        required: whether building without a name is an error.
        registry: one that exists already; a new, empty one if None.

    Returns:
        ``(build_x, register_x, REGISTRY, DATACLASS_REGISTRY)``.

    Raises:
        RegistryError: if there is a registry of that name.
    """
    key = registry_name.lstrip("-").replace("-", "_")
    if key in REGISTRIES:
        raise RegistryError(f"there is a registry '{key}' already")
    registry = Registry(key) if registry is None else registry
    view = DataclassView(registry)

    def build_x(cfg: object, *args: object, **kwargs: object) -> Any:
        """Build the component that ``cfg`` names; None if it names none."""
        name, config = _choose(cfg, key, registry)
        if name is None:
            if required:
                raise RegistryError(f"{key} is required! Choose one of {', '.join(registry)}")
            return None
        if isinstance(config, FairseqDataclass) and not config.is_frozen():
            check_fields(config, key)  # of a frozen one that was done before
        cls = registry[name]
        factory = getattr(cls, f"build_{key}", cls)
        return factory(config, *args, **kwargs)

    def register_x(name: str, dataclass: type | None = None) -> Callable[[type], type]:
        """Register a class under ``name``."""
        return register_class(registry, name, dataclass, base_class)

    REGISTRIES[key] = {"registry": registry, "default": default, "dataclass_registry": view}
    return build_x, register_x, registry, view


def _choose(cfg: object, key: str, registry: Registry) -> tuple[str | None, Any]:
    """Return the component's name and configuration from a config, a name or a Namespace.

    A flat Namespace holds the settings of all components: its ``_name`` may be another's.
    """
    if cfg is None:
        return None, None
    if isinstance(cfg, str):
        cfg = {"_name": cfg}
    get = cfg.get if isinstance(cfg, Mapping) else lambda name: getattr(cfg, name, None)
    name = get("_name") or get(key)
    if isinstance(cfg, argparse.Namespace) and isinstance(getattr(cfg, key, ""), str | None):
        name = getattr(cfg, key, name)
    return name, cfg if name is None else typed_config(registry[name], cfg)


def typed_config(component: type, cfg: object) -> Any:
    """Return ``cfg`` as the configuration class of ``component``.

    Args:
        component: a registered class; one without configuration class gets ``cfg`` as it is.
        cfg: a configuration, mapping or Namespace; settings the component lacks are dropped.
    """
    dataclass = config_class(component)
    if dataclass is None or isinstance(cfg, FairseqDataclass):
        return cfg
    values = dict(cfg) if isinstance(cfg, Mapping) else vars(cfg)
    return dataclass.from_namespace(argparse.Namespace(**values))
