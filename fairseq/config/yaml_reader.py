"""The YAML reader: recipes in the sections of the original's configuration."""

from __future__ import annotations

from typing import Any

from fairseq.errors import ConfigError
from fairseq.file_io import require_file


def read_yaml(path: str) -> dict[str, Any]:
    """Read a recipe: a mapping of sections (``common``, ``task``, ``model``, ...) to values.

    A first line ``# @package _group_`` and a section ``hydra`` are allowed and ignored.

    Raises:
        MissingFileError: if there is no such file.
        ConfigError: if it is no YAML mapping (the message names the line), or composes other files.
    """
    import yaml

    file = require_file(path, "configuration file", "Check --config.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections such as 'task:' and 'model:'")
    for entry in content.pop("defaults", None) or []:
        if entry != "_self_" and not (isinstance(entry, dict) and not any(entry.values())):
            raise ConfigError(
                f"{path} composes other files (defaults: {entry}), which only Hydra does: use "
                "fairseq-hydra-train --config-dir FOLDER --config-name NAME"
            )
    content.pop("hydra", None)
    return {str(key): value for key, value in content.items()}
