"""From an order of samples to batches: filter by length, then cut greedily. Numpy only.

A batch of n samples costs n times its longest sample, because shorter ones are padded. Batches
keep the given order of samples and are never empty.

Shape suffixes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fairseq.errors import DataError, UnsupportedError
from fairseq.protocols import Limits


def batch_by_size_vec(
    indices: np.ndarray | Sequence[int],
    num_tokens_vec: np.ndarray | Sequence[int],
    max_tokens: int | None,
    max_sentences: int | None,
    bsz_mult: int,
) -> list[np.ndarray]:
    """Cut ``indices`` into batches, keeping their order.

    From the first sample left, the longest run within both limits becomes a batch; a run of
    ``bsz_mult`` samples or more is cut back to a multiple of it.

    Args:
        indices: int (N,), sample numbers in the wanted order.
        num_tokens_vec: int (N,), the length of each of them.
        max_tokens: most tokens in a batch, padding included; None, 0 or less for no limit.
        max_sentences: most samples in a batch; None, 0 or less for no limit.
        bsz_mult: batches have fewer samples than this, or a multiple of it.

    Returns:
        Batches, int64 arrays.

    Raises:
        DataError: if one sample alone is longer than ``max_tokens``.
    """
    indices_N = np.asarray(indices, dtype=np.int64)
    lengths_N = np.asarray(num_tokens_vec, dtype=np.int64)
    n_samples = len(indices_N)
    tokens = max_tokens if max_tokens and max_tokens > 0 else None
    sentences = max_sentences if max_sentences and max_sentences > 0 else max(n_samples, 1)
    if tokens is not None:
        _refuse_too_long(indices_N, lengths_N, tokens)
    cuts, begin = [], 0
    while begin < n_samples:
        count = min(sentences, n_samples - begin)
        if tokens is not None:
            # No batch from here can hold more than this, as its longest sample is >= the first.
            first = int(lengths_N[begin])
            count = min(count, tokens // first) if first > 0 else count
            longest = np.maximum.accumulate(lengths_N[begin : begin + count])
            # cost of the first k samples; it only grows with k, so it can be searched
            count = int(np.searchsorted(longest * np.arange(1, count + 1), tokens, side="right"))
        if count > bsz_mult:
            count -= count % bsz_mult
        begin += count
        cuts.append(begin)
    return np.split(indices_N, cuts[:-1]) if cuts else []


def batch_by_size_fn(
    indices: np.ndarray | Sequence[int],
    num_tokens_fn: Callable[[int], int],
    max_tokens: int | None,
    max_sentences: int | None,
    bsz_mult: int,
) -> list[np.ndarray]:
    """Cut ``indices`` into batches as :func:`batch_by_size_vec`, asking a function for lengths."""
    indices_N = np.asarray(indices, dtype=np.int64)
    lengths_N = np.fromiter(map(num_tokens_fn, indices_N.tolist()), np.int64, len(indices_N))
    return batch_by_size_vec(indices_N, lengths_N, max_tokens, max_sentences, bsz_mult)


def batch_by_size(
    indices: np.ndarray | Sequence[int] | Iterable[int],
    num_tokens_fn: Callable[[int], int] | None,
    num_tokens_vec: np.ndarray | None = None,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    required_batch_size_multiple: int = 1,
    fixed_shapes: Sequence[tuple[int, int]] | None = None,
    drop_trailing: bool = False,
) -> list[np.ndarray]:
    """Cut ``indices`` into batches by tokens and by number of samples.

    Args:
        indices: int (N,), sample numbers in the wanted order.
        num_tokens_fn: sample number -> its length; used when ``num_tokens_vec`` is None.
        num_tokens_vec: int (N,), the lengths of ``indices``.
        max_tokens: most tokens in a batch, padding included; None for no limit.
        max_sentences: most samples in a batch; None for no limit.
        required_batch_size_multiple: batches have fewer samples than this, or a multiple of it.
        fixed_shapes: refused; the original uses it on TPUs.
        drop_trailing: drop the last batch if it is no multiple of the required one, as the
            original's main branch does.

    Raises:
        DataError: if one sample alone is longer than ``max_tokens``.
        UnsupportedError: if ``fixed_shapes`` is given.
    """
    if fixed_shapes is not None:
        raise UnsupportedError(
            "batches of fixed shapes are for TPUs, which are not supported: let "
            "get_batch_shapes() return None, or use the original fairseq"
        )
    # a generator can be read once only, and both its items and its length are needed
    ordered = indices if isinstance(indices, np.ndarray | list) else list(indices)
    limits = (max_tokens, max_sentences, required_batch_size_multiple)
    if num_tokens_vec is not None:
        batches = batch_by_size_vec(ordered, num_tokens_vec, *limits)
    else:
        assert num_tokens_fn is not None, "either num_tokens_fn or num_tokens_vec is needed"
        batches = batch_by_size_fn(ordered, num_tokens_fn, *limits)
    return without_trailing(batches, required_batch_size_multiple) if drop_trailing else batches


def without_trailing(batches: list[np.ndarray], multiple: int) -> list[np.ndarray]:
    """Return the batches without the last one if its size is no multiple of ``multiple``.

    Only the last can miss it: the cutters round all others down.
    """
    return batches[:-1] if batches and len(batches[-1]) % multiple else batches


def filter_by_size_dynamic(
    indices: np.ndarray,
    size_fn: Callable[[int], Any],
    max_positions: Limits,
) -> tuple[np.ndarray, list[int]]:
    """Split ``indices`` into samples that fit and samples that are too long, one by one.

    Args:
        indices: int (N,), sample numbers.
        size_fn: sample number -> its length, or a tuple of lengths.
        max_positions: the most allowed: a number, or a tuple with None for no limit.

    Returns:
        Indices that fit, in order, and the list of the others.
    """
    fits_N = np.fromiter(
        (_fits(size_fn(index), max_positions) for index in indices.tolist()), bool, len(indices)
    )
    return indices[fits_N], indices[~fits_N].tolist()


def filter_by_sizes(
    indices: np.ndarray, sizes: Sequence[np.ndarray], max_sizes: Sequence[float | None]
) -> tuple[np.ndarray, list[int]]:
    """Split ``indices`` by one or more arrays of lengths, each with its own limit.

    Args:
        indices: int (N,), sample numbers.
        sizes: arrays of the lengths of all samples.
        max_sizes: the most allowed in each array, None for no limit.

    Returns:
        Indices that fit, in order, and the list of the others.
    """
    fits_N = np.ones(len(indices), dtype=bool)
    for lengths, limit in zip(sizes, max_sizes, strict=True):
        if limit is not None:
            fits_N &= lengths[indices] <= limit
    return indices[fits_N], indices[~fits_N].tolist()


def _fits(size: object, limit: Any) -> bool:
    """Tell whether a length or tuple of lengths respects a limit or tuple of limits."""
    # one limit for several lengths binds the longest of them
    if not isinstance(limit, Iterable):
        return bool((max(size) if isinstance(size, Iterable) else size) <= limit)
    sizes = size if isinstance(size, Iterable) else [size] * len(list(limit))
    # not strict: a task may state fewer limits than an item has lengths, as the original allows
    pairs = zip(sizes, limit, strict=False)
    return all(one is None or most is None or one <= most for one, most in pairs)


def _refuse_too_long(indices_N: np.ndarray, lengths_N: np.ndarray, max_tokens: int) -> None:
    """Raise a DataError naming the first sample that no batch could hold."""
    too_long = np.flatnonzero(lengths_N > max_tokens)
    if len(too_long):
        first = too_long[0]
        raise DataError(
            f"sentences lengths should not exceed max_tokens={max_tokens}: sample "
            f"{indices_N[first]} has {lengths_N[first]} tokens ({len(too_long)} such samples). "
            "Raise --max-tokens, or filter by size first"
        )
