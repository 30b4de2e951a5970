"""Reading the configuration values that optimizers and learning-rate schedules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairseq.config.schema import REFERENCE, parse_literal
from fairseq.errors import ConfigError


def require_value(value: object, flag: str) -> Any:
    """Return ``value`` unless it is missing or a reference that nobody resolved.

    Args:
        value: a configuration value.
        flag: the flag behind it, for the message.

    Raises:
        ConfigError: if ``value`` is None or still reads ``"${section.key}"``.
    """
    if value is None or (isinstance(value, str) and REFERENCE.match(value)):
        raise ConfigError(f"{flag} has no value; give it one")
    return value


def numbers(value: object, flag: str) -> list[float]:
    """Read ``"(0.9, 0.98)"``, ``"1e-3"``, a number or any sequence of numbers into a list.

    Args:
        value: text, a number, or a sequence.
        flag: the flag behind it, for the message.

    Raises:
        ConfigError: if there is no value or it holds something other than numbers.
    """
    value = require_value(value, flag)
    if isinstance(value, str):
        value = parse_literal(value)
    # a configuration of OmegaConf brings lists of its own kind: any iterable of numbers will do
    items: Any = [value] if isinstance(value, (int, float)) else value
    try:
        return [float(item) for item in items]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{flag}: {value!r} is not a number or a list of numbers") from error


def pair(value: object, flag: str) -> tuple[float, float]:
    """Read exactly two numbers, such as ``"(0.9, 0.98)"``; see :func:`numbers`."""
    both = numbers(value, flag)
    if len(both) != 2:
        raise ConfigError(f"{flag} takes two numbers such as '(0.9, 0.98)', got {value!r}")
    return both[0], both[1]


def learning_rates(cfg: object) -> list[float]:
    """Return the list behind ``--lr``, which is never empty.

    Raises:
        ConfigError: if ``cfg.lr`` is missing, empty or not made of numbers.
    """
    rates = numbers(setting(cfg, "lr"), "--lr")
    if not rates:
        raise ConfigError("--lr is empty; give at least one learning rate")
    return rates


def setting(cfg: object, path: str, default: object = None) -> Any:
    """Return ``cfg.a.b`` for the path ``"a.b"``; ``default`` if something is missing or None."""
    value = cfg
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return default if value is None else value


def single_rate(cfg: object, name: str) -> float:
    """Return the only learning rate of ``cfg``.

    Raises:
        ConfigError: if there are several.
    """
    rates = learning_rates(cfg)
    if len(rates) > 1:
        raise ConfigError(
            f"--lr-scheduler {name} takes one learning rate, got {len(rates)}; "
            "a list, one entry per epoch, is for --lr-scheduler fixed"
        )
    return rates[0]


def unless_negative(value: float, default: float) -> float:
    """Return ``value`` unless it is negative, which stands for "not given"."""
    return value if value >= 0 else default
