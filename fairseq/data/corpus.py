"""The lines of a binarized corpus, checked against the dictionary they claim to be made with."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fairseq.data import data_utils
from fairseq.data.dictionary import Dictionary
from fairseq.data.manifest import verify_manifest
from fairseq.errors import DataError

# Where nothing tells the greatest token id, so many windows of so many tokens are looked at.
SAMPLED_WINDOWS, WINDOW = 1000, 1024


def load_lines(
    folder: str,
    split: str,
    dictionary: Dictionary,
    *,
    size: int | None = None,
    dataset_impl: str | None = None,
    combine: bool = False,
) -> Any:
    """Return a dataset of the lines of a split, int64 tensors (T,) that end with end-of-sentence.

    Args:
        folder: what fairseq-preprocess wrote.
        split: its name, also that of its files.
        dictionary: of the data.
        size: how many of its entries were there when the data were made; None for all.
        dataset_impl: format of the files; recognised if None.
        combine: also read ``split1``, ``split2``, ...

    Raises:
        DataError: if the files are missing, empty or do not fit the dictionary.
    """
    path = os.path.join(folder, split)
    lines = data_utils.load_indexed_dataset(path, dictionary, dataset_impl, combine)
    if lines is None:
        raise DataError(f"Dataset not found: {split} ({path}); make it with fairseq-preprocess")
    if not np.any(lines.sizes):
        raise DataError(f"{path} holds no text; is the corpus empty?")
    size = len(dictionary) if size is None else size
    largest = _largest_id(lines, folder, split)
    if largest >= size:
        raise DataError(
            f"{path} holds token id {largest}, but the dictionary has {size} entries: data and "
            "dict.txt come from different runs of fairseq-preprocess"
        )
    return lines


def _largest_id(lines: Any, folder: str, split: str) -> int:
    """Return the greatest id that the manifest tells; without one, that of a sample."""
    manifest = verify_manifest(folder)
    if manifest is not None and split in manifest.datasets:
        return manifest.datasets[split].max_id
    flat = getattr(lines, "flat", np.empty(0, dtype=np.int64))
    step = max(WINDOW, len(flat) // SAMPLED_WINDOWS)
    starts = range(0, len(flat), step)
    return max((int(flat[i : i + WINDOW].max()) for i in starts), default=0)
