"""What Hydra may read: recipes within bounds, whose defaults compute nothing."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairseq.config.references import not_evaluated
from fairseq.config.yaml_text import read_yaml_file
from fairseq.errors import ConfigError

MOST_LOOKUPS = 1000  # a plain recipe needs about 50, most of them for Hydra's own settings
RESOLVER = re.compile(r"\$\{[^{}]*[:$]|\$\{\s*[^\w.{}]")


@contextlib.contextmanager
def checked_recipes() -> Iterator[None]:
    """Check every file that Hydra reads while entered, before Hydra reads it.

    Hydra's loader expands aliases, includes the same recipes again and again, and evaluates
    resolvers (``${oc.env:X}``) in a defaults list: a recipe that does so is refused.

    Raises:
        ConfigError: naming the file and, for a syntax error, the line.
    """
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # loads the class that reads files, which it registers
    reader: Any = SourcesRegistry.instance().resolve("file")
    lookups, look_up, load = 0, CachingConfigRepository.load_config, reader.load_config

    def counted(self: Any, config_path: str) -> Any:
        nonlocal lookups
        lookups += 1
        if lookups > MOST_LOOKUPS:
            raise ConfigError(f"the recipes include each other too often (last: {config_path})")
        return look_up(self, config_path)

    def checked(self: Any, config_path: str) -> Any:
        file = Path(os.path.realpath(os.path.join(self.path, config_path)))
        if not file.name.endswith((".yaml", ".yml")):
            file = file.with_name(f"{file.name}.yaml")
        if file.is_file():
            _check_recipe(file)
        return load(self, config_path)

    repository: Any = CachingConfigRepository
    try:
        repository.load_config, reader.load_config = counted, checked
        yield
    finally:
        repository.load_config, reader.load_config = look_up, load


def refuse_resolver(text: object, place: str) -> None:
    """Refuse ``${name:...}`` where Hydra would evaluate it while it composes."""
    if RESOLVER.search(str(text)):
        raise not_evaluated(text, place)


def _check_recipe(file: Path) -> None:
    content, _ = read_yaml_file(file)
    if not isinstance(content, dict):
        return
    for entry in content.get("defaults") or ():
        refuse_resolver(entry, f"{file}: defaults")
    hydra = content.get("hydra")
    search = hydra.get("searchpath") if isinstance(hydra, dict) else None
    if search is not None and "pkg://" in str(search):
        raise ConfigError(
            f"{file}: hydra.searchpath names a package, which would be imported; only the command "
            "line may name code"
        )
