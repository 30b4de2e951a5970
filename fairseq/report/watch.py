"""Writing the page anew while its runs are alive: ``fairseq-report RUN --watch``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep
from typing import Any

from fairseq.errors import DataError, MissingFileError
from fairseq.report.page import write_report
from fairseq.report.state import ALIVE, state_of

_FILES = ("metrics.jsonl", "samples.jsonl", "events.jsonl")


def watch(
    run_folders: Sequence[str | os.PathLike[str]],
    output_folder: str | os.PathLike[str],
    seconds: int,
    tell: Callable[[str], None],
    **settings: Any,
) -> Path | None:
    """Write the page whenever a run has written something, until none is alive.

    The page reads itself anew as often; the last one, which is written at Ctrl-C too, does not, and
    comes with the PNG files.

    Args:
        run_folders: see :func:`fairseq.report.page.write_report`.
        output_folder: see there.
        seconds: how often to look.
        tell: called with a line of text when there is something to say.
        **settings: see there.

    Returns:
        The path of the page, None if Ctrl-C came before there was a record.

    Raises:
        MissingFileError: if a folder is missing.
        DataError: if nothing is there to be shown and no run is alive.
    """
    written, seen, folders = None, None, [Path(folder) for folder in run_folders]
    try:
        while any(state_of(folder, ()).kind == ALIVE for folder in folders):
            now = [_changed(folder / name) for folder in folders for name in _FILES]
            if now != seen:
                page = _page(folders, output_folder, seconds, **settings)
                if page is None and seen is None:
                    tell("waiting for the first record")
                elif page is not None and written is None:
                    tell(f"{page}: open it; it follows the run. Ctrl-C ends this")
                written, seen = page or written, now
            sleep(seconds)
    except KeyboardInterrupt:
        if written is None:
            return None
    return write_report(folders, output_folder, **settings)


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


def _page(
    folders: Sequence[Path], output: str | os.PathLike[str], seconds: int, **settings: Any
) -> Path | None:
    """Write the page of runs that go on; None if none of them has a record yet."""
    try:
        return write_report(folders, output, refresh=seconds, pictures=False, **settings)
    except (DataError, MissingFileError):
        if all(folder.is_dir() for folder in folders):
            return None
        raise
