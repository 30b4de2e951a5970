"""What the user stated, kept beside the full dump of a run's settings.

A run folder keeps every setting, so a recipe made from it says what the architecture of that run
set as well. When another component is named over such a recipe, only what was stated counts, and
what was edited by hand: the rest follows from the new component.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fairseq.config.build import Describe, Sections, plain
from fairseq.config.schema import default_of, is_reference, public_fields
from fairseq.config.sections import COMPONENTS, SECTIONS, FairseqConfig
from fairseq.config.upgrade import OLD_NAMES, upgrade_args
from fairseq.errors import ConfigError, RegistryError
from fairseq.protocols import Settings

KEY = "stated"


def statements(
    flat: Mapping[str, Any],
    sections: Mapping[str, Any],
    config: Settings,
    reach: Collection[str],
) -> Sections:
    """Return what flags and a recipe state, by section.

    Args:
        flat: flat settings.
        sections: the recipe; if it is a run's dump, what it says was stated counts.
        config: the configuration made of both.
        reach: shared sections that flat settings reach.
    """
    told = sections.get(KEY) or {k: v for k, v in sections.items() if k != KEY}
    result: Sections = {}
    for section in (*SECTIONS, *COMPONENTS):
        told_here = told.get(section)
        values = {"_name": told_here} if isinstance(told_here, str) else dict(told_here or {})
        built = getattr(config, section)
        if dataclasses.is_dataclass(built):
            names = {field.name for field, _ in public_fields(type(built))}
            reaching = flat if section in COMPONENTS or section in reach else {}
            owned = names if section in COMPONENTS else ()
            values_here = upgrade_args(reaching, section, True, owned)
        else:
            names, values_here = set() if built is None else set(vars(built)), dict(flat)
        # what the parser notes is not what somebody stated
        names.discard("no_seed_provided")
        values |= {name: plain(value) for name, value in values_here.items() if name in names}
        if dataclasses.is_dataclass(built):  # as the configuration reads it: plain, in its type
            values |= {
                key: plain(getattr(built, key))
                for key, value in values.items()
                if key in names and not is_reference(value)
            }
        if section in COMPONENTS and (name := getattr(built, "_name", None)) is not None:
            values["_name"] = name
        if values:
            result[section] = values
    return result


def without_replaced(
    sections: Sections,
    flat: Mapping[str, object],
    describe: Describe,
    rebuild: Callable[[Sections], FairseqConfig],
) -> Sections:
    """Return a recipe without what followed from components that are replaced.

    Args:
        sections: the recipe.
        flat: flat settings, which may name other components than the recipe.
        describe: looks up a component.
        rebuild: makes the configuration of a recipe, settled.

    Raises:
        ConfigError: if a component is replaced whose section is a full dump, but the recipe does
            not say what was stated.
    """
    stated = {k: v for k, v in dict(sections.get(KEY) or {}).items() if isinstance(v, Mapping)}
    replaced = {
        section: str(name)
        for section, flag in COMPONENTS.items()
        if (name := flat.get(flag) or _name(sections, section)) is not None
        and _name(stated or sections, section) not in (None, str(name))
    }
    if not replaced:
        return sections
    if not stated:
        for section in replaced:
            _refuse_dump(section, sections[section], describe)
        return sections
    before = plain(rebuild(stated))
    result = {section: dict(values) for section, values in stated.items()}
    for section, name in replaced.items():
        result[section] = _of_use_to(describe(section, name).dataclass, result.get(section, {}))
    for section, values in sections.items():
        usual = before.get(section) or {}
        if section == KEY or not isinstance(values, Mapping):
            continue
        # a value that does not follow from the statements was written into the dump by hand
        edited = {k: v for k, v in values.items() if k not in usual or usual[k] != v}
        result[section] = {**result.get(section, {}), **edited}
    for section, name in replaced.items():
        result[section] = {**result.get(section, {}), "_name": name}
    return {section: values for section, values in result.items() if values}


def _name(sections: Mapping[str, object], section: str) -> str | None:
    values = sections.get(section)
    name = values.get("_name") if isinstance(values, Mapping) else values
    return None if name is None else str(name)


def _of_use_to(dataclass: type, values: Mapping[str, object]) -> Sections:
    """Return what a component of this dataclass understands; all of it if it has none."""
    if dataclass is None:
        return dict(values)
    known = {field.name for field, _ in public_fields(dataclass)} | OLD_NAMES
    return {name: value for name, value in values.items() if name in known}


def _refuse_dump(section: str, values: Any, describe: Describe) -> None:
    """Refuse to replace a component whose every setting is written down, as older runs did."""
    flag, name = COMPONENTS[section], str(values.get("_name")) if isinstance(values, dict) else ""
    try:
        dataclass = describe(section, name).dataclass if name else None
    except RegistryError:
        return
    if dataclass is None:
        return
    fields = {f.name for f, _ in public_fields(dataclass) if not is_reference(default_of(f))}
    # of a component with a single setting nobody can tell a dump from a statement
    if len(fields) > 1 and fields <= set(values):
        raise ConfigError(
            f"the recipe holds every setting of the {flag} {name}, so another --{flag} would keep "
            f"them: take what is meant to stay out of its section '{section}', delete the rest"
        )
