"""From text to one configuration: flags, YAML, checkpoints and Namespaces all end here.

:func:`build_config` is the only place that puts a :class:`FairseqConfig` together. Later wins:
dataclass default, architecture preset, YAML section, flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fairseq.config.refused import REFUSED, check_refused
from fairseq.config.schema import REFERENCE, FairseqDataclass, coerce, public_fields
from fairseq.config.sections import COMPONENTS, SECTIONS, FairseqConfig
from fairseq.config.upgrade import upgrade_args
from fairseq.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

# (component section, name) -> its configuration class, or None for a component that has none
ConfigClassOf = Callable[[str, str], Any]
# (architecture, namespace of the values given) -> fills in the missing ones
ApplyArch = Callable[[str, argparse.Namespace], None]


def plain(value: Any) -> Any:
    """Return configurations, DictConfigs, Namespaces and enums as dicts, lists and scalars."""
    if type(value).__module__.split(".")[0] == "omegaconf" and "omegaconf" in sys.modules:
        from omegaconf import OmegaConf

        value = OmegaConf.to_container(value, resolve=False, enum_to_str=True)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, FairseqDataclass):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _assign(config: Any, values: Mapping[str, Any], section: str) -> set[str]:
    """Set the fields of ``config`` that ``values`` states; return their names."""
    used = set()
    for field, kind in public_fields(type(config)):
        if field.name in values:
            setattr(config, field.name, coerce(values[field.name], kind, f"{section}.{field.name}"))
            used.add(field.name)
    return used


def _reject_unknown(section: str, config: Any, values: Mapping[str, Any], strict: bool) -> None:
    known = {field.name for field, _ in public_fields(type(config))}
    for key in set(values) - known - {"_name"}:
        if key in REFUSED:
            if strict:
                check_refused(key, values[key])
        elif strict:
            hint = did_you_mean(key, known)
            raise ConfigError(f"unknown key {section}.{key}{hint}")
        else:
            logger.debug("ignored unknown key %s.%s", section, key)


def _component(
    section: str,
    name: str,
    given: Mapping[str, Any],
    nested: Mapping[str, Any],
    config_class_of: ConfigClassOf,
    apply_arch: ApplyArch,
    strict: bool,
) -> Any:
    """Build the configuration of one component."""
    dataclass = config_class_of(section, name)
    if section != "model":
        if dataclass is None:
            return argparse.Namespace(**{**given, **nested, "_name": name})
        config = dataclass()
        config._name = name
        stated = {**nested, **given}
        _assign(config, upgrade_args(stated, section), section)
        _reject_unknown(section, config, upgrade_args(nested, section), strict)
        return config
    names = None if dataclass is None else {f.name for f, _ in public_fields(dataclass)}
    stated = upgrade_args({**nested, **given}, section)
    args = argparse.Namespace(**stated)
    args.arch = name
    apply_arch(name, args)
    if names is None:
        args._name = name
        return args
    values = upgrade_args(vars(args), section)
    config = dataclass()
    config._name = name
    _assign(config, values, section)
    _reject_unknown(section, config, upgrade_args(nested, section), strict)
    return config


def build_config(
    given: Mapping[str, Any],
    sections: Mapping[str, Any] | None = None,
    *,
    config_class_of: ConfigClassOf,
    apply_arch: ApplyArch,
    strict: bool = True,
) -> FairseqConfig:
    """Put a configuration together.

    Args:
        given: flat values by field name (flags, or a Namespace's attributes); each reaches every
            section that has a field of that name. ``arch``, ``task``, ... name the components.
        sections: nested values (YAML, checkpoint); a component is a dict with ``_name`` or a name.
        config_class_of: looks up a component's dataclass.
        apply_arch: runs an architecture's preset on the values given for the model.
        strict: unknown keys in ``sections`` are errors; otherwise they are dropped.

    Raises:
        ConfigError: for values that cannot be read and, if ``strict``, unknown keys.
    """
    nested = {key: plain(value) for key, value in (sections or {}).items()}
    _check_sections(nested, strict)
    config = FairseqConfig()
    for key, cls in SECTIONS.items():
        instance = cls()
        values = nested.get(key) or {}
        _assign(instance, {**values, **given}, key)
        _reject_unknown(key, instance, values, strict)
        setattr(config, key, instance)
    for key, flag in COMPONENTS.items():
        values = nested.get(key)
        stated: dict[str, Any] = (
            {"_name": values} if isinstance(values, str) else dict(values or {})
        )
        name = given.get(flag) or stated.pop("_name", None) or stated.get(flag)
        if name is not None:
            section = _component(key, str(name), given, stated, config_class_of, apply_arch, strict)
            setattr(config, key, section)
    interpolate(config)
    return config


def _check_sections(nested: Mapping[str, Any], strict: bool) -> None:
    known = {*SECTIONS, *COMPONENTS, "scoring", "bmuf", "simul_type", "job_logging_cfg", "_name"}
    known |= {"hydra", "defaults"}
    for key in nested:
        if key not in known and strict:
            raise ConfigError(f"unknown section '{key}'{did_you_mean(key, known)}")


def lookup(config: Any, path: str) -> Any:
    """Return the value at ``path`` (``"section.key"``), None if there is no such place."""
    for part in path.split("."):
        if config is None:
            return None
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def interpolate(config: FairseqConfig) -> None:
    """Replace every ``"${section.key}"`` by the value it points to, in place.

    Nothing else is evaluated: no environment, no resolvers, no expressions.

    Raises:
        ConfigError: if references form a circle.
    """

    def follow(value: Any, seen: tuple[str, ...]) -> Any:
        match = REFERENCE.match(value) if isinstance(value, str) else None
        if match is None:
            return value
        if match[1] in seen:
            raise ConfigError(f"circular reference: {' -> '.join((*seen, match[1]))}")
        return follow(lookup(config, match[1]), (*seen, match[1]))

    for top in dataclasses.fields(config):
        section = getattr(config, top.name)
        if isinstance(section, FairseqDataclass):
            for field, kind in public_fields(type(section)):
                value = getattr(section, field.name)
                if isinstance(value, str) and REFERENCE.match(value):
                    resolved = coerce(follow(value, ()), kind, f"{top.name}.{field.name}")
                    setattr(section, field.name, resolved)


def flatten(config: FairseqConfig) -> argparse.Namespace:
    """Return a flat Namespace with every value of ``config``, as the original's parser gives."""
    flat: dict[str, Any] = {}
    for top in dataclasses.fields(config):
        section = getattr(config, top.name)
        if isinstance(section, argparse.Namespace):
            flat.update(vars(section))
        elif isinstance(section, FairseqDataclass):
            flat.update({f.name: getattr(section, f.name) for f, _ in public_fields(type(section))})
        if top.name in COMPONENTS:
            flat[COMPONENTS[top.name]] = getattr(section, "_name", None)
    flat.pop("_name", None)
    return argparse.Namespace(**flat)
