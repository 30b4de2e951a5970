"""Settings for parameters by name: ``--param-groups "embed=lr*0.1,norm=wd0"``.

A pattern is a part of a parameter's name, or, if it holds ``*``, ``?`` or ``[``, a shell pattern of
the whole name. Every pattern that fits counts; of two that set the same, the later one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from fairseq.errors import ConfigError

Settings = dict[str, Any]
_ACTION = re.compile(r"(lr\*|wd)(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)")
_FORM = "rules look like 'embed=lr*0.1,norm=wd0': a part of the name, then lr*FACTOR or wdVALUE"


def read_rules(text: str) -> list[tuple[str, Settings]]:
    """Read ``--param-groups`` into pairs (pattern, settings of a group).

    Raises:
        ConfigError: if a rule is not of the form ``PATTERN=lr*FACTOR`` or ``PATTERN=wdVALUE``.
    """
    rules: list[tuple[str, Settings]] = []
    for rule in filter(None, map(str.strip, text.split(","))):
        pattern, _, action = map(str.strip, rule.rpartition("="))
        match = _ACTION.fullmatch(action)
        if not pattern or match is None:
            raise ConfigError(f"--param-groups: cannot read '{rule}'; {_FORM}")
        value = float(match[2])
        if match[1] == "wd":
            rules.append((pattern, {"weight_decay": value}))
        elif value > 0:
            rules.append((pattern, {"lr_scale": value}))
        else:
            raise ConfigError(f"--param-groups: '{rule}': the factor of a rate must be above 0")
    return rules


def fits(pattern: str, name: str) -> bool:
    """Tell whether ``pattern`` is a part of ``name``, or a shell pattern of all of it."""
    return fnmatchcase(name, pattern) if re.search(r"[*?[]", pattern) else pattern in name


def fitting(flag: str, pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that ``pattern`` fits.

    Raises:
        ConfigError: if there is none; ``flag`` is named.
    """
    names = list(names)
    fit = [name for name in names if fits(pattern, name)]
    if not fit:
        raise ConfigError(
            f"{flag}: '{pattern}' is in the name of no parameter that is trained; these are "
            + ", ".join(names[:5])
            + (f" and {len(names) - 5} others" if len(names) > 5 else "")
        )
    return fit


def arrange(
    named: Mapping[str, Tensor], rules: str, by_optimizer: Mapping[str, Settings]
) -> list[dict[str, Any]]:
    """Return torch parameter groups: parameters of the same settings lie together.

    Args:
        named: the parameters, in the order of the model; groups come by their first one.
        rules: ``--param-groups``. What they set is listed in the group as ``"by_rule"``.
        by_optimizer: settings that the optimizer asks for, by name.

    Raises:
        ConfigError: for a rule that cannot be read or fits nothing.
    """
    ruled: dict[str, Settings] = {name: {} for name in named}
    for pattern, settings in read_rules(rules):
        for name in fitting("--param-groups", pattern, named):
            ruled[name].update(settings)
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in named.items():
        settings = dict(by_optimizer.get(name, {}))
        if ruled[name]:
            settings |= {**ruled[name], "by_rule": sorted(ruled[name])}
        # settings are plain values: equal text means equal settings
        group = groups.setdefault(repr(sorted(settings.items())), {"params": [], **settings})
        group["params"].append(tensor)
    return list(groups.values())
