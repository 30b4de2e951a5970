"""Plug-ins: ``--user-dir`` folders and packages with a ``fairseq.plugins`` entry point.

Next to the lazy name tables these are the only imports decided at run time. Both are honoured from
the command line or the environment of the user alone, never from a checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fairseq.errors import ConfigError, MissingFileError

_entry_points_loaded: set[str] = set()


def import_user_module(args: Any) -> ModuleType | None:
    """Import the package that ``args.user_dir`` names, once.

    The folder becomes a top-level package of its own name; the modules in its ``tasks`` and
    ``models`` subfolders are imported with it.

    Args:
        args: a Namespace or configuration with ``user_dir``.

    Raises:
        MissingFileError: if the folder does not exist.
        ConfigError: if a module of that name was imported from somewhere else.
    """
    load_entry_points()
    named = getattr(args, "user_dir", None)
    if named is None:
        return None
    folder = _locate(named)
    name = folder.name
    if not name.isidentifier():
        raise ConfigError(f"--user-dir {folder}: '{name}' cannot be imported; rename the folder")
    present = sys.modules.get(name)
    if present is not None:
        origin = Path(getattr(present, "__file__", None) or ".").resolve().parent
        if origin == folder:
            return present
        raise ConfigError(
            f"--user-dir {folder}: a module called '{name}' is already imported from {origin}; "
            "rename the folder"
        )
    sys.path.insert(0, str(folder.parent))
    module = importlib.import_module(name)
    for part in ("tasks", "models"):
        for file in sorted((folder / part).glob("[!_.]*.py")):
            importlib.import_module(f"{name}.{part}.{file.stem}")
    return module


def _locate(named: str) -> Path:
    package = Path(__file__).resolve().parent
    for base in (Path.cwd(), package, package.parent):
        folder = (base / os.path.expanduser(named)).resolve()
        if folder.is_dir():
            return folder
    raise MissingFileError(
        f"--user-dir: no folder {named} (looked in {Path.cwd()} and {package.parent}); "
        "it must be a Python package that registers your models, tasks or criterions"
    )


def load_entry_points() -> None:
    """Import every installed package that declares a ``fairseq.plugins`` entry point, once."""
    for entry in importlib.metadata.entry_points(group="fairseq.plugins"):
        if entry.value not in _entry_points_loaded:
            _entry_points_loaded.add(entry.value)
            entry.load()


def import_from_argv(argv: Sequence[str] | None) -> None:
    """Import the ``--user-dir`` of a command line before its flags are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--user-dir", default=None)
    import_user_module(parser.parse_known_args(argv)[0])
