"""True conditionals of masked words, written for whole texts.

A score file is an npz of plain arrays: ``offset`` int64 [S + 1], ``position`` int16 [M], ``target``
int16 [M] (word numbers), ``logq`` float32 [M, T] (natural log; -inf where a word is impossible, NaN
where no word fits), ``entropy`` float32 [M], ``logp_sentence`` float64 [S], ``grammar_sha256``,
``terminals`` [T]. Rows of sentence s are offset[s] to offset[s + 1], by position.

Shape suffixes: S sentences, B of them of one length, N words, M scored positions, T terminals.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairseq.errors import ConfigError
from fairseq.files.io import PathLike, atomic_write
from fairseq.files.text_blocks import progress
from fairseq.pcfg.chart import MASK
from fairseq.pcfg.source import Source, batches
from fairseq.rng import philox

CHUNK = 1 << 24
"""Numbers of ``logq`` that are in memory at once."""


@dataclass(frozen=True)
class Scores:
    """The arrays of a score file (see the module), and ``nll`` float64 [M], -logq of targets."""

    offset: np.ndarray
    position: np.ndarray
    target: np.ndarray
    logq: np.ndarray
    entropy: np.ndarray
    logp_sentence: np.ndarray
    nll: np.ndarray

    def optimum(self) -> dict[str, float]:
        """Return the lowest possible loss in nats, per sentence (macro) and position (micro).

        Also their standard errors over sentences, and the loss of the truth on the words that
        stand there (``nll``), which agrees within the errors. Sentences with undefined rows are
        left out and counted.
        """
        count_S = np.diff(self.offset)
        sums = [
            # of an empty run reduceat returns a neighbour, but every sentence has a position
            np.add.reduceat(part, self.offset[:-1])
            for part in (self.entropy.astype(np.float64), self.nll)
        ]
        fine_S = np.isfinite(sums[0]) & np.isfinite(sums[1])
        figures: dict[str, float] = {
            "sentences": int(fine_S.sum()),
            "undefined": int((~fine_S).sum()),
        }
        for name, sum_S in zip(("optimum", "nll"), sums, strict=True):
            macro, macro_se, micro, micro_se = means(sum_S[fine_S], count_S[fine_S])
            figures |= {f"{name}_macro": macro, f"{name}_macro_se": macro_se}
            figures |= {f"{name}_micro": micro, f"{name}_micro_se": micro_se}
        return figures


def means(sum_S: np.ndarray, count_S: np.ndarray) -> tuple[float, float, float, float]:
    """Return mean per sentence and per position, each with its standard error over sentences.

    Args:
        sum_S: sum of a figure over the positions of each sentence.
        count_S: their number.

    Source: Cochran 1977, section 6.3, for the error of a ratio.
    """
    if not len(sum_S):
        return (float("nan"),) * 4
    macro_S = sum_S / count_S
    micro = sum_S.sum() / count_S.sum()
    root = np.sqrt(len(sum_S))
    residual_S = (sum_S - micro * count_S) / count_S.mean()
    errors = [
        float(part.std(ddof=1) / root) if root > 1 else float("nan")
        for part in (macro_S, residual_S)
    ]
    return float(macro_S.mean()), errors[0], float(micro), errors[1]


def positions_of(
    masks: str | Sequence[np.ndarray], lengths: Sequence[int], seed: int = 1
) -> Sequence[np.ndarray] | None:
    """Return the positions that ``--masks`` hides in each sentence; None for each one in turn.

    Raises:
        ConfigError: if it is neither ``single`` nor ``random:k``.
    """
    if not isinstance(masks, str):
        return masks
    if masks == "single":
        return None
    match = re.fullmatch(r"random:([1-9]\d*)", masks)
    if match is None:
        raise ConfigError(
            f"--masks {masks} is unknown; choose single or random:k, such as random:2"
        )
    wanted = int(match.group(1))
    return [
        np.sort(philox(seed, "pcfg/masks", index).permutation(length)[:wanted])
        for index, length in enumerate(lengths)
    ]


def score(
    source: Source,
    sentences: Sequence[np.ndarray],
    masks: str | Sequence[np.ndarray] = "single",
    seed: int = 1,
) -> Scores:
    """Return the true conditionals of a text.

    Args:
        source: where it comes from.
        sentences: word numbers of each sentence, int64 (N,).
        masks: ``single``, every position given all others; ``random:k``, k at a time; or the
            positions that are hidden in each sentence, ascending.
        seed: chooses the k.

    Raises:
        ConfigError: for other ``masks``.
    """
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    chosen = positions_of(masks, lengths.tolist(), seed)
    count_S = lengths if chosen is None else np.array([len(part) for part in chosen])
    offset = np.concatenate([[0], np.cumsum(count_S)])
    terminals = len(source.terminals)
    position = np.concatenate([np.arange(n) for n in lengths] if chosen is None else chosen)
    sentence_M = np.repeat(np.arange(len(lengths)), count_S)
    words = np.concatenate(list(sentences))
    starts = np.cumsum(lengths) - lengths
    target = words[starts[sentence_M] + position]
    logq = np.empty((len(position), terminals), dtype=np.float32)
    entropy = np.empty(len(position), dtype=np.float32)
    nll = np.empty(len(position))
    logp = np.empty(len(lengths))
    for indices_B, words_BN in batches(source, sentences):
        count_B = count_S[indices_B]
        place_M = np.repeat(np.arange(len(indices_B)), count_B)
        shift_B = offset[indices_B] - np.cumsum(count_B) + count_B
        row_M = np.arange(len(place_M)) + shift_B[place_M]
        shown_BN = words_BN
        if chosen is not None:
            shown_BN = words_BN.copy()
            shown_BN[place_M, position[row_M]] = MASK
        q_BNT, logp[indices_B] = source.conditionals(shown_BN)
        if chosen is not None:
            # the conditionals know that of the words shown; the file holds that of the sentence
            logp[indices_B] = source.logprob(words_BN)
        q_MT = q_BNT[place_M, position[row_M]]
        with np.errstate(divide="ignore"):
            log_MT = np.log(q_MT)
        logq[row_M] = log_MT
        nll[row_M] = -log_MT[np.arange(len(row_M)), target[row_M]]
        # 0 log 0 is 0, and 0 times -inf would not be
        entropy[row_M] = -np.einsum("mt,mt->m", q_MT, np.maximum(log_MT, -1e300))
    small = np.int16 if max(terminals, int(lengths.max())) < 1 << 15 else np.int32
    return Scores(offset, position.astype(small), target.astype(small), logq, entropy, logp, nll)


def write_scores(
    path: PathLike,
    source: Source,
    sentences: Sequence[np.ndarray],
    masks: str | Sequence[np.ndarray] = "single",
    seed: int = 1,
    grammar_sha256: str = "",
) -> Scores:
    """Write a score file, some sentences at a time; equal scores give equal bytes.

    Args:
        path: the npz to write.
        source: where the sentences come from.
        sentences: of this and the next two see :func:`score`.
        grammar_sha256: digest of the file of the source.

    Returns:
        all arrays but ``logq``, which is empty.
    """
    lengths = [len(sentence) for sentence in sentences]
    chosen = positions_of(masks, lengths, seed)
    count = sum(lengths if chosen is None else map(len, chosen))
    parts: list[Scores] = []
    # numpy.savez notes the time of day; entries made here have a fixed one
    with (
        atomic_write(path) as handle,
        zipfile.ZipFile(handle, "w") as archive,
        progress("scoring", len(sentences), "sentences") as show,
    ):
        with archive.open(zipfile.ZipInfo("logq.npy"), "w", force_zip64=True) as entry:
            shape = (count, len(source.terminals))
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(entry, header)
            size = max(CHUNK // (max(lengths) * shape[1]), 1)
            for first in range(0, len(sentences), size):
                part_S = slice(first, first + size)
                part = score(
                    source, sentences[part_S], "single" if chosen is None else chosen[part_S]
                )
                entry.write(part.logq.astype("<f4", copy=False).data)
                parts.append(replace(part, logq=part.logq[:0]))
                show(min(first + size, len(sentences)))
        whole = _joined(parts)
        arrays = {name: array for name, array in vars(whole).items() if name not in ("logq", "nll")}
        arrays["grammar_sha256"] = np.array(grammar_sha256)
        arrays["terminals"] = np.array(source.terminals, dtype=np.str_)
        add_arrays(archive, arrays)
    return whole


def add_arrays(archive: zipfile.ZipFile, arrays: dict[str, np.ndarray]) -> None:
    """Add arrays to a new npz; unlike numpy's, equal arrays give equal bytes."""
    for name, array in arrays.items():
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, array, allow_pickle=False)


def _joined(parts: list[Scores]) -> Scores:
    """Return the scores of all sentences."""
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name != "offset"
    }
    counts = np.concatenate([np.diff(part.offset) for part in parts])
    return Scores(offset=np.concatenate([[0], np.cumsum(counts)]), **columns)
