"""The run folder: one trainer at a time, and what anyone needs to know to repeat the run."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import socket
import sys
from pathlib import Path
from typing import IO, Any

from fairseq.config.build import plain
from fairseq.errors import ConfigError
from fairseq.file_io import atomic_write
from fairseq.version import __version__

logger = logging.getLogger(__name__)


class RunFolder:
    """Holds a lock on the folder while it is entered.

    Args:
        path: the folder; it exists.
        enabled: False for processes that write nothing.

    Raises:
        ConfigError: on entering, if another trainer is at work there.
    """

    def __init__(self, path: str, enabled: bool = True) -> None:
        self.path, self.enabled = Path(path), enabled
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        if self.enabled:
            self._lock = self._acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            self._lock.close()  # the lock goes with the file, also when the process dies

    def _acquire(self) -> IO[str] | None:
        try:
            import fcntl
        except ImportError:  # Windows
            return None
        handle = open(self.path / ".lock", "a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown process"
            handle.close()
            raise ConfigError(
                f"another training run ({owner}) is at work in {self.path}; wait for it, or choose "
                "another --save-dir"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked: %s", self.path, error)
            return handle
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        return handle

    def describe(self, config: Any, parameters: int) -> None:
        """Write ``config.yaml``, ``command.txt`` and ``versions.json``.

        Args:
            config: the effective configuration.
            parameters: size of the model.
        """
        if not self.enabled:
            return
        with atomic_write(self.path / "config.yaml", "w") as handle:
            handle.write(config_as_yaml(config))
        with atomic_write(self.path / "command.txt", "w") as handle:
            handle.write(shlex.join(sys.argv) + "\n")
        with atomic_write(self.path / "versions.json", "w") as handle:
            json.dump({**versions(), "parameters": parameters}, handle, indent=1)


def config_as_yaml(config: Any) -> str:
    """Return the effective configuration as YAML that ``--config`` reads back."""
    import yaml

    content = {key: value for key, value in plain(config).items() if value is not None}
    content.pop("_name", None)
    for section in content.values():
        if isinstance(section, dict):
            if section.get("_name") is None:
                section.pop("_name", None)
            section.pop("no_seed_provided", None)
    return yaml.safe_dump(content, sort_keys=False, width=100)


def versions() -> dict[str, Any]:
    """Return the versions that decide what a run computes."""
    import numpy
    import torch

    return {
        "fairseq": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
    }
