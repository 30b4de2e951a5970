"""The YAML reader: recipes in the sections of the original's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.config.yaml_text import read_yaml_file
from fairseq.errors import ConfigError, did_you_mean
from fairseq.files.io import require_file

MOST_INCLUDES = 200
RECIPES = Path(__file__).resolve().parent.parent / "recipes"  # they come with the package
PACKAGE = re.compile(r"\s*#\s*@package\s+(\S+)")


def read_yaml(*paths: str) -> dict[str, Any]:
    """Read recipes: mappings of sections (``common``, ``task``, ``model``, ...) to values.

    A recipe is a file, or the name of one that comes with the package.

    Of several recipes, later ones win. A recipe may begin with a ``defaults`` list, which means
    what it means to Hydra: ``name`` is a recipe beside it, ``group: name`` one in the folder
    ``group``, ``_self_`` its own content (last, if not named); later ones win here, too. What comes
    out of a folder stands in the section of that name, unless it begins with ``# @package
    _global_``. A section ``hydra`` is ignored.

    Raises:
        MissingFileError: if there is no such file.
        ConfigError: if it is no YAML mapping (the message names the line), or asks of Hydra what
            only Hydra does.
    """
    result: dict[str, Any] = {}
    for path in paths:
        file = require_file(_packaged(path), "configuration file", _hint(path))
        result = stacked(result, _composed(file, (), [])[0])
    return result


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _packaged(path: str) -> str:
    """Return the recipe of the package for ``NAME`` or ``recipes/NAME.yaml``; a file goes first."""
    named = Path(path)
    is_ours = named.parent in (Path("."), Path("recipes")) and named.suffix in ("", ".yaml")
    ours = RECIPES / f"{named.stem}.yaml"
    return str(ours) if is_ours and ours.is_file() and not named.is_file() else path


def _hint(path: str) -> str:
    names = recipe_names()
    close = did_you_mean(Path(path).stem, names)
    return f"--config takes a YAML file, or a recipe of the package: {', '.join(names)}{close}"


def stacked(low: Mapping[str, object], high: Mapping[str, object]) -> dict[str, Any]:
    """Return two recipes as one; ``high`` wins, and wholly if it is the dump of a run.

    Over such a dump, ``high`` is stated as well, but the dump keeps the names of its components:
    see :mod:`fairseq.config.stated`.
    """
    if "stated" in high:
        return {**low, **high}
    result = _merged(low, high)
    if isinstance(dumped := low.get("stated"), dict):
        values = {section: stated for section, stated in high.items() if isinstance(stated, dict)}
        names = {
            section: {"_name": stated["_name"]}
            for section, stated in dumped.items()
            if isinstance(stated, dict) and "_name" in stated
        }
        result["stated"] = _merged(_merged(dumped, values), names)
    return result


def _composed(
    file: Path, above: tuple[Path, ...], included: list[Path]
) -> tuple[dict[str, Any], bool]:
    """Return what a recipe amounts to, and whether it keeps to the section of its folder.

    Raises:
        ConfigError: as above, or if recipes include each other in a circle or without end.
    """
    included.append(file)
    if len(included) > MOST_INCLUDES:
        raise ConfigError(f"{included[0]} includes more than {MOST_INCLUDES} recipes")
    if file in above:
        raise ConfigError(f"{file} includes itself: {' > '.join(path.name for path in above)}")
    own_values, is_global = _content(file)
    entries = own_values.pop("defaults", None) or []
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: defaults must be a list of recipes")
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    result: dict[str, Any] = {}
    for entry in entries:
        if entry == "_self_":
            result = _merged(result, own_values)
            continue
        group, name = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if not name:
            continue
        part = file.parent / str(group) / f"{name}.yaml"
        if not part.is_file():
            raise ConfigError(
                f"{file} composes {entry}, but there is no {part}. Packages of Hydra's and its "
                "search path need fairseq-hydra-train --config-dir FOLDER --config-name NAME"
            )
        content, in_section = _composed(part, (*above, file), included)
        result = _merged(result, {str(group): content} if group and in_section else content)
    return result, not is_global


def _content(file: Path) -> tuple[dict[str, Any], bool]:
    """Return a recipe's own text as a mapping, and whether it is global."""
    content, text = read_yaml_file(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold sections such as 'task:' and 'model:'")
    content.pop("hydra", None)
    package = PACKAGE.match(text)
    is_global = package is not None and package[1] == "_global_"
    return {str(key): value for key, value in content.items()}, is_global


def _merged(low: Mapping[str, object], high: Mapping[str, object]) -> dict[str, Any]:
    """Return two nested mappings as one; where both have a value, ``high`` wins."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        result[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return result
