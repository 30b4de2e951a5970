"""The original fairseq's masks, bit for bit: ``--data-rng fairseq-main`` and ``fairseq-0.12``.

One item at a time, special tokens masked like any other. The two lines of the original differ in
their generator alone: numpy's default one on main, the legacy Mersenne twister in 0.12. The order
of the draws is part of the contract: rounding, choice, span lengths, treatment, replacements.

Shape suffixes: T tokens of the item, U units (tokens, or words) of the item, N chosen things.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairseq.data.masking import MaskSpec
from fairseq.errors import DataError
from fairseq.rng import legacy_item_seed


def replay_mask(
    tokens_T: np.ndarray, index: int, *, spec: MaskSpec, seed: int, epoch: int, data_rng: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one item exactly as the original fairseq does.

    Args:
        tokens_T: int (T,): the item.
        index: its index in the dataset.
        spec: what to mask and how; special tokens are masked like any other.
        seed: the run's seed.
        epoch: the epoch.
        data_rng: "fairseq-main" or "fairseq-0.12".

    Returns:
        source_T and target_T, as :func:`mask_tokens`.

    Raises:
        DataError: if the item already holds the mask id.
    """
    if (tokens_T == spec.mask).any():
        raise DataError(
            f"item {index} already holds the mask id {spec.mask}; binarize the text without it, "
            "or use --data-rng philox"
        )
    item_seed = legacy_item_seed(seed, epoch, index)
    rng: Any = np.random.RandomState(item_seed)
    if data_rng == "fairseq-main":
        rng = np.random.default_rng(item_seed)
    word_lengths_N = _word_lengths(tokens_T, spec)
    units = len(word_lengths_N)

    masked = np.zeros(units, dtype=np.bool_)  # per unit, as the two below
    masked[_replay_choice(rng, units, spec)] = True
    left, drawn = _replay_treatment(rng, masked, spec)
    masked_T, left_T, drawn_T = (np.repeat(x, word_lengths_N) for x in (masked, left, drawn))

    source_T = np.where(masked_T & ~left_T, spec.mask, tokens_T)
    if n_drawn := int(drawn_T.sum()):
        source_T[drawn_T] = rng.choice(spec.vocab_size, n_drawn, p=spec.original_weights_V)
    return source_T, np.where(masked_T, tokens_T, spec.pad)


def _word_lengths(tokens_T: np.ndarray, spec: MaskSpec) -> np.ndarray:
    """Return the number of tokens of each unit of an item; the first always begins a word."""
    if spec.word_begin_V is None:
        return np.ones(len(tokens_T), dtype=np.int64)
    begins_T = spec.word_begin_V[tokens_T].astype(np.bool_)
    begins_T[:1] = True
    return np.diff(np.flatnonzero(begins_T), append=len(tokens_T))


def _replay_choice(rng: np.random.RandomState, units: int, spec: MaskSpec) -> np.ndarray:
    """Draw, in the original's order, the indices of the masked units."""
    expected = spec.mask_prob * units / float(spec.mask_multiple_length)
    wanted = int(expected + rng.random())
    first_N = rng.choice(units, wanted, replace=False)
    lengths = [spec.mask_multiple_length] * wanted
    if spec.mask_stdev > 0.0:
        normal_N = rng.normal(spec.mask_multiple_length, spec.mask_stdev, size=wanted)
        lengths = [max(0, round(x)) for x in normal_N.tolist()]
    spans = [first_N[i] + np.arange(length) for i, length in enumerate(lengths)]
    masked_N = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
    # spans that run over the end are cut there, and so mask less than was asked for
    return masked_N[masked_N < units]


def _replay_treatment(
    rng: np.random.RandomState, masked: np.ndarray, spec: MaskSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Draw, in the original's order, which masked units are left as they are, which are random."""
    left, drawn = spec.leave_unmasked_prob, spec.random_token_prob
    nothing = np.zeros_like(masked)
    if left + drawn == 0.0:
        return nothing, nothing
    special = masked & (rng.random(len(masked)) < left + drawn)
    if drawn == 0.0:
        return special, nothing
    if left == 0.0:
        return nothing, special
    is_left = rng.random(len(masked)) < left / (left + drawn)
    return special & is_left, special & ~is_left
