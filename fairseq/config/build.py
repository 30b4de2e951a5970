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
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from fairseq.config.ranges import check_config
from fairseq.config.references import interpolate, lookup
from fairseq.config.refused import REFUSED, check_refused, is_accepted
from fairseq.config.schema import MISSING, REFERENCE, FairseqDataclass, assign, public_fields
from fairseq.config.sections import COMPONENTS, DEFAULT_COMPONENTS, SECTIONS, FairseqConfig
from fairseq.config.upgrade import OLD_NAMES, upgrade_args
from fairseq.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

# Sections of the original that hold nothing of ours, and what Hydra adds.
_FOREIGN = {"scoring", "bmuf", "simul_type", "job_logging_cfg", "hydra", "defaults", "_name"}
_FOREIGN |= {"stated"}  # see fairseq.config.stated

Sections = dict[str, Any]  # by section: settings by name


class Component(NamedTuple):
    """What must be known of a component to configure it.

    Attributes:
        dataclass: its configuration class, None for a plug-in that reads a flat Namespace.
        legacy_defaults: defaults of the flags such a plug-in adds to the parser itself.
        preset: the architecture function: sets what the Namespace it is given leaves open.
    """

    dataclass: Any
    legacy_defaults: Mapping[str, Any] = {}
    preset: Callable[[Any], Any] | None = None


# (section, name) -> the component; raises RegistryError for an unknown name
Describe = Callable[[str, str], Component]


def plain(value: object) -> Any:
    """Return configurations, DictConfigs, Namespaces and enums as dicts, lists and scalars."""
    # nobody can hand over a DictConfig without having imported omegaconf, which takes long
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


def build_config(
    flat: Mapping[str, object],
    sections: Mapping[str, object] | None = None,
    *,
    describe: Describe,
    strict: bool = True,
    reach: Collection[str] = tuple(SECTIONS),
) -> FairseqConfig:
    """Put a configuration together.

    Args:
        flat: flat values by field name (flags, or a Namespace's attributes); each reaches every
            section that has a field of that name. ``arch``, ``task``, ... name the components.
        sections: nested values (YAML, checkpoint); a component is a dict with ``_name`` or a name.
        describe: looks up a component.
        strict: unknown and refused keys are errors, and so is a value that is marked as missing;
            otherwise such keys are dropped with a warning.
        reach: shared sections that flat values reach.

    Raises:
        ConfigError: for values that cannot be read or are out of range and, if ``strict``, unknown
            keys; what only an old file says out of range becomes the default, with a warning.
        RegistryError: for the name of a component that does not exist.
    """
    nested = _as_sections(plain(sections or {}), strict)
    if strict:
        for field in REFUSED.keys() & flat.keys():
            check_refused(field, flat[field])
    config = FairseqConfig()
    unknown: dict[str, list[str]] = {}
    for key in SECTIONS:
        from_sections = upgrade_args(nested.get(key, {}), key)
        section: Any = getattr(config, key)
        stated = {**from_sections, **upgrade_args(flat if key in reach else {}, key, flat=True)}
        assign(section, stated, key)
        unknown[key] = _check_keys(key, from_sections, stated, section, strict)
    for key, flag in COMPONENTS.items():
        values = nested.get(key, {})
        own_name = values.get("_name") or values.get(flag)
        name = flat.get(flag) or own_name or (DEFAULT_COMPONENTS.get(flag) if strict else None)
        if name is None:
            if strict and values:
                raise ConfigError(f"section '{key}' does not say which: add _name: NAME")
            continue
        # settings of another component say nothing about this one
        same = strict and (key == "model" or name == own_name)
        component, unknown[key] = _component(key, str(name), flat, values, describe, same)
        setattr(config, key, component)
    _complete_legacy(config)
    interpolate(config, strict)
    check_config(config, None if strict else flat.keys())
    _warn_of_unknown(unknown, config, strict)
    return config


def _as_sections(nested: dict[str, Any], strict: bool) -> dict[str, dict[str, Any]]:
    """Return every section as a dict, a component's bare name as ``{"_name": name}``."""
    known = {*SECTIONS, *COMPONENTS, *_FOREIGN}
    sections = {}
    for key, values in nested.items():
        if key not in known and strict:
            raise ConfigError(f"unknown section '{key}'{did_you_mean(key, known)}")
        if values is None or key in _FOREIGN:
            bmuf = settings_of(nested, key) if strict and key == "bmuf" else {}
            for name in REFUSED.keys() & bmuf.keys():
                check_refused(name, bmuf[name])
        elif isinstance(values, str) and key in COMPONENTS:
            sections[key] = {"_name": values}
        elif isinstance(values, dict):
            sections[key] = values
        elif strict:
            settings_of(nested, key)
    return sections


def settings_of(nested: Mapping[str, object], section: str) -> dict[str, Any]:
    """Return a section of plain settings, empty if it is missing.

    Raises:
        ConfigError: if it is something else than a mapping.
    """
    values = nested.get(section)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"section '{section}' must hold settings, not {values!r}")
    return values or {}


def _component(
    section: str,
    name: str,
    flat: Mapping[str, object],
    nested: Mapping[str, object],
    describe: Describe,
    strict: bool,
) -> tuple[Any, list[str]]:
    """Return the configuration of one component, and the keys of ``nested`` it does not know."""
    known = describe(section, name)
    from_section = _renamed(nested, section, known.dataclass)
    stated = {**from_section, **_renamed(flat, section, known.dataclass, flat=True)}
    values = {**known.legacy_defaults, **stated}
    if known.preset is not None:
        before = {**nested, **flat, **values}  # a preset may ask for old names or for new ones
        args = argparse.Namespace(**{**before, "arch": name})
        known.preset(args)
        added = {
            key: value
            for key, value in vars(args).items()
            if key not in stated and not (key in before and before[key] == value)
        }
        # what it adds in old names must not overrule what the user said in new ones
        values |= _renamed(added, section, known.dataclass)
        values |= {key: vars(args)[key] for key in stated}
    if known.dataclass is None:
        return argparse.Namespace(**{**values, "_name": name}), []
    config = known.dataclass()
    config._name = name
    assign(config, values, section)
    return config, _check_keys(section, from_section, stated, config, strict)


def _renamed(
    values: Mapping[str, object], section: str, dataclass: type, flat: bool = False
) -> dict[str, Any]:
    """Return ``values`` under today's names, but as they are for a plug-in without dataclass."""
    if dataclass is None:
        return dict(values)
    return upgrade_args(
        values, section, flat, [field.name for field in dataclasses.fields(dataclass)]
    )


def _check_keys(
    section: str,
    from_section: Mapping[str, object],
    stated: Mapping[str, object],
    config: FairseqDataclass,
    strict: bool,
) -> list[str]:
    """Return the keys that ``config`` lacks; refuse them, and missing values, if ``strict``."""
    known = {field.name for field, _ in public_fields(type(config))}
    surplus = [key for key in from_section if key not in known and not key.startswith("_")]
    if strict:
        for key in surplus:
            if key in REFUSED:
                check_refused(key, from_section[key])
            elif not (section == "model" and key == "arch"):
                raise ConfigError(f"unknown key {section}.{key}{did_you_mean(key, known)}")
        for key in sorted(known):
            if MISSING in (stated.get(key), getattr(config, key)):
                raise ConfigError(f"{section}.{key} is required, but has no value")
    return [key for key in surplus if key not in REFUSED or not is_accepted(key, from_section[key])]


def _complete_legacy(config: FairseqConfig) -> None:
    """Give components that read a flat Namespace every setting of the run."""
    flat = vars(flatten(config))
    for key in COMPONENTS:
        section = getattr(config, key)
        if isinstance(section, argparse.Namespace):
            for name, value in flat.items():
                if not hasattr(section, name):
                    setattr(section, name, value)


def _warn_of_unknown(unknown: Mapping[str, list[str]], config: FairseqConfig, strict: bool) -> None:
    """Name the dropped keys that no section knows (flat settings are copied into models)."""
    if strict:
        return
    known = {*vars(flatten(config)), *OLD_NAMES, *COMPONENTS.values()}
    for section, keys in unknown.items():
        dropped = sorted(key for key in keys if key not in known and key not in _MEANINGLESS)
        if dropped:
            logger.warning("ignored settings of section %s: %s", section, ", ".join(dropped))


# What the original copies into other sections, or writes although nothing reads it.
_MEANINGLESS = {"tpu", "pad", "eos", "unk", "no_seed_provided", "scoring", "simul_type"}


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
    # every section has one; a component's stands under its flag, such as arch
    flat.pop("_name", None)
    return argparse.Namespace(**flat)


def recipe_of(config: FairseqConfig) -> dict[str, Any]:
    """Return nested plain values from which the same configuration can be built.

    What merely repeats another section is left out, so that a change of the setting it comes from
    (``optimization.lr``) still reaches the copies.
    """
    recipe = plain(config)
    for top in dataclasses.fields(config):
        section = getattr(config, top.name)
        for field in dataclasses.fields(section) if isinstance(section, FairseqDataclass) else ():
            match = REFERENCE.match(str(field.default))
            # a copy that was changed on purpose differs from its source, and stays
            if match and lookup(config, match[1]) == getattr(section, field.name):
                del recipe[top.name][field.name]
    return {key: values for key, values in recipe.items() if values is not None}
