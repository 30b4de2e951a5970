"""Masked samples in HDF5 files, as the original laboratory prepares them for its BERT.

Arrays of N samples of L tokens with up to P masked ones: ``input_ids`` [N, L] (``[CLS] words
[SEP]``, padded by 0), ``masked_lm_positions`` and ``masked_lm_ids`` [N, P], where position 0 marks
a slot that is not used. ``input_mask`` and ``segment_ids`` follow from these and are not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq.errors import ConfigError, DataError
from fairseq.files.io import PathLike, atomic_write, require_file, require_text
from fairseq.lazy import require_library
from fairseq.rng import philox

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
MASKED, KEPT = 0.8, 0.9  # below the first: [MASK]; up to the second: the word itself
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
    pieces = _pieces(vocabulary)
    ids, positions, masked_ids = _arrays(path)
    number = {word: place for place, word in enumerate(terminals)}
    word_V = np.array([number.get(piece, -1) for piece in pieces], dtype=np.int64)
    frame = {piece: pieces.index(piece) if piece in pieces else -1 for piece in SPECIAL}
    sentences, hidden = [], []
    for row, (ids_L, positions_P, masked_P) in enumerate(
        zip(ids, positions, masked_ids, strict=True)
    ):
        # position 0 is [CLS], which is never masked
        used = positions_P > 0
        whole_L = ids_L.copy()
        # back to what the masks replaced
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


def _pieces(vocabulary: PathLike) -> list[str]:
    # not splitlines, which breaks lines at characters that are pieces themselves
    return require_text(vocabulary, "vocabulary", "It is the vocab.txt of BERT.").split("\n")


@dataclass(frozen=True)
class Masking:
    """How sentences are masked, once and for all.

    Attributes:
        probability: share of the tokens, ``[CLS]`` and ``[SEP]`` counted, that is masked: rounded,
            at least one, at most ``predictions``. 80 % become ``[MASK]``, 10 % stay, 10 % become
            any piece of the vocabulary.
        predictions: P.
        length: L.
        duplicates: how often each sentence is masked anew.
        seed: of the masks.
    """

    probability: float = 0.15
    predictions: int = 20
    length: int = 512
    duplicates: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1 or min(self.predictions, self.duplicates) < 1:
            raise ConfigError("masks need a probability in (0, 1], predictions and duplicates >= 1")


def write_masked_samples(
    folder: PathLike,
    vocabulary: PathLike,
    terminals: Sequence[str],
    sentences: Sequence[np.ndarray],
    masking: Masking,
    name: str = "train",
) -> list[str]:
    """Write ``NAME_shard_K.hdf5`` for each duplicate K; one sentence a sample.

    Args:
        folder: made if it does not exist.
        vocabulary: the text file of word pieces, one a line.
        terminals: the words of the source.
        sentences: word numbers of each, int64 (N,).
        masking: how.
        name: of the split.

    Returns:
        the names of the files.

    Raises:
        ConfigError: if h5py is missing, or a sentence does not fit ``masking.length``.
        DataError: if a word is no piece.
    """
    h5py = require_library("h5py", "writing HDF5")
    pieces = _pieces(vocabulary)
    # a file ends in a line break, behind which there is no piece
    if not pieces[-1]:
        pieces = pieces[:-1]
    number = {piece: place for place, piece in enumerate(pieces)}
    missing = [word for word in (*SPECIAL, "[MASK]", *terminals) if word not in number]
    if missing:
        raise DataError(f"{vocabulary} has no '{missing[0]}'; words of a grammar are whole pieces")
    longest = max(map(len, sentences)) + 2
    if longest > masking.length:
        raise ConfigError(f"--max-seq-length {masking.length}: a sentence needs {longest}")
    id_T = np.array([number[word] for word in terminals])
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for duplicate in range(masking.duplicates):
        rng = philox(masking.seed, f"pcfg/hdf5/{name}", duplicate)
        arrays = _masked(sentences, id_T, number, masking, rng)
        written.append(f"{name}_shard_{duplicate}.hdf5")
        with atomic_write(Path(folder) / written[-1]) as raw, h5py.File(raw, "w") as handle:
            for key, array in arrays.items():
                handle.create_dataset(key, data=array, compression="gzip")
    return written


def _masked(
    sentences: Sequence[np.ndarray],
    id_T: np.ndarray,
    number: dict[str, int],
    masking: Masking,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the five arrays of a file."""
    shape = (len(sentences), masking.length)
    ids = np.full(shape, number["[PAD]"], dtype=np.int32)
    mask = np.zeros(shape, dtype=np.int8)
    slots = (len(sentences), masking.predictions)
    positions, masked_ids = np.zeros(slots, dtype=np.int32), np.zeros(slots, dtype=np.int32)
    for row, words in enumerate(sentences):
        end = len(words) + 2
        ids[row, :end] = [number["[CLS]"], *id_T[words], number["[SEP]"]]
        mask[row, :end] = 1
        wanted = max(1, round(end * masking.probability))
        chosen = np.sort(rng.permutation(len(words))[: min(masking.predictions, wanted)]) + 1
        positions[row, : len(chosen)] = chosen
        masked_ids[row, : len(chosen)] = ids[row, chosen]
        how = rng.random(len(chosen))
        ids[row, chosen[how < MASKED]] = number["[MASK]"]
        other = chosen[how >= KEPT]
        ids[row, other] = rng.integers(len(number), size=len(other))
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros(shape, dtype=np.int8),
            "masked_lm_positions": positions, "masked_lm_ids": masked_ids}  # fmt: skip


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
