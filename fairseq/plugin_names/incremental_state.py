"""What modules of plug-ins remember between the steps of incremental decoding."""

from __future__ import annotations

import uuid

from torch import Tensor, nn

IncrementalState = dict[str, dict[str, Tensor | None]]


class FairseqIncrementalState:
    """Gives an instance drawers of its own in the dictionary that decoding hands around."""

    def init_incremental_state(self) -> None:
        """Give the instance a name that no other has."""
        self._incremental_state_id = str(uuid.uuid4())

    def _drawer(self, key: str) -> str:
        if "_incremental_state_id" not in self.__dict__:
            self.init_incremental_state()
        return f"{self._incremental_state_id}.{key}"

    def get_incremental_state(
        self, incremental_state: IncrementalState | None, key: str
    ) -> dict[str, Tensor | None] | None:
        """Return what was kept under ``key``, None if nothing was."""
        return None if incremental_state is None else incremental_state.get(self._drawer(key))

    def set_incremental_state(
        self,
        incremental_state: IncrementalState | None,
        key: str,
        value: dict[str, Tensor | None],
    ) -> IncrementalState | None:
        """Keep ``value`` under ``key``, and return the whole state."""
        if incremental_state is not None:
            incremental_state[self._drawer(key)] = value
        return incremental_state


def with_incremental_state(cls: type) -> type:
    """Add the methods above to a class, which stays the same object."""
    cls.__bases__ = (
        FairseqIncrementalState,
        *(base for base in cls.__bases__ if base is not FairseqIncrementalState),
    )
    return cls


def reorder(
    module: nn.Module, incremental_state: IncrementalState | None, new_order: Tensor
) -> None:
    """Let every part of ``module`` that remembers rows keep those of ``new_order``."""
    for part in module.modules():
        step = getattr(part, "reorder_incremental_state", None)
        if part is not module and step is not None:
            step(incremental_state, new_order)
