"""Package names that are imported on first use (PEP 562), so that importing a package is free."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fairseq.errors import ConfigError


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``(__getattr__, __dir__, __all__)`` for the ``__init__`` of ``package``.

    Args:
        package: its ``__name__``.
        names: public name -> module that defines it; a module that ends in the name stands for
            itself.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(names[name])
        value = module if names[name].endswith(f".{name}") else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, listing, sorted(names)


def require_library(name: str, purpose: str, package: str = "") -> Any:
    """Import and return the third-party module ``name``.

    Args:
        name: the module.
        purpose: what needs it, for the message ("--bpe gpt2").
        package: what to install; that of the module's name if not given.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = package or name
        raise ConfigError(
            f"{purpose} needs the package '{package}', which cannot be imported ({error}). "
            f"Install it: pip install {package}"
        ) from error
