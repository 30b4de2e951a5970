"""What every value must fulfil: numbers lie in the range of their field, paths know ``~``.

The range stands with the field (``option(..., minimum=, maximum=, above=, below=)``), plug-ins'
fields included. :func:`check_fields` is the only place that compares, wherever the value came from.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from fairseq.config.schema import (
    FairseqDataclass,
    default_of,
    is_reference,
    parse_literal,
    public_fields,
)
from fairseq.errors import ConfigError

logger = logging.getLogger(__name__)

# key of a field's metadata -> how it reads, and what a number must fulfil
BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "maximum": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}


def check_config(config: FairseqDataclass, stated: Collection[str] | None = None) -> None:
    """Check every section of a configuration; see :func:`check_fields`."""
    for top in dataclasses.fields(config):
        if isinstance(section := getattr(config, top.name), FairseqDataclass):
            check_fields(section, top.name, stated)


def check_fields(
    config: FairseqDataclass, place: str = "", stated: Collection[str] | None = None
) -> None:
    """Check the numbers of a configuration and write out ``~`` in its paths, in place.

    The default of a field is always accepted: -1 often stands for "not given". A field of numbers
    that may be any accepts every finite one.

    Args:
        config: one section; its references are resolved.
        place: the section's name, for messages.
        stated: fields that the user set; what is wrong in another one, which an old file may hold,
            becomes its default with a warning. None: the user set all of them.

    Raises:
        ConfigError: naming the field, the value and the range.
    """
    for field, _ in public_fields(type(config)):
        value = getattr(config, field.name)
        if isinstance(value, FairseqDataclass):
            check_fields(value, f"{place}.{field.name}", stated)
            continue
        if field.metadata.get("path") and isinstance(value, str) and "~" in value:
            setattr(config, field.name, expand_home(value))
            continue
        problem = _problem(value, default_of(field), field.metadata)
        if problem is None:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        message = f"{flag} ({f'{place}.{field.name}'.lstrip('.')}) {problem}"
        default = default_of(field)
        if stated is None or field.name in stated or is_reference(default):
            raise ConfigError(message)
        logger.warning("%s; %s is taken instead", message, default)
        setattr(config, field.name, default)


def expand_home(paths: str) -> str:
    """Return paths joined by ``:`` with ``~`` and ``~user`` at the front of each written out."""
    return os.pathsep.join(os.path.expanduser(path) for path in paths.split(os.pathsep))


def _problem(value: object, default: object, bounds: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a value, None if nothing is."""
    if value is None or value == default or isinstance(value, bool):
        return None
    limits = [(f"{word} {bounds[key]}", key) for key, (word, _) in BOUNDS.items() if key in bounds]
    if isinstance(value, str):
        if not limits:
            return None
        try:
            value = parse_literal(value)
        except ConfigError as error:
            return f"must be a number or several: {error}"
    if limits and isinstance(value, (list, tuple)) and not value:
        return "is empty: give at least one number"
    for number in _numbers(value):
        if not math.isfinite(number):
            return f"must be a finite number, not {number}"
        if not all(BOUNDS[key][1](number, bounds[key]) for _, key in limits):
            return f"must be {' and '.join(text for text, _ in limits)}, not {number}"
    return None


def _numbers(value: object) -> Iterator[float]:
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            yield item
