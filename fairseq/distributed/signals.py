"""SIGTERM, SIGUSR1, SIGINT (Ctrl-C): finish the update, save, end. A second signal ends at once.

Launchers pass on the signal that their processes get anyway, so what comes within a second of the
first one is that same request. A second Ctrl-C in a process of its own is somebody in a hurry.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch

from fairseq.distributed import utils as distributed_utils

logger = logging.getLogger("fairseq.signals")

SAME_REQUEST_SECONDS = 1.0
# A worker that was asked to end does so after this many seconds, if nobody ends it before.
WORKER_SECONDS = 60


class StopSignal:
    """Listens for a request to end while it is entered (in the main thread only).

    Attributes:
        number: the signal that all processes of the run know of, None if there is none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._caught: int | None = None
        self._caught_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in distributed_utils.STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.number is not None and exc[0] is None:
            raise SystemExit(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._caught is None:
            self._caught, self._caught_at = number, now
        elif now - self._caught_at > SAME_REQUEST_SECONDS or self._in_a_hurry(number):
            os._exit(128 + number)  # no clean-up: what was being written is deleted at next start

    def _in_a_hurry(self, number: int) -> bool:
        """Tell whether this is a second Ctrl-C, which no launcher repeats."""
        alone = distributed_utils.get_world_size() == 1
        return number == self._caught == signal.SIGINT and alone

    def received(self) -> bool:
        """Tell whether any process was asked to end; all processes get the same answer."""
        if self.number is None:
            self.number = self._agree()
            if self.number is not None:
                logger.warning("%s: finishing this update, then saving", self.name)
        return self.number is not None

    def _agree(self) -> int | None:
        if distributed_utils.get_world_size() == 1:
            return self._caught
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([self._caught or 0], device=device)
        return int(distributed_utils.all_reduce(flag, op="max")) or None

    @property
    def name(self) -> str:
        """Return the name of the signal."""
        return "no signal" if self.number is None else signal.Signals(self.number).name


def outlive_stop_signals(worker: int = 0) -> None:
    """Keep a data worker alive when the whole group of processes is asked to end.

    Schedulers send their signal to every process, but the trainer still needs its workers for the
    update it is in. For ``worker_init_fn``: the trainer ends them when it is done.
    """

    def delay(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "alarm") and number == signal.SIGTERM:
            signal.alarm(WORKER_SECONDS)

    for number in distributed_utils.STOP_SIGNALS:
        signal.signal(number, delay)
