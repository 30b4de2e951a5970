"""Plug-ins: ``--user-dir`` folders and packages with a ``fairseq.plugins`` entry point.

Next to the lazy name tables these are the only imports decided at run time. Both are honoured from
the command line or the environment of the user alone, never from a checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import glob
import importlib
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fairseq.errors import ConfigError, MissingFileError

GROUP = "fairseq.plugins"


def import_user_module(args: object) -> ModuleType | None:
    """Import the package that ``args.user_dir`` names, once.

    The folder becomes a top-level package of its own name; the modules in its ``tasks`` and
    ``models`` subfolders are imported with it.

    Args:
        args: a Namespace or configuration with ``user_dir``.

    Raises:
        MissingFileError: if the folder does not exist.
        ConfigError: if it cannot be imported, or its name is taken by another module.
    """
    load_entry_points()
    named = getattr(args, "user_dir", None)
    if named is None:
        return None
    folder = _locate(named)
    name = folder.name
    _check_name(folder, name)
    if str(folder.parent) not in sys.path:  # also where spawned processes look for it
        sys.path.append(str(folder.parent))  # last: what lies beside it hides nothing installed
        importlib.invalidate_caches()
    _check_first(folder, name)
    try:
        module = importlib.import_module(name)
        for part in ("tasks", "models"):
            import_modules(str(folder / part), f"{name}.{part}")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = ([f for f in frames if f.filename.startswith(str(folder))] or frames)[-1]
        raise ConfigError(
            f"--user-dir {folder} cannot be imported: {type(error).__name__}: {error} (raised from "
            f"{place.filename}, line {place.lineno}; FAIRSEQ_DEBUG=1 shows the whole traceback)"
        ) from error
    return module


def refuse_named_code(recipe: object, stated: bool) -> None:
    """Refuse a recipe that names code to run: only the command line may.

    Args:
        recipe: nested settings from a file.
        stated: the command line names a ``user_dir``, which wins.

    Raises:
        ConfigError: naming the folder and the flag that it needs.
    """
    common = recipe.get("common") if isinstance(recipe, Mapping) else None
    wanted = common.get("user_dir") if isinstance(common, Mapping) else None
    if wanted is not None and not stated:
        raise ConfigError(
            f"the recipe wants the code in {wanted}, and only the command line may name code: if "
            f"you trust it, add --user-dir {shlex.quote(str(wanted))} (to fairseq-hydra-train: "
            "common.user_dir=...)"
        )


def import_modules(folder: str, package: str) -> None:
    """Import every module and package in a folder, except names that start with ``_`` or ``.``.

    Args:
        folder: where they lie; it may be absent.
        package: the name they are imported under.
    """
    for path in sorted(Path(folder).glob("[!_.]*")):
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            importlib.import_module(f"{package}.{path.stem}")


def _locate(named: object) -> Path:
    if not isinstance(named, str | os.PathLike):
        raise ConfigError(f"--user-dir is the path of a folder, not {named!r}")
    package = Path(__file__).resolve().parent
    for base in (Path.cwd(), package, package.parent):
        # a link keeps its name, which is the package's
        folder = Path(os.path.abspath(base / os.path.expanduser(named)))
        if folder.is_dir():
            return folder
    raise MissingFileError(
        f"--user-dir: no folder {named} (looked in {Path.cwd()} and {package.parent}); "
        "it must be a Python package that registers your models, tasks or criterions"
    )


def _check_name(folder: Path, name: str) -> None:
    if not name.isidentifier():
        raise _bad_name(folder, f"'{name}' cannot be imported")
    if name in sys.stdlib_module_names:
        raise _bad_name(folder, f"'{name}' is a module of Python itself")
    present: Any = sys.modules.get(name)
    origins = [Path(origin).resolve() for origin in getattr(present, "__path__", ())]
    if present is not None and folder.resolve() not in origins:
        place = origins[0] if origins else getattr(present, "__file__", "elsewhere")
        raise _bad_name(folder, f"a module called '{name}' is already imported from {place}")


def _check_first(folder: Path, name: str) -> None:
    """Refuse a folder that an installed module of the same name comes before."""
    spec = importlib.util.find_spec(name)
    places = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
    if folder.resolve() not in places:
        place = spec.origin if spec else "elsewhere"
        problem = f"a module called '{name}' is installed ({place}) and would be taken instead"
        raise _bad_name(folder, problem)


def _bad_name(folder: Path, problem: str) -> ConfigError:
    return ConfigError(f"--user-dir {folder}: {problem}; rename the folder")


@functools.cache
def load_entry_points() -> None:
    """Import every installed package that declares a ``fairseq.plugins`` entry point, once.

    Raises:
        ConfigError: if one cannot be imported.
    """
    if not any(_may_declare(folder) for folder in sys.path):
        return
    import importlib.metadata  # slow: most of what it imports reads e-mail

    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise ConfigError(
                f"the plug-in '{entry.name}' ({entry.value}) cannot be imported: "
                f"{type(error).__name__}: {error}. Repair it or uninstall its package"
            ) from error


def _may_declare(folder: str) -> bool:
    """Whether a package in this folder of ``sys.path`` may declare a plug-in."""
    if os.path.isfile(folder):
        return True  # packages in an archive are left to the library
    files = glob.iglob(os.path.join(glob.escape(folder or "."), "*-info", "entry_points.txt"))
    return any(GROUP.encode() in Path(file).read_bytes() for file in files)


def import_from_argv(argv: Sequence[str] | None) -> None:
    """Import the ``--user-dir`` of a command line before its flags are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--user-dir", default=None)
    import_user_module(parser.parse_known_args(argv)[0])
