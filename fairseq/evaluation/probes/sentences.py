"""Sentences with a label each, read from files."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from fairseq.errors import DataError
from fairseq.files.io import require_text


@dataclass(frozen=True)
class Labelled:
    """Sentences and their labels.

    Attributes:
        texts: the sentences.
        labels: one for each.
    """

    texts: list[str]
    labels: list[str]


def read_labelled(path: str, labels: str | None = None) -> Labelled:
    """Read a CSV file with the columns ``text`` and ``label``, or lines and a file of labels.

    Args:
        path: ``.csv``, or any text file with a sentence a line.
        labels: file with a label a line; needed unless ``path`` is a CSV file.

    Raises:
        MissingFileError: if a file is not there.
        DataError: if it is not what it should be.
    """
    if labels is None:
        if not path.endswith(".csv"):
            raise DataError(f"{path} is no .csv with columns text and label: give its labels, too")
        labelled = _read_csv(path)
    else:
        labelled = Labelled(_lines(path), [label.strip() for label in _lines(labels)])
    if len(labelled.texts) != len(labelled.labels):
        raise DataError(
            f"{path} has {len(labelled.texts)} lines, but {labels} has "
            f"{len(labelled.labels)} labels"
        )
    empty = [number for number, text in enumerate(labelled.texts, 1) if not text.strip()]
    if empty or not labelled.texts:
        raise DataError(f"{path}: " + (f"sentence {empty[0]} is empty" if empty else "it is empty"))
    return labelled


def _read_csv(path: str) -> Labelled:
    """Read the columns; a quoted field may go over several lines."""
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    texts, labels = [], []
    try:
        for row in rows:
            if not row.get("text") or not row.get("label") or None in row:
                raise DataError(
                    f"{path}, line {rows.line_num}: expected the columns text and label"
                )
            texts.append(row["text"])
            labels.append(row["label"])
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.reader.line_num}: no CSV ({error})") from error
    return Labelled(texts, labels)


def _lines(path: str) -> list[str]:
    # not splitlines(), which also cuts at separators inside of sentences
    return _text(path).removesuffix("\n").split("\n")


def _text(path: str) -> str:
    return require_text(path, "text file", "Name a file of sentences or labels.")
