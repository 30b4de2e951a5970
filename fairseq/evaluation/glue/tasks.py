"""The eight tasks: where their files keep what, how they are scored and fine-tuned.

The recipes are those of RoBERTa, with the warm-up as a share of all updates. Source: Liu et al.
2019, table 10.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fairseq.errors import ConfigError, DataError, did_you_mean
from fairseq.files.io import require_file

logger = logging.getLogger("fairseq.glue.tasks")

STS_B_MAXIMUM = 5.0
SHOWN = 60


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: also that of its folder.
        sentences: titles of the columns with the sentences, or their places without a title line.
        label: title or place of the column with the label.
        classes: labels, in the order of their ids; none for a regression.
        scores: what is measured, the most important one first.
        best: the logged metric that decides which epoch was best.
        columns: number of columns where there is no title line.
        valid: names of the files to validate on, without ``.tsv``.
        skips_broken: the official file has lines with missing columns, which are left out.
        batch_size: sentences in a batch.
        lr: highest learning rate.
        epochs: passes over the data.
        warmup: share of the updates in which the rate rises.
    """

    name: str
    sentences: tuple[str | int, ...]
    label: str | int
    classes: tuple[str, ...]
    scores: tuple[str, ...] = ("accuracy",)
    best: str = "accuracy"
    columns: int | None = None
    valid: tuple[str, ...] = ("dev",)
    skips_broken: bool = False
    batch_size: int = 32
    lr: float = 1e-5
    epochs: int = 10
    warmup: float = 0.06

    def is_regression(self) -> bool:
        """Tell whether labels are numbers."""
        return not self.classes


PAIR = ("sentence1", "sentence2")
BINARY = ("0", "1")
ENTAILS = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        GlueTask("CoLA", (3,), 1, BINARY, ("mcc", "accuracy"), "mcc", columns=4, batch_size=16),
        GlueTask("SST-2", ("sentence",), "label", BINARY),
        GlueTask(
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            BINARY,
            ("accuracy", "f1"),
            "acc_and_f1",
            batch_size=16,
        ),
        GlueTask(
            "STS-B",
            PAIR,
            "score",
            (),
            ("pearson", "spearman"),
            "pearson_and_spearman",
            batch_size=16,
            lr=2e-5,
        ),
        GlueTask(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            BINARY,
            ("accuracy", "f1"),
            "acc_and_f1",
            skips_broken=True,
        ),
        GlueTask(
            "MNLI",
            PAIR,
            "gold_label",
            ("contradiction", "neutral", "entailment"),
            valid=("dev_matched", "dev_mismatched"),
        ),
        GlueTask("QNLI", ("question", "sentence"), "label", ENTAILS),
        GlueTask("RTE", PAIR, "label", ENTAILS, batch_size=16, lr=2e-5),
    )
}


def find_task(name: str) -> GlueTask:
    """Return the task of that name, however it is spelled: ``SST-2``, ``sst2``, ``sst_2``.

    Raises:
        ConfigError: if there is none.
    """

    def bare(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    for task in TASKS.values():
        if bare(task.name) == bare(name):
            return task
    raise ConfigError(
        f"there is no GLUE task '{name}'{did_you_mean(name, TASKS)}; there are {', '.join(TASKS)}"
    )


@dataclass(frozen=True)
class Examples:
    """The content of a file, column by column.

    Attributes:
        columns: one list of sentences for each sentence of an example.
        labels: names of classes, or numbers as they were written.
    """

    columns: tuple[list[str], ...]
    labels: list[str]


def read_examples(task: GlueTask, path: Path) -> Examples:
    """Read an official TSV file.

    Quotes mean nothing in these files, and a line ends with a line feed only.

    Raises:
        MissingFileError: if it is not there.
        DataError: if it has other columns or labels, is not UTF-8, or holds no example.
    """
    require_file(path, f"{task.name} file", "Check --glue-dir: it holds one folder for each task.")
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as handle:
            rows = [line.rstrip("\r\n").split("\t") for line in handle]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    wanted = (*task.sentences, task.label)
    width, first = task.columns or 0, 1
    places = [place for place in wanted if isinstance(place, int)]
    if task.columns is None:
        titles = rows.pop(0) if rows else []
        width, first = len(titles), 2
        for title in wanted:
            if title not in titles:
                raise DataError(
                    f"{path}, line 1: there is no column '{title}' among {', '.join(titles)[:200]}"
                    f"; is this {task.name}, with its labels?"
                )
        places = [titles.index(str(title)) for title in wanted]
    kept = _complete_rows(task, path, rows, width, first)
    for number, row in kept:
        _check_label(task, row[places[-1]], f"{path}, line {number}")
    if not kept:
        raise DataError(f"{path} holds no example")
    *columns, labels = ([row[place] for _, row in kept] for place in places)
    return Examples(tuple(columns), labels)


def _complete_rows(
    task: GlueTask, path: Path, rows: list[list[str]], width: int, first: int
) -> list[tuple[int, list[str]]]:
    """Return the numbered lines that have all columns; refuse others unless they are expected."""
    numbered = [(number, row) for number, row in enumerate(rows, first) if row != [""]]
    kept = [(number, row) for number, row in numbered if len(row) == width]
    if len(kept) == len(numbered):
        return kept
    number, row = next((number, row) for number, row in numbered if len(row) != width)
    message = f"{path}, line {number}: {len(row)} columns instead of {width}"
    # the official files lack columns in a few lines out of 100,000
    if not task.skips_broken or len(kept) < 0.99 * len(numbered):
        shown = "\t".join(row)[:SHOWN]
        raise DataError(f"{message}: {shown!r}; columns are separated by tabs")
    logger.warning("%s; such lines are left out: %d", message, len(numbered) - len(kept))
    return kept


def _check_label(task: GlueTask, label: str, where: str) -> None:
    if not task.is_regression():
        if label not in task.classes:
            raise DataError(f"{where}: label {label!r} is none of {', '.join(task.classes)}")
        return
    try:
        score = float(label)
    except ValueError:
        score = -1.0
    if not 0 <= score <= STS_B_MAXIMUM:
        raise DataError(f"{where}: score {label!r} is no number from 0 to {STS_B_MAXIMUM:g}")
