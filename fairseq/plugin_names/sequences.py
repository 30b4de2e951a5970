"""Masks of lengths and of spans, as plug-ins call them.

Shapes: B rows, T places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.errors import ConfigError


def lengths_to_padding_mask(lens: Tensor) -> Tensor:
    """Return a bool mask (B, T), true behind the end of each row, for lengths (B,)."""
    return torch.arange(int(lens.max()), device=lens.device)[None] >= lens[:, None]


def lengths_to_mask(lens: Tensor) -> Tensor:
    """Return a bool mask (B, T), true up to the end of each row, for lengths (B,)."""
    return ~lengths_to_padding_mask(lens)


def compute_mask_indices(
    shape: tuple[int, int],
    padding_mask: Tensor | None,
    mask_prob: float,
    mask_length: int,
    mask_type: str = "static",
    mask_other: float = 0.0,
    min_masks: int = 0,
    no_overlap: bool = False,
    min_space: int = 0,
    require_same_masks: bool = True,
    mask_dropout: float = 0.0,
    rng: np.random.RandomState | None = None,
    **unused: object,
) -> np.ndarray:
    """Draw spans to mask; numpy's global generator decides, unless one is given.

    Args:
        shape: (B, T).
        padding_mask: bool (B, T), true at pads, which stand behind the tokens and are not masked.
        mask_prob: share of the places that would be masked if spans did not overlap.
        mask_length: places of a span, on average.
        mask_type: of the lengths: ``static`` (all ``mask_length``), ``uniform`` (from
            ``mask_other`` to ``2 * mask_length``), ``normal`` (deviation ``mask_other``) or
            ``poisson``.
        mask_other: see there.
        min_masks: fewest spans of a row.
        no_overlap: spans do not touch each other.
        min_space: places between spans that do not overlap.
        require_same_masks: as many masked places in all rows: those too many are given back.
        mask_dropout: share of the masked places that is given back.
        rng: the generator.
        **unused: for old callers.

    Returns:
        bool (B, T), true at masked places.

    Source: Baevski et al. 2020 (wav2vec 2.0), section 4.2 and appendix A.
    """
    draw: Any = np.random if rng is None else rng
    rows, places = shape
    mask_BT = np.zeros(shape, dtype=bool)
    for row in range(rows):
        size = places if padding_mask is None else places - int(padding_mask[row].sum())
        count = max(min_masks, int(mask_prob * size / mask_length + draw.random_sample()))
        lengths = _lengths(draw, mask_type, mask_length, mask_other, count)
        lengths = np.clip(lengths, 1, max(1, size - 1))
        if no_overlap:
            starts, lengths = _apart(draw, size, lengths, min_space)
        else:
            possible = max(1, size - int(lengths.min(initial=mask_length)) + 1)
            starts = draw.choice(possible, min(len(lengths), possible), replace=False)
        for start, length in zip(starts, lengths, strict=False):
            mask_BT[row, start : min(start + length, size)] = True
    fewest = int(mask_BT.sum(1).min(initial=places))
    for row in range(rows):
        masked = np.flatnonzero(mask_BT[row])
        kept = min(fewest, len(masked)) if require_same_masks else len(masked)
        kept -= int(np.rint(kept * mask_dropout))
        mask_BT[row, draw.choice(masked, len(masked) - kept, replace=False)] = False
    return mask_BT


def _lengths(
    draw: np.random.RandomState, kind: str, mean: int, other: float, count: int
) -> np.ndarray:
    """Draw the lengths of spans, int64 of shape (count,)."""
    if kind == "static":
        return np.full(count, mean)
    if kind == "uniform":
        return draw.randint(int(other), mean * 2 + 1, size=count)
    if kind == "normal":
        return np.maximum(1, np.rint(draw.normal(mean, other, size=count))).astype(np.int64)
    if kind == "poisson":
        return draw.poisson(mean, size=count)
    raise ConfigError(f"unknown mask_type '{kind}': choose static, uniform, normal or poisson")


def _apart(
    draw: np.random.RandomState, size: int, lengths: np.ndarray, space: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return starts of spans that keep their distance; those that do not fit are left out."""
    while len(lengths) and lengths.sum() + space * (len(lengths) - 1) > size:
        lengths = lengths[:-1]
    if not len(lengths):
        return lengths, lengths
    order = draw.permutation(lengths)
    free = size - int(order.sum()) - space * (len(order) - 1)
    gaps = np.sort(draw.randint(0, free + 1, size=len(order)))
    before = np.concatenate([[0], np.cumsum(order + space)[:-1]])
    return gaps + before, order
