"""Whoever watches a run: is told its figures, and may ask it to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fairseq.distributed import utils as distributed_utils
from fairseq.logging.sinks import Stats, as_record

Record = dict[str, Any]  # one line of metrics.jsonl
Callback = Callable[[Record], bool | None]


class Watch:
    """Passes records on to callbacks; one that returns True ends the run after this update.

    Args:
        on_log: gets the training figures, every ``--log-interval`` updates.
        on_validate: gets the figures of each validation subset.

    Attributes:
        updates: updates done when the run ended, earlier starts included.
        reason: why it ended, None if it was the last epoch.
        saved: the newest checkpoint that this start wrote, None if it wrote none.
    """

    def __init__(self, on_log: Callback | None = None, on_validate: Callback | None = None) -> None:
        self._on_log, self._on_validate = on_log, on_validate
        self._stop = False
        self.updates = 0
        self.reason: str | None = None
        self.saved: str | None = None

    def trained(self, stats: Stats, update: int, epoch: int) -> None:
        """Take the figures since the last record."""
        self._tell(self._on_log, stats, "train_inner", update, epoch)

    def validated(self, stats: Stats, subset: str, update: int, epoch: int) -> None:
        """Take the figures of a validation."""
        self._tell(self._on_validate, stats, subset, update, epoch)

    def _tell(
        self, callback: Callback | None, stats: Stats, tag: str, update: int, epoch: int
    ) -> None:
        if callback is not None and callback(as_record(stats, tag, update, epoch)) is True:
            self._stop = True

    def asked_to_stop(self, device: torch.device) -> str | None:
        """Return the reason if a callback of any process asked for the end, else None."""
        if self._on_log is None and self._on_validate is None:
            return None
        if distributed_utils.get_world_size() > 1:
            flag = torch.tensor(int(self._stop), device=device)
            self._stop = bool(distributed_utils.all_reduce(flag, op="max"))
        return "a callback asked for it" if self._stop else None
