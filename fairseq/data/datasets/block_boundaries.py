"""Where blocks of tokens begin and end: the four break modes, as plain numpy.

A corpus is one stream of tokens, cut into M sentences of ``sizes_M`` tokens (end-of-sentence
included). Blocks are half-open intervals of that stream, in order and without overlap.

Shape suffixes: M sentences, K blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from fairseq.errors import ConfigError, check_choice

BREAK_MODES = ("none", "complete", "complete_doc", "eos")


def block_slices(
    sizes_M: np.ndarray, break_mode: str | None, block_size: int | None, document_sep_len: int = 1
) -> np.ndarray:
    """Cut the stream into blocks.

    Args:
        sizes_M: int64 (M,), tokens of each sentence.
        break_mode: ``none``: every ``block_size`` tokens; ``complete``: as many whole sentences as
            fit, a longer sentence being a block of its own; ``complete_doc``: likewise, but a
            document's end ends the block, and blocks of one token are dropped; ``eos``: every
            sentence is a block. None means ``none``.
        block_size: most tokens of a block; not used by ``eos``.
        document_sep_len: sentences of this many tokens separate documents and belong to no block.

    Returns:
        int64 (K, 2), first token and token after the last of each block.

    Raises:
        ConfigError: if the mode is unknown, or has no positive block size.
    """
    mode = break_mode or "none"
    check_choice("--sample-break-mode", mode, BREAK_MODES)
    ends_M = np.cumsum(sizes_M, dtype=np.int64)
    if mode == "eos":
        return np.stack([ends_M - sizes_M, ends_M], axis=1)
    if block_size is None or block_size < 1:
        raise ConfigError(f"--sample-break-mode {mode} needs a positive block size")
    if mode == "none":
        total = int(ends_M[-1]) if len(ends_M) else 0
        begins_K = np.arange(0, total, block_size, dtype=np.int64)
        return np.stack([begins_K, np.minimum(begins_K + block_size, total)], axis=1)
    if mode == "complete":
        return _whole_sentences(sizes_M, ends_M, block_size, np.zeros(len(sizes_M), bool), 1)
    return _whole_sentences(sizes_M, ends_M, block_size, sizes_M == document_sep_len, 2)


def _whole_sentences(
    sizes_M: np.ndarray, ends_M: np.ndarray, block_size: int, separates_M: np.ndarray, shortest: int
) -> np.ndarray:
    """Return blocks of whole sentences between separators, of ``shortest`` tokens at least."""
    begins_M = ends_M - sizes_M
    # The sentence after the block that would begin with each sentence: found for all at once, as
    # a search inside the loop over blocks takes ten times as long.
    first_M = np.arange(len(sizes_M))
    after_M = np.searchsorted(ends_M, begins_M + block_size, side="right")
    after_M = np.maximum(after_M, first_M + 1)
    separators = np.flatnonzero(separates_M)
    if len(separators):
        next_separator = np.append(separators, len(sizes_M))[np.searchsorted(separators, first_M)]
        after_M = np.where(separates_M, first_M + 1, np.minimum(after_M, next_separator))
    heads_K = np.fromiter(_chain(after_M), np.int64)
    heads_K = heads_K[~separates_M[heads_K]]
    slices = np.stack([begins_M[heads_K], ends_M[after_M[heads_K] - 1]], axis=1)
    return slices[slices[:, 1] - slices[:, 0] >= shortest]


def _chain(after_M: np.ndarray) -> Iterator[int]:
    """Yield the first sentence of each block."""
    after = memoryview(after_M.data)  # its items are Python ints, several times faster than numpy's
    head, end = 0, len(after)
    while head < end:
        yield head
        head = after[head]


def block_to_dataset_index(
    slices: np.ndarray, sizes_M: np.ndarray, break_mode: str | None
) -> np.ndarray:
    """Find the sentences that each block touches.

    Args:
        slices: int64 (K, 2), as :func:`block_slices` returns for the same sizes and mode.
        sizes_M: int64 (M,), tokens of each sentence.
        break_mode: the mode; blocks may be empty in mode ``eos`` only.

    Returns:
        int64 (K, 3): first sentence, offset in it of the block's first token, last sentence.
    """
    if break_mode == "eos":
        sentences_K = np.arange(len(slices))
        return np.stack([sentences_K, np.zeros_like(sentences_K), sentences_K], axis=1)
    ends_M = np.cumsum(sizes_M, dtype=np.int64)
    first_K = np.searchsorted(ends_M, slices[:, 0], side="right")
    # "left": a block that ends with a sentence does not touch the next one
    last_K = np.searchsorted(ends_M, slices[:, 1], side="left")
    offset_K = slices[:, 0] - (ends_M - sizes_M)[first_K]
    return np.stack([first_K, offset_K, last_K], axis=1)


BreakMode = Literal["none", "complete", "complete_doc", "eos", "line"]
