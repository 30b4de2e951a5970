"""Evaluating every checkpoint below a folder: how a loss went, or which of many runs is best."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq import evaluation
from fairseq.errors import FairseqError, MissingFileError
from fairseq.report.listing import aligned

logger = logging.getLogger("fairseq.evaluation")


def validate_folder(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Evaluate each checkpoint below a folder, each with its own settings but for those given.

    Args:
        flat: as for :func:`fairseq.evaluation.validate`; ``path`` is a folder.

    Returns:
        by path below the folder, in the order of names with their numbers: the statistics of every
        subset, or ``{"refused": why}``. Several names of one file are evaluated once.

    Raises:
        MissingFileError: if there is no checkpoint.
    """
    folder = Path(flat["path"])
    files = sorted(folder.rglob("*.pt"), key=lambda path: _natural(path.relative_to(folder)))
    if not files:
        raise MissingFileError(f"there is no checkpoint (*.pt) below {folder}")
    results: dict[str, dict[str, Any]] = {}
    done: dict[tuple[int, int], dict[str, Any]] = {}
    for number, path in enumerate(files, 1):
        name, facts = str(path.relative_to(folder)), os.stat(path)
        file = facts.st_dev, facts.st_ino
        if file not in done:
            logger.info("checkpoint %d of %d: %s", number, len(files), name)
            try:
                done[file] = evaluation.validate({**flat, "path": str(path)})
            except FairseqError as error:
                done[file] = {"refused": str(error)}
        results[name] = done[file]
    return results


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return plain numbers of :func:`validate_folder` as lines: a checkpoint and subset each."""
    rows = [
        (name, subset, stats)
        for name, figures in results.items()
        for subset, stats in figures.items()
        if subset != "refused"
    ]
    names = list(dict.fromkeys(key for *_, stats in rows for key in stats))
    cells = [["checkpoint", "subset", *names]]
    for name, subset, stats in rows:
        cells.append([name, subset, *(_text(stats.get(key, "")) for key in names)])
    refused = [
        f"{name}: {figures['refused']}" for name, figures in results.items() if "refused" in figures
    ]
    return "\n".join([*([aligned(cells, {0, 1})] if rows else []), *refused])


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that puts checkpoint2 before checkpoint10."""
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
