"""Log records on the console: one line format, one stream, and no crash when its reader is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Literal, TextIO

from fairseq.errors import check_choice

LINE_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"


class ConsoleHandler(logging.Handler):
    """Writes records to the present ``sys.stdout`` or ``sys.stderr``.

    The stream is looked up for each record, because a live line replaces it while it is shown. A
    reader that goes away (``| head``) or a closed stream stops the output, never the program.
    """

    def __init__(self, stream: Literal["stdout", "stderr"] = "stdout") -> None:
        super().__init__()
        self._stream = stream
        self.setFormatter(logging.Formatter(LINE_FORMAT, DATE_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a line."""
        stream = getattr(sys, self._stream)
        if stream is None:  # how Python shows a stream that was closed before it started
            return
        try:
            stream.write(self.format(record) + "\n")
            stream.flush()
        except BrokenPipeError:
            _send_to_nowhere(stream)
        except (OSError, ValueError):  # a full disk; "I/O operation on closed file"
            pass
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - a record that cannot be formatted, as logging does
            self.handleError(record)


def printable(text: str) -> str:
    """Return a text in one line, in which control characters stand as escapes such as ``\\n``."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _send_to_nowhere(stream: TextIO) -> None:
    """Point the file behind ``stream`` at the null device, so that flushing at exit works too."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def setup_logging(
    level: str | None = None,
    stream: Literal["stdout", "stderr"] = "stdout",
    force: bool = False,
) -> None:
    """Send log records to the console as ``time | level | logger | message``.

    Nothing happens if the root logger has handlers already (those of a test runner, of Hydra, of
    a notebook), unless ``force`` is set.

    Args:
        level: lowest level shown; None takes ``$LOGLEVEL``, or INFO.
        stream: ``stdout`` for training, ``stderr`` for commands whose results go to stdout.
        force: remove the handlers that are there.

    Raises:
        ConfigError: if there is no such level.
    """
    root = logging.getLogger()
    if root.handlers and not force:
        return
    name = (level or os.environ.get("LOGLEVEL") or "INFO").upper()
    levels = logging.getLevelNamesMapping()
    check_choice("log level ($LOGLEVEL)", name, levels)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(ConsoleHandler(stream))
    root.setLevel(levels[name])
