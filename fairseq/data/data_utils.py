"""Helpers of the data pipeline that plug-ins and notebooks import by name.

Shape suffixes: B items, T tokens of the longest item, N samples.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from fairseq.data import indexed_dataset
from fairseq.data.batching import (
    batch_by_size,
    batch_by_size_fn,
    batch_by_size_vec,
    filter_by_size_dynamic,
    filter_by_sizes,
)
from fairseq.data.concat_dataset import ConcatDataset
from fairseq.errors import ConfigError, DataError

__all__ = [
    "batch_by_size",
    "batch_by_size_fn",
    "batch_by_size_vec",
    "collate_tokens",
    "filter_by_size",
    "filter_by_size_dynamic",
    "filter_paired_dataset_indices_by_size",
    "load_indexed_dataset",
    "numpy_seed",
    "raise_if_valid_subsets_unintentionally_ignored",
]

logger = logging.getLogger(__name__)


def collate_tokens(
    values: Sequence[torch.Tensor],
    pad_idx: int,
    eos_idx: int | None = None,
    left_pad: bool = False,
    move_eos_to_beginning: bool = False,
    pad_to_length: int | None = None,
    pad_to_multiple: int = 1,
    pad_to_bsz: int | None = None,
) -> torch.Tensor:
    """Stack sequences of different lengths into one padded tensor.

    Args:
        values: at least one tensor (T_i,), all of one dtype.
        pad_idx: id that fills the rest.
        eos_idx: id put in front when moving; None for each sequence's own last token.
        left_pad: pad at the beginning instead of the end.
        move_eos_to_beginning: shift each sequence right by one, its last token to the front.
        pad_to_length: smallest T.
        pad_to_multiple: T is rounded up to a multiple of this.
        pad_to_bsz: smallest B; the rows added hold padding only.

    Returns:
        Tensor (B, T) of the dtype of ``values``.
    """
    if move_eos_to_beginning:
        values = [_rotate(value, eos_idx) for value in values]
    padded_BT = pad_sequence(
        list(values),
        batch_first=True,
        padding_value=pad_idx,
        padding_side="left" if left_pad else "right",
    )
    rows, longest = padded_BT.shape
    width = -(-max(longest, pad_to_length or 0) // pad_to_multiple) * pad_to_multiple
    left, right = (width - longest, 0) if left_pad else (0, width - longest)
    below = max(0, (pad_to_bsz or 0) - rows)
    return pad(padded_BT, (left, right, 0, below), value=pad_idx)


def _rotate(tokens_T: torch.Tensor, eos_idx: int | None) -> torch.Tensor:
    """Return the tokens with the last one (as ``eos_idx`` unless None) moved to the front."""
    if not len(tokens_T):
        return tokens_T
    first = tokens_T[-1:] if eos_idx is None else tokens_T.new_tensor([eos_idx])
    return torch.cat([first, tokens_T[:-1]])


@contextlib.contextmanager
def numpy_seed(seed: int | None, *addl_seeds: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block, and restore its state afterwards.

    Args:
        seed: the seed; None leaves the generator alone.
        *addl_seeds: mixed into the seed with Python's tuple hash, as the original does.
    """
    if seed is None:
        yield
        return
    if addl_seeds:
        seed = int(hash((seed, *addl_seeds)) % 1e6)
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def filter_by_size(
    indices: np.ndarray, dataset: Any, max_positions: Any, raise_exception: bool = False
) -> np.ndarray:
    """Return the indices of the items of ``dataset`` that are short enough.

    Args:
        indices: int (N,), sample numbers.
        dataset: a FairseqDataset.
        max_positions: the most allowed: a number, or a tuple with None for no limit.
        raise_exception: raise for samples that are too long instead of warning.

    Raises:
        DataError: if some are too long and ``raise_exception`` is set.
    """
    kept, ignored = dataset.filter_indices_by_size(indices, max_positions)
    if ignored:
        where = f"max_positions={max_positions}, first sample ids={ignored[:10]}"
        if raise_exception:
            raise DataError(
                f"{len(ignored)} samples are too long, {where}. Skip them with "
                "--skip-invalid-size-inputs-valid-test, or shorten them"
            )
        logger.warning("%d samples are too long and will be skipped, %s", len(ignored), where)
    return kept


def filter_paired_dataset_indices_by_size(
    src_sizes: np.ndarray,
    tgt_sizes: np.ndarray | None,
    indices: np.ndarray,
    max_sizes: float | Sequence[float | None] | None,
) -> tuple[np.ndarray, list[int]]:
    """Split ``indices`` by the lengths of sources and targets.

    Args:
        src_sizes: lengths of all sources.
        tgt_sizes: lengths of all targets, or None.
        indices: int (N,), sample numbers.
        max_sizes: one limit for both, a pair (source, target), or None.

    Returns:
        Indices that fit, in order, and the list of the others.
    """
    if max_sizes is None:
        return indices, []
    limits = list(max_sizes) if isinstance(max_sizes, Sequence) else [max_sizes, max_sizes]
    sizes = [src_sizes] if tgt_sizes is None else [src_sizes, tgt_sizes]
    return filter_by_sizes(indices, sizes, limits[: len(sizes)])


def load_indexed_dataset(
    path: str,
    dictionary: Any = None,
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


def raise_if_valid_subsets_unintentionally_ignored(train_cfg: Any) -> None:
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
    found = {os.path.splitext(name)[0] for name in names if re.match(r"valid\d", name)}
    unused = sorted(found - set(dataset.valid_subset.split(",")))
    if unused:
        raise ConfigError(
            f"Valid paths {unused} will be ignored. Set --combine-val to combine them or "
            "--ignore-unused-valid-subsets to ignore them."
        )
