"""The lines of a binarized corpus, checked against the dictionary they claim to be made with."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairseq.checkpoint.layout import config_of
from fairseq.config.sections import FairseqConfig
from fairseq.data import collate
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.concat import ConcatDataset
from fairseq.data.storage import indexed_dataset
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.manifest import verify_manifest
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.utils import split_paths

logger = logging.getLogger("fairseq.data.data_utils")

# Where nothing tells the greatest token id, so many windows of so many tokens are looked at.
SAMPLED_WINDOWS, WINDOW = 1000, 1024


def folder_of_dictionary(own: Path, state: Mapping[str, Any]) -> Path | None:
    """Return where the dictionary of a checkpoint is: in its ``own`` folder, or as recorded.

    None if it is in neither.
    """
    recorded = getattr(config_of(state, settle=False).task, "data", None) or ""
    for folder in (own, *map(Path, split_paths(recorded))):
        if any((folder / name).is_file() for name in ("input0/dict.txt", "dict.txt")):
            return folder
    return None


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
        MissingFileError: if there are no such files.
        DataError: if they are empty or do not fit the dictionary.
    """
    path = os.path.join(folder, split)
    lines = collate.load_indexed_dataset(path, dictionary, dataset_impl, combine)
    found = indexed_dataset.infer_dataset_impl(path) if lines is None else None
    if found is not None:
        raise DataError(
            f"{path} is data of --dataset-impl {found}, not of {dataset_impl}: leave "
            "--dataset-impl out, and the format is recognised"
        )
    if lines is None:
        raise MissingFileError(
            f"Dataset not found: {split} ({path}); make it with fairseq-preprocess"
        )
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


def _largest_id(lines: FairseqDataset, folder: str, split: str) -> int:
    """Return the greatest id that the manifest tells; without one, that of a sample."""
    manifest = verify_manifest(folder)
    if manifest is not None and split in manifest.datasets:
        return manifest.datasets[split].max_id
    flat = getattr(lines, "flat", np.empty(0, dtype=np.int64))
    step = max(WINDOW, len(flat) // SAMPLED_WINDOWS)
    starts = range(0, len(flat), step)
    return max(
        (int(flat[i : i + WINDOW].max()) for i in starts), default=0
    ) - indexed_dataset.shift_of(lines)


def load_indexed_dataset(
    path: str,
    dictionary: Dictionary | None = None,
    dataset_impl: str | None = None,
    combine: bool = False,
    default: str = "cached",
) -> Any:
    """Open the binarized dataset ``path``, and ``path1``, ``path2``... if they are combined.

    Args:
        path: file name without ``.bin`` and ``.idx``.
        dictionary: encodes lines, for ``dataset_impl="raw"``.
        dataset_impl: format of the files; None to look into them.
        combine: also open the numbered files until one is missing, and concatenate all.
        default: format to assume where the files do not tell.

    Returns:
        The dataset, or None if ``path`` does not exist.
    """
    datasets = []
    for k in itertools.count() if combine else [0]:
        path_k = f"{path}{k or ''}"
        impl = dataset_impl or indexed_dataset.infer_dataset_impl(path_k) or default
        dataset = indexed_dataset.make_dataset(
            path_k, impl=impl, fix_lua_indexing=True, dictionary=dictionary
        )
        if dataset is None:
            break
        logger.info("loaded %s examples from: %s", f"{len(dataset):,}", path_k)
        datasets.append(dataset)
    if not datasets:
        return None
    return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)


def raise_if_valid_subsets_unintentionally_ignored(train_cfg: FairseqConfig) -> None:
    """Refuse to train while files such as ``valid1.idx`` lie unused beside ``valid.idx``.

    Args:
        train_cfg: the configuration of a training run, with groups ``dataset`` and ``task``.

    Raises:
        ConfigError: if there are such files and no flag says what to do with them.
    """
    dataset = train_cfg.dataset
    data = getattr(train_cfg.task, "data", None)
    if (
        dataset.ignore_unused_valid_subsets
        or dataset.combine_valid_subsets
        or dataset.disable_validation
        or not data
    ):
        return
    folders = filter(os.path.isdir, data.split(os.pathsep))
    names = {name for folder in folders for name in os.listdir(folder)}
    numbered = {os.path.splitext(name)[0] for name in names if re.match(r"valid\d", name)}
    unused = sorted(numbered - set(dataset.valid_subset.split(",")))
    if unused:
        raise ConfigError(
            f"Valid paths {unused} will be ignored. Set --combine-val to combine them or "
            "--ignore-unused-valid-subsets to ignore them."
        )
