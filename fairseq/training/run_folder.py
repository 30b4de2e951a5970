"""The run folder: one trainer at a time, and what anyone needs to know to repeat the run."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any

from fairseq.checkpoint.files import remove_leftovers
from fairseq.config.build import plain, recipe_of
from fairseq.config.sections import FairseqConfig
from fairseq.distributed.utils import before_meeting
from fairseq.errors import ConfigError
from fairseq.files.io import OWN_LOCKS, atomic_write
from fairseq.logging.sinks import open_text_log
from fairseq.version import __version__

logger = logging.getLogger("fairseq.run_folder")


class RunFolder:
    """Holds a lock on the folder while it is entered.

    The lock belongs to the process, not to its data workers, and ends with it however it dies.

    Args:
        path: the folder; it exists.
        enabled: False for processes that write nothing.

    Raises:
        ConfigError: on entering, if another trainer is at work there.
    """

    def __init__(self, path: str, enabled: bool = True) -> None:
        self.path, self.enabled = Path(path), enabled
        self._lock: IO[str] | None = None
        self._begun = False

    def __enter__(self) -> RunFolder:
        if self.enabled:
            self._lock = self._acquire()
            if self._lock is not None:
                OWN_LOCKS.add(os.path.realpath(self._lock.name))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # signals have noted themselves; what fails before a run has begun leaves nothing behind
        if self._begun and kind is not None and not issubclass(kind, SystemExit):
            self.note("stop", reason=f"error: {kind.__name__}: {str(error)[:500]}")
        if self._lock is not None:
            OWN_LOCKS.discard(os.path.realpath(self._lock.name))
            self._lock.close()

    def _acquire(self) -> IO[str] | None:
        """Lock the folder and, since nobody else is at work there, delete what a crash left."""
        try:
            import fcntl
        except ImportError:  # Windows
            return None
        # "a+" leaves the name of the owner alone until the lock is ours
        handle = open(self.path / ".lock", "a+", encoding="utf-8")
        try:
            # a lock of POSIX: children do not inherit it, so a worker that lives on holds nothing
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                # some network file systems have no locks
                logger.warning("%s cannot be locked: %s", self.path, error)
                return handle
            handle.seek(0)
            owner = handle.read().strip() or "unknown process"
            handle.close()
            raise ConfigError(
                f"another training run ({owner}) is at work in {self.path}; wait for it, or choose "
                "another --save-dir"
            ) from error
        remove_leftovers(str(self.path))
        try:
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}")
            handle.flush()
        except OSError as error:  # the disk is full: the name of the owner is only a courtesy
            logger.warning("%s: %s", handle.name, error)
        return handle

    def note(self, event: str, **facts: Any) -> None:
        """Append a line to ``events.jsonl``: starts, skipped updates, stops.

        Args:
            event: what happened, in one word.
            **facts: plain values.
        """
        if self.enabled:
            record = {"event": event, "time": round(time.time(), 3), **facts}
            open_text_log(self.path / "events.jsonl").write(json.dumps(record))

    def describe(self, config: FairseqConfig, parameters: int) -> None:
        """Write ``config.yaml``, ``command.txt`` and ``versions.json``."""
        if not self.enabled:
            return
        self._begun = True
        config = config.changed(distributed_training=before_meeting(config))
        files = {
            "config.yaml": config_as_yaml(config, as_recipe=True),
            "command.txt": shlex.join(sys.argv) + "\n",
            "versions.json": json.dumps({**versions(), "parameters": parameters}, indent=1),
        }
        for name, text in files.items():
            try:
                with atomic_write(self.path / name, "w") as handle:
                    handle.write(text)
            except OSError as error:  # checkpoints hold the configuration, too
                logger.warning("could not write %s: %s", self.path / name, error)


def config_as_yaml(config: FairseqConfig, as_recipe: bool = False) -> str:
    """Return the effective configuration as YAML that ``--config`` reads back.

    Args:
        config: the configuration.
        as_recipe: leave out what merely repeats another section, so that a copy can be edited.
    """
    import yaml

    content = {
        key: value
        for key, value in (recipe_of(config) if as_recipe else plain(config)).items()
        if value is not None
    }
    content.pop("_name", None)
    for section in content.values():
        if isinstance(section, dict):
            if section.get("_name") is None:
                section.pop("_name", None)
            section.pop("no_seed_provided", None)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(content, Dumper=dumper, sort_keys=False, width=100)


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
