"""What the original needs to prepare Hydra; nothing is to be prepared here."""

from __future__ import annotations

from typing import Any


def hydra_init(cfg_name: str = "config") -> None:
    """Do nothing: every reader of configurations knows the dataclasses already."""


def add_defaults(cfg: Any) -> None:
    """Do nothing: defaults are filled in when ``cfg`` becomes a configuration."""
