"""Components: which exist, what their settings are, and how settings become a configuration.

Names come from the catalogue and from plug-ins; asking for names imports nothing, asking for a
class imports its package.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from fairseq.config import plugins
from fairseq.config.build import Component, build_config, plain, settings_of
from fairseq.config.flags import Flags, gen_parser_from_dataclass
from fairseq.config.registries import ARCH_CONFIG_REGISTRY, CHOICES, model_class
from fairseq.config.registry import config_class
from fairseq.config.resolve import resolve
from fairseq.config.sections import COMPONENTS, SECTIONS, FairseqConfig
from fairseq.config.stated import statements, without_replaced


def known_names(flag: str) -> list[str]:
    """Return the names that ``flag`` accepts: the catalogue's, and those of plug-ins."""
    return sorted(CHOICES[flag])


def class_of(flag: str, name: str) -> Any:
    """Return the class of a component; for ``arch`` the model's."""
    if flag == "arch":
        return model_class(name)
    return CHOICES[flag][name]


def describe_component(section: str, name: str) -> Component:
    """Return what :func:`fairseq.config.build.build_config` must know of a component."""
    cls = class_of(COMPONENTS[section], name)
    preset = None
    if section == "model":
        preset = ARCH_CONFIG_REGISTRY.get(name)
    dataclass = config_class(cls)
    legacy = _legacy_defaults(cls, section == "model") if dataclass is None else {}
    return Component(dataclass, legacy, preset)


def add_legacy_flags(parser: Flags, cls: type, is_model: bool) -> None:
    """Add the flags of a plug-in without dataclass: its own, then those of what it extends.

    Args:
        parser: what they are added to.
        cls: the class of the component.
        is_model: flags that are not given leave the choice to the preset.
    """
    if hasattr(cls, "add_args"):
        cls.add_args(parser)
    parent = next((dc for base in cls.__mro__ if (dc := vars(base).get("__dataclass"))), None)
    if parent is not None:
        gen_parser_from_dataclass(parser, parent(), delete_default=is_model)


def _legacy_defaults(cls: type, is_model: bool) -> dict[str, Any]:
    """Return what the flags of a plug-in without dataclass are if nobody gives them."""
    parser = argparse.ArgumentParser(
        add_help=False, argument_default=argparse.SUPPRESS if is_model else None
    )
    add_legacy_flags(parser, cls, is_model)
    for action in parser._actions:
        action.required = False
    return vars(parser.parse_args([]))


def make_config(
    flat: Mapping[str, object],
    sections: Mapping[str, object] | None = None,
    strict: bool = True,
    settle: bool = True,
    reach: Collection[str] = tuple(SECTIONS),
) -> FairseqConfig:
    """Put a configuration together and settle it; see :func:`fairseq.config.build.build_config`.

    Args:
        flat: flat values, such as flags.
        sections: nested values, such as YAML.
        strict: unknown keys in ``sections`` are errors.
        settle: run :func:`fairseq.config.resolve.resolve`.
        reach: shared sections that flat values reach; a command that has no flags of one may have
            a plug-in's of the same name.
    """
    nested: dict[str, Any] = plain(sections or {})
    if strict:
        nested = without_replaced(
            nested, flat, describe_component, lambda recipe: make_config({}, recipe)
        )
    config = build_config(flat, nested, describe=describe_component, strict=strict, reach=reach)
    config.stated = statements(flat, nested, config, reach) if strict else {}
    return resolve(config) if settle else config


def draft_for_plugins(config: FairseqConfig) -> FairseqConfig:
    """Return a copy that can be written to if a component is a plug-in's, else the same object.

    Plug-ins complete their settings while they are built, as those of the original do.
    """
    for section, flag in COMPONENTS.items():
        name = getattr(getattr(config, section), "_name", None)
        if name is None or name not in CHOICES[flag]:
            continue
        if not str(class_of(flag, name).__module__).startswith("fairseq."):
            return config.thawed()
    return config


def as_config(cfg: object, strict: bool = False) -> FairseqConfig:
    """Return any kind of configuration (Namespace, DictConfig, dict, ours) as ours, resolved.

    Args:
        cfg: the configuration; the ``user_dir`` it names is imported.
        strict: see :func:`make_config`; for nested configurations.
    """
    if isinstance(cfg, (FairseqConfig, argparse.Namespace)):
        plugins.import_user_module(cfg.common if isinstance(cfg, FairseqConfig) else cfg)
        if isinstance(cfg, FairseqConfig):
            return resolve(cfg)
        return make_config({key: value for key, value in vars(cfg).items() if value is not None})
    nested = plain(cfg)
    plugins.import_user_module(argparse.Namespace(**settings_of(nested, "common")))
    return make_config({}, nested, strict=strict)
