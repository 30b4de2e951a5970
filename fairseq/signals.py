"""SIGTERM and SIGUSR1: finish the update, save, end. A second signal ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch

from fairseq.distributed import utils as distributed_utils


class StopSignal:
    """Listens for a request to end while it is entered (in the main thread only)."""

    SIGNALS = ("SIGTERM", "SIGUSR1")

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.number is not None and exc[0] is None:
            raise SystemExit(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise SystemExit(128 + number)
        self.number = number

    def received(self) -> bool:
        """Tell whether any process was asked to end; all processes get the same answer."""
        if distributed_utils.get_world_size() == 1:
            return self.number is not None
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([self.number or 0], device=device)
        number = int(distributed_utils.all_reduce(flag, op="max"))
        self.number = number or None
        return number > 0

    def reason(self) -> str:
        """Return the name of the signal."""
        return signal.Signals(self.number).name if self.number else "no signal"
