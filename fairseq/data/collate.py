"""Helpers of the data pipeline that plug-ins and notebooks import by name.

Shape suffixes: B items, T tokens of the longest item, N samples.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from fairseq.aliases import NAMES
from fairseq.data.batches.cut import (
    batch_by_size,
    batch_by_size_fn,
    batch_by_size_vec,
    filter_by_size_dynamic,
)
from fairseq.lazy import lazy_names

__all__ = [
    "batch_by_size",
    "batch_by_size_fn",
    "batch_by_size_vec",
    "collate_tokens",
    "filter_by_size_dynamic",
    "numpy_seed",
]

logger = logging.getLogger("fairseq.data.data_utils")

__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


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
    # minus twice, as // rounds down and this must round up
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
        # hashes of tuples of ints are the same in every process, unlike those of texts
        seed = int(hash((seed, *addl_seeds)) % 1e6)
    state = np.random.get_state()
    np.random.seed(seed % 2**32)  # numpy takes no more bits
    try:
        yield
    finally:
        np.random.set_state(state)
