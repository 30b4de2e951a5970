"""``--profile``: where the time of a few updates goes, by torch's profiler."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from fairseq.files.io import atomic_write

logger = logging.getLogger(__name__)

FIRST, LAST = 10, 20  # updates of this process; those before are slower than the rest


class UpdateProfiler:
    """Records updates 10 to 20 of a process while it is entered.

    ``profile.txt`` lists operators by their own time, ``profile.json`` is a trace for
    chrome://tracing or Perfetto. A run that ends earlier records what there is of them.

    Args:
        folder: where both are written; it exists.
        enabled: otherwise nothing happens.
    """

    def __init__(self, folder: str, enabled: bool) -> None:
        self.folder = Path(folder)
        self._profiler: Any = None
        self._written = not enabled
        if enabled:
            on_gpu = torch.cuda.is_available()
            activities = [torch.profiler.ProfilerActivity.CPU]
            self._profiler = torch.profiler.profile(
                activities=activities + [torch.profiler.ProfilerActivity.CUDA] * on_gpu,
                schedule=torch.profiler.schedule(
                    # torch counts from 0, and the step before the first warms the profiler up
                    skip_first=FIRST - 2,
                    wait=0,
                    warmup=1,
                    active=LAST - FIRST + 1,
                    repeat=1,
                ),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> UpdateProfiler:
        if self._profiler is not None:
            self._profiler.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._profiler is not None:
            self._profiler.__exit__(*exc)
        if not self._written:
            logger.warning("--profile: the run ended before update %s: no profile", FIRST)

    def step(self) -> None:
        """Say that an update is done."""
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._written = True
        trace, unfinished = self.folder / "profile.json", self.folder / ".profile.json.tmp"
        try:
            profiler.export_chrome_trace(str(unfinished))
            os.replace(unfinished, trace)
            with atomic_write(self.folder / "profile.txt", "w") as handle:
                order = "self_cuda_time_total" if torch.cuda.is_available() else None
                averages = profiler.key_averages()
                handle.write(averages.table(sort_by=order or "self_cpu_time_total", row_limit=60))
        except OSError as error:  # training is worth more
            unfinished.unlink(missing_ok=True)
            logger.warning("--profile: %s cannot be written: %s", trace, error)
            return
        logger.info("profile of updates %s to %s: %s, profile.txt", FIRST, LAST, trace)
