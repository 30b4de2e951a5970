"""Masks of one item, by the random numbers that ``--data-rng`` names."""

from __future__ import annotations

import numpy as np

from fairseq.data.masking import MaskSpec, mask_tokens
from fairseq.data.masking.original_masks import replay_mask
from fairseq.errors import check_choice
from fairseq.rng import DATA_RNGS


def check_data_rng(name: str) -> str:
    """Return ``name`` if it is one of ``DATA_RNGS``.

    Raises:
        ConfigError: if it is not.
    """
    check_choice("--data-rng", name, DATA_RNGS)
    return name


def mask_item(
    tokens_T: np.ndarray, index: int, *, spec: MaskSpec, seed: int, epoch: int, data_rng: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one item with any of the generators.

    Args:
        tokens_T: int (T,): the item.
        index: its index in the dataset.
        spec: what to mask and how.
        seed: the run's seed.
        epoch: the epoch.
        data_rng: one of ``DATA_RNGS``.

    Returns:
        source_T and target_T, as :func:`fairseq.data.masking.mask_tokens`.

    Raises:
        DataError: if the item does not fit the dictionary.
    """
    if data_rng != "philox":
        return replay_mask(tokens_T, index, spec=spec, seed=seed, epoch=epoch, data_rng=data_rng)
    source_BT, target_BT = mask_tokens(
        tokens_T[None],
        np.array([len(tokens_T)]),
        np.array([index]),
        spec=spec,
        seed=seed,
        epoch=epoch,
    )
    return source_BT[0], target_BT[0]
