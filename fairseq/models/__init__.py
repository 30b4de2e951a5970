"""Models: the registry, its decorators, and the names that plug-ins import.

``register_model`` names a class; ``register_model_architecture`` names a function that fills in the
settings which the user left open.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fairseq.aliases import NAMES
from fairseq.config.build import plain
from fairseq.config.plugins import import_modules
from fairseq.config.references import settled_alone
from fairseq.config.registries import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
    MODEL_REGISTRY,
    model_class,
)
from fairseq.config.registry import register_class, typed_config
from fairseq.config.schema import FairseqDataclass
from fairseq.errors import RegistryError
from fairseq.lazy import lazy_names
from fairseq.protocols import Settings, Task

import_models = import_modules


def register_model(name: str, dataclass: type | None = None) -> Callable[[type], type]:
    """Return a decorator that registers a model class.

    Args:
        name: what users write.
        dataclass: its configuration; if given, an architecture of the same name exists too.

    Raises:
        RegistryError: if the class does not extend :class:`BaseFairseqModel`.
    """

    def decorate(cls: type) -> type:
        from fairseq.models.base import BaseFairseqModel

        registered = register_class(
            MODEL_REGISTRY, name, dataclass, BaseFairseqModel, keep_first=True
        )(cls)
        if dataclass is not None and name not in ARCH_CONFIG_REGISTRY:
            register_model_architecture(name, name)(_no_preset)
        return registered

    return decorate


def _no_preset(args: argparse.Namespace) -> None:
    """Leave everything to the dataclass."""


def register_model_architecture(
    model_name: str, arch_name: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that registers a preset: a function that sets what ``args`` leaves open.

    Raises:
        RegistryError: for an unknown model, a name that two plug-ins register, or something not
            callable.
    """

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        if model_name not in MODEL_REGISTRY:
            raise RegistryError(
                f"Cannot register model architecture for unknown model type ({model_name})"
            )
        if not callable(fn):
            raise RegistryError(f"Model architecture must be callable ({arch_name})")
        if not ARCH_CONFIG_REGISTRY.claim(arch_name, fn):
            raise RegistryError(f"Cannot register duplicate model architecture ({arch_name})")
        if ARCH_CONFIG_REGISTRY[arch_name] is not fn:
            return fn  # one of ours, which a plug-in replaced before
        before = ARCH_MODEL_NAME_REGISTRY.get(arch_name)
        if before != model_name:
            if before is not None:
                ARCH_MODEL_INV_REGISTRY[before].remove(arch_name)
            ARCH_MODEL_INV_REGISTRY.setdefault(model_name, []).append(arch_name)
        ARCH_MODEL_NAME_REGISTRY[arch_name] = model_name
        ARCH_MODEL_REGISTRY[arch_name] = model_name
        return fn

    return decorate


def fill_in(args: argparse.Namespace, **defaults: object) -> None:
    """Set what ``args`` leaves open, as presets do."""
    for name, value in defaults.items():
        if not hasattr(args, name):
            setattr(args, name, value)


def build_model(cfg: Settings, task: Task, from_checkpoint: bool = False) -> Any:
    """Build the model that ``cfg._name`` (or ``cfg.arch``) names.

    Args:
        cfg: its configuration; a Namespace or mapping gets the architecture's preset applied.
        task: the task it will serve.
        from_checkpoint: accepted for old callers.
    """
    if not isinstance(cfg, FairseqDataclass):
        cfg = argparse.Namespace(**plain(cfg))
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    if name is None:
        raise RegistryError("the model configuration names no architecture; give --arch")
    cls = model_class(name)
    if isinstance(cfg, argparse.Namespace) and name in ARCH_CONFIG_REGISTRY:
        ARCH_CONFIG_REGISTRY[name](cfg)
    config = settled_alone(typed_config(cls, cfg))
    return cls.build_model(config, task)


__getattr__, __dir__, _names = lazy_names(
    __name__,
    {
        **NAMES[__name__],
        "BaseFairseqModel": "fairseq.models.base",
        "FairseqDecoder": "fairseq.models.base",
        "FairseqEncoder": "fairseq.models.base",
        "FairseqEncoderDecoderModel": "fairseq.models.base",
        "FairseqEncoderModel": "fairseq.models.base",
        "FairseqLanguageModel": "fairseq.models.base",
    },
)
__all__ = [
    "ARCH_CONFIG_REGISTRY",
    "ARCH_MODEL_INV_REGISTRY",
    "ARCH_MODEL_NAME_REGISTRY",
    "ARCH_MODEL_REGISTRY",
    "MODEL_DATACLASS_REGISTRY",
    "MODEL_REGISTRY",
    "BaseFairseqModel",
    "FairseqDataclass",
    "FairseqDecoder",
    "FairseqEncoder",
    "FairseqEncoderDecoderModel",
    "FairseqEncoderModel",
    "FairseqIncrementalDecoder",
    "FairseqLanguageModel",
    "build_model",
    "import_models",
    "register_model",
    "register_model_architecture",
]
