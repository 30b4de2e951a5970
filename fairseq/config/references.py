"""References: ``${section.key}`` in values and defaults stands for another setting.

Nothing else is evaluated: no environment, no resolvers, no expressions.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import re
from typing import Any, TypeVar

from fairseq.config.schema import (
    REFERENCE,
    FairseqDataclass,
    coerce,
    default_of,
    is_reference,
    public_fields,
)
from fairseq.config.sections import FairseqConfig
from fairseq.errors import ConfigError

logger = logging.getLogger(__name__)

_PLACE = re.compile(r"\$\{[^{}]*\}")
Component = TypeVar("Component")
NOWHERE = object()  # what :func:`lookup` returns for a path that leads nowhere


def interpolate(config: FairseqConfig, strict: bool = True) -> None:
    """Replace every reference in the sections of ``config`` by what it refers to, in place.

    A reference may be a whole value (which keeps its type) or part of a text. One that is the
    default of its field and refers to a section that is absent becomes None.

    Args:
        config: all sections.
        strict: otherwise what cannot be resolved is replaced by the default, with a warning.

    Raises:
        ConfigError: if references form a circle, refer to nothing, or are more than a path.
    """
    for top in dataclasses.fields(config):
        _settle(getattr(config, top.name), config, top.name, strict)


def settled_alone(component: Component) -> Component:
    """Return a component that is used alone with the defaults that its references refer to.

    One without references, or a frozen one, is returned itself.
    """
    if not isinstance(component, (FairseqDataclass, argparse.Namespace)):
        return component
    if isinstance(component, FairseqDataclass) and component.is_frozen():
        return component
    if not any(map(_refers, vars(component).values())):
        return component
    made = copy.deepcopy(component)
    _settle(made, FairseqConfig(), type(component).__name__)
    return made


def _refers(value: Any) -> bool:
    if isinstance(value, FairseqDataclass):
        return any(map(_refers, vars(value).values()))
    return is_reference(value)


def _settle(section: object, root: FairseqConfig, name: str, strict: bool = True) -> None:
    if isinstance(section, argparse.Namespace):
        for key, value in vars(section).items():
            if is_reference(value):
                setattr(section, key, _value(value, None, root, f"{name}.{key}", strict))
    elif isinstance(section, FairseqDataclass):
        for field, kind in public_fields(type(section)):
            value, place = getattr(section, field.name), f"{name}.{field.name}"
            if isinstance(value, FairseqDataclass):
                inner = copy.deepcopy(value)  # it may be the default that all instances share
                _settle(inner, root, place, strict)
                setattr(section, field.name, inner)
            elif is_reference(value):
                settled = _value(value, default_of(field), root, place, strict)
                setattr(section, field.name, coerce(settled, kind, place))


def _value(text: str, default: Any, root: FairseqConfig, place: str, strict: bool) -> Any:
    """Return what ``text`` stands for, the default instead if that is wrong and not ``strict``."""
    try:
        return _follow(text, root, place, (), optional=text == default)
    except ConfigError as error:
        if strict:
            raise
        logger.warning("%s (ignored)", error)
        return _follow(default, root, place, (), True) if is_reference(default) else default


def _follow(
    text: str, root: FairseqConfig, place: str, seen: tuple[str, ...], optional: bool = False
) -> Any:
    """Return what ``text`` stands for; ``seen`` are the paths that led here."""

    def value_at(reference: str) -> Any:
        match = REFERENCE.match(reference)
        if match is None:
            raise not_evaluated(reference, place)
        path = match[1]
        if path in seen:
            raise ConfigError(f"circular reference: {' -> '.join((*seen, path))}")
        value = lookup(root, path)
        if value is NOWHERE:
            if optional:
                return None
            raise ConfigError(f"{place} refers to {path}, which does not exist")
        return _follow(value, root, place, (*seen, path), True) if is_reference(value) else value

    if REFERENCE.match(text):
        return value_at(text)
    if "${" in _PLACE.sub("", text):
        return value_at(text)
    return _PLACE.sub(lambda match: str(value_at(match[0])), text)


def not_evaluated(text: object, place: str) -> ConfigError:
    """Return the error for a ``${...}`` that is more than a path."""
    return ConfigError(
        f"{place}: {text} is not evaluated; only ${{section.key}} is, no environment variables and "
        "no resolvers. Write the value itself"
    )


def lookup(root: object, path: str) -> Any:
    """Return the value at ``path`` (``"section.key"``) in ``root``, or ``NOWHERE``."""
    for part in path.split("."):
        root = root.get(part, NOWHERE) if isinstance(root, dict) else getattr(root, part, NOWHERE)
    return root
