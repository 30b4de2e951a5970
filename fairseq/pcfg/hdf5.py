"""Masked samples in HDF5 files, as the original laboratory prepares them for its BERT.

Arrays of N samples of L tokens with up to P masked ones: ``input_ids`` [N, L] (``[CLS] words
[SEP]``, padded by 0), ``masked_lm_positions`` and ``masked_lm_ids`` [N, P], where position 0 marks
a slot that is not used. ``input_mask`` and ``segment_ids`` follow from these and are not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq.errors import DataError
from fairseq.files.io import PathLike, require_file
from fairseq.lazy import require_library

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
_KEYS = ("input_ids", "masked_lm_positions", "masked_lm_ids")


def read_masked_samples(
    path: PathLike, vocabulary: PathLike, terminals: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read the sentences of a file as they were, and which of their words were masked.

    Args:
        path: the HDF5 file.
        vocabulary: the text file of word pieces, one a line, that it was made with.
        terminals: the words of the source.

    Returns:
        word numbers of each sentence, int64 (N,), and its masked positions, ascending, counted
        from its first word.

    Raises:
        DataError: if the file is damaged, or a sample is not one sentence of known words.
        ConfigError: if the package h5py is missing.
        MissingFileError: if a file is missing.
    """
    require_file(path, "HDF5 file", "Check the path.")
    text = require_file(vocabulary, "vocabulary", "It is the vocab.txt of BERT.").read_text("utf-8")
    pieces = text.split("\n")
    ids, positions, masked_ids = _arrays(path)
    number = {word: place for place, word in enumerate(terminals)}
    word_V = np.array([number.get(piece, -1) for piece in pieces], dtype=np.int64)
    frame = {piece: pieces.index(piece) if piece in pieces else -1 for piece in SPECIAL}
    sentences, hidden = [], []
    for row, (ids_L, positions_P, masked_P) in enumerate(
        zip(ids, positions, masked_ids, strict=True)
    ):
        used = positions_P > 0
        whole_L = ids_L.copy()
        whole_L[positions_P[used]] = masked_P[used]
        ends = np.flatnonzero(whole_L == frame["[SEP]"])
        if whole_L[0] != frame["[CLS]"] or not len(ends) or (whole_L < 0).any():
            raise DataError(f"{path}, sample {row}: does not begin with [CLS] and end with [SEP]")
        if whole_L.max() >= len(word_V):
            raise DataError(f"{path}, sample {row}: ids beyond {vocabulary}; it is another one")
        words_N = word_V[whole_L[1 : ends[0]]]
        if (words_N < 0).any():
            stranger = pieces[whole_L[1 : ends[0]][words_N < 0][0]]
            raise DataError(f"{path}, sample {row}: '{stranger}' is no word of the grammar")
        sentences.append(words_N)
        hidden.append(np.sort(positions_P[used].astype(np.int64)) - 1)
        if not len(hidden[-1]) or hidden[-1][-1] >= len(words_N):
            raise DataError(f"{path}, sample {row}: masks none of its words, or beyond them")
    return sentences, hidden


def _arrays(path: PathLike) -> list[np.ndarray]:
    """Return the arrays that are needed, checked for their shapes."""
    h5py = require_library("h5py", f"reading {path}")
    try:
        with h5py.File(path, "r") as handle:
            parts: list[Any] = [np.asarray(handle[key]) for key in _KEYS]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: no HDF5 file with {', '.join(_KEYS)}: {error}") from None
    ids, positions, masked_ids = parts
    fits = ids.ndim == 2 and positions.ndim == 2 and positions.shape == masked_ids.shape
    if not fits or len(ids) != len(positions) or not len(ids):
        raise DataError(f"{path}: shapes {[part.shape for part in parts]} do not fit each other")
    if positions.min() < 0 or positions.max() >= ids.shape[1] or masked_ids.min() < 0:
        raise DataError(f"{path}: masked positions or ids are out of range")
    return parts
