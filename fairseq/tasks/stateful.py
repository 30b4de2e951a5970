"""What a task keeps across restarts, made on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class StatefulContainer:
    """Attributes that are made on first use and saved with the checkpoint."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._factories: dict[str, Callable[[], Any]] = {}

    def add_factory(self, name: str, factory: Callable[[], Any]) -> None:
        """Let ``factory`` make the attribute ``name`` when it is first read."""
        self._factories[name] = factory

    def merge_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over saved attributes."""
        self._state.update(state_dict)

    @property
    def state_dict(self) -> dict[str, Any]:
        """Return the attributes that exist."""
        return self._state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._state:
            if name not in self._factories:
                raise AttributeError(f"the task's state has no '{name}'")
            self._state[name] = self._factories[name]()
        return self._state[name]
