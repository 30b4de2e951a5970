"""All checkpoints of a run as revisions of one Hugging Face model, for evaluations along training.

Evaluations such as BabyLM's load ``from_pretrained(name, revision=...)``: each revision is a folder
here, and on the Hub a branch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.checkpoint.files import step_of
from fairseq.errors import MissingFileError
from fairseq.export.encoder_out import to_huggingface
from fairseq.files.folders import new_folder

INDEX = "revisions.json"


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run folder by their numbers of updates; a file once.

    ``checkpoint_last.pt`` is often another name of a numbered one, whose name then counts. Among
    those of one update it comes last, behind ``checkpoint_best.pt``.

    Raises:
        MissingFileError: if there is none.
    """

    def order(path: Path) -> tuple[bool, list[int], str]:
        numbers = [int(digits) for digits in re.findall(r"\d+", path.stem)]
        return not numbers, numbers[::-1], path.stem  # updates stand behind the epoch

    by_inode: dict[tuple[int, int], list[Path]] = {}
    for path in sorted(run.glob("*.pt"), key=order):
        facts = os.stat(path)
        by_inode.setdefault((facts.st_dev, facts.st_ino), []).append(path)
    if not by_inode:
        raise MissingFileError(f"no checkpoint (*.pt) in {run}: name the --save-dir of a run")
    files = sorted(by_inode.values(), key=lambda names: (step_of(names[0]), order(names[-1])))
    return [names[0] for names in files]


def to_revisions(
    run: Path,
    out: Path,
    data: Path | None = None,
    sentences: Sequence[str] | None = None,
    force: bool = False,
    head: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Export every checkpoint of a run folder; all of them, or nothing is written.

    Args:
        run: its folder.
        out: the folder to make: one folder a checkpoint, named as its file without ``.pt``, and
            ``revisions.json``, which maps these names to what each comparison found.
        data: of this and what follows see :func:`fairseq.export.encoder_out.to_huggingface`.

    Returns:
        ``{"revisions": [names], "max_abs_difference": the largest of all}``.

    Raises:
        MissingFileError: if there is no checkpoint.
    """
    results: dict[str, dict[str, Any]] = {}
    with new_folder(out, force, run) as folder:
        for path in checkpoints(run):
            results[path.stem] = to_huggingface(
                path, folder / path.stem, data, sentences, head=head, **settings
            )
        (folder / INDEX).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    largest = max(float(result["max_abs_difference"]) for result in results.values())
    return {"revisions": list(results), "max_abs_difference": largest}
