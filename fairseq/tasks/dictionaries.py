"""Dictionaries of tasks and of checkpoints: compared on every load, and fillers that fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.dictionary_record import (
    RECORD,
    compare_with_record,
    digest_of,
    meaningful_symbols,
)
from fairseq.errors import CheckpointError, FairseqError
from fairseq.tasks.base import FairseqTask

logger = logging.getLogger(__name__)

LABELS = "labels"


def dictionaries_of(task: FairseqTask) -> dict[str, Dictionary]:
    """Return the dictionaries of a task by their part; empty where it has none."""
    method = getattr(task, "dictionaries", None)
    parts = method() if callable(method) else {}
    return {name: value for name, value in parts.items() if isinstance(value, Dictionary)}


def dictionary_record(task: FairseqTask) -> dict[str, Any]:
    """Return what a checkpoint keeps: ``{"dictionaries": {part: {"symbols": n, "sha256": s}}}``."""
    parts = {name: meaningful_symbols(value) for name, value in dictionaries_of(task).items()}
    return {RECORD: {k: {"symbols": len(v), "sha256": digest_of(v)} for k, v in parts.items()}}


def check_dictionaries(
    path: str, state: Mapping[str, Any], task: FairseqTask, but: Sequence[str] = ()
) -> None:
    """Compare the dictionaries of a task with those that a checkpoint was trained with.

    A file of another program records none: then the ``dict.txt`` beside it is compared, and if
    there is none, it is said that nothing could be.

    Args:
        path: of the checkpoint, for messages.
        state: its content.
        task: that goes to use it.
        but: parts that may differ; ``labels`` when a model is trained on another task.

    Raises:
        CheckpointError: if one differs in more than words in place of symbols that round the size.
    """
    for part, dictionary in dictionaries_of(task).items():
        if part in but or compare_with_record(path, state, dictionary, part):
            continue
        if part != LABELS:
            _compare_with_neighbour(path, meaningful_symbols(dictionary))


def _compare_with_neighbour(path: str, here: Sequence[str]) -> None:
    neighbour = Path(os.path.dirname(path)) / "dict.txt"
    try:
        known = meaningful_symbols(Dictionary.load(str(neighbour))) if neighbour.is_file() else None
    except (FairseqError, OSError):
        known = None
    if known is not None and known != here[: len(known)]:
        logger.warning(
            "the dictionary of the data is not %s, which lies beside %s: if the model was trained "
            "with that one, the same ids mean other words",
            neighbour,
            path,
        )
    if known is not None:
        return
    logger.warning(
        "%s does not say which dictionary it was trained with, and no dict.txt lies beside it: "
        "only its size was compared. In another order, the same ids would mean other words",
        path,
    )


def fit_dictionary(task: FairseqTask, rows: int | None) -> None:
    """Make the task's dictionary as large as the checkpoint's table, if that is harmless.

    Surplus ``madeupwordNNNN`` entries (count 0, used only to round the size) are dropped from the
    end, missing ones are added; the user's file is never touched.

    Args:
        task: whose dictionary is changed in memory.
        rows: rows of the embedding table, None to do nothing.

    Raises:
        CheckpointError: if real words would be lost, or more than padding is missing.
    """
    dictionary = getattr(task, "source_dictionary", None)
    if rows is None or dictionary is None or len(dictionary) == rows:
        return
    have = len(dictionary)
    fit = getattr(task, "fit_dictionary", None)
    if fit is None or not fit(rows):
        raise CheckpointError(
            f"the dictionary has {have} entries, but the checkpoint's embedding table has {rows} "
            "rows: point the data folder to the dict.txt, and --task to the task, that the model "
            "was trained with"
        )
    logger.warning(
        "the dictionary was %s by %s unused madeupword entries to fit the checkpoint",
        "cut" if rows < have else "extended",
        abs(have - rows),
    )
