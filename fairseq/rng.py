"""Randomness as a pure function: (seed, purpose, counters) names a stream, nothing carries over.

No stream depends on what was drawn before it, so results are the same for any number of workers,
any batch composition and after any resume. The streams are Philox4x64-10, a keyed bijection of a
256-bit counter: two different (key, counter) pairs never share a block of the same key's sequence.

Layout of one stream (all words are unsigned 64-bit)::

    key     = [seed mod 2**64, sha256("<purpose>/<number of counters>")[:8], little endian]
    counter = [block number within the stream, counter 1, counter 2, counter 3]

Missing counters are 0; their number is part of the key, so ``(1,)`` and ``(1, 0)`` differ. Each
stream owns 2**64 blocks of four words, so neighbouring indices can never overlap. Raw words
(:func:`raw_words`, :func:`derive_seed`) depend on the cipher alone; methods of the generator
returned by :func:`philox` are as stable as numpy keeps them.

Shape suffixes: N rows, W words.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import functools
import hashlib
from operator import index as as_int

import numpy as np

from fairseq.errors import ConfigError

DATA_RNGS = ("philox", "fairseq-main", "fairseq-0.12")
"""Values of ``--data-rng``: ours, and the two generators of the original fairseq."""

MAX_COUNTERS = 3
_WORD = 1 << 64
_MASK = _WORD - 1


@functools.cache
def _purpose_word(purpose: str, n_counters: int) -> int:
    """Return the second key word: a digest of the purpose and of how many counters follow it."""
    digest = hashlib.sha256(f"{purpose}/{n_counters}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _philox_state(seed: int, purpose: str, counters: tuple[int, ...]) -> np.random.Philox:
    """Return the bit generator at the start of the stream (seed, purpose, counters)."""
    seed = as_int(seed)
    if not -_WORD // 2 <= seed < _WORD // 2:
        raise ConfigError(f"the seed {seed} does not fit in 64 bits; choose a smaller --seed")
    assert len(counters) <= MAX_COUNTERS, f"{purpose}: more than {MAX_COUNTERS} counters"
    assert all(0 <= as_int(c) < _WORD for c in counters), (purpose, counters)
    words = [0, *map(as_int, counters), *[0] * (MAX_COUNTERS - len(counters))]
    key = [seed & _MASK, _purpose_word(purpose, len(counters))]
    return np.random.Philox(
        key=np.array(key, dtype=np.uint64), counter=np.array(words, dtype=np.uint64)
    )


def philox(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a fresh numpy generator for the stream (seed, purpose, counters).

    Args:
        seed: the run's seed, a signed 64-bit integer.
        purpose: what the numbers are for ("order", "mask"); another purpose is another stream.
        *counters: up to three non-negative integers, for example (epoch, index, shard).

    Raises:
        ConfigError: if the seed does not fit in 64 bits.
    """
    return np.random.Generator(_philox_state(seed, purpose, counters))


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a 63-bit seed for another generator, such as ``torch.manual_seed``.

    Args:
        seed: the run's seed, a signed 64-bit integer.
        purpose: what the seed is for.
        *counters: up to three non-negative integers, for example (update, rank, micro-step).

    Raises:
        ConfigError: if the seed does not fit in 64 bits.
    """
    return int(_philox_state(seed, purpose, counters).random_raw()) >> 1


def raw_words(
    seed: int, purpose: str, *counters: int, indices_N: np.ndarray, n_words: int
) -> np.ndarray:
    """Return the first words of many streams that differ in their last counter only.

    Row i holds the first ``n_words`` raw outputs of the stream (seed, purpose, *counters,
    indices_N[i]); asking for more words never changes the earlier ones.

    Args:
        seed: the run's seed, a signed 64-bit integer.
        purpose: what the numbers are for.
        *counters: up to two non-negative integers that all rows share.
        indices_N: int (N,), non-negative: the last counter of each row.
        n_words: words wanted per row.

    Returns:
        uint64 (N, n_words).

    Raises:
        ConfigError: if the seed does not fit in 64 bits.
    """
    assert indices_N.ndim == 1 and not (indices_N < 0).any(), indices_N
    bits = _philox_state(seed, purpose, (*counters, 0))
    # Re-seating one bit generator takes 1.5 us, building one per row 14 us.
    state = bits.state
    counter = state["state"]["counter"]
    words_NW = np.empty((len(indices_N), n_words), dtype=np.uint64)
    for row, last in enumerate(indices_N.tolist()):
        counter[len(counters) + 1] = last
        bits.state = state
        words_NW[row] = bits.random_raw(n_words)
    return words_NW


def legacy_item_seed(seed: int, epoch: int, index: int) -> int:
    """Return the original's per-item seed, ``int(hash((seed, epoch, index)) % 1e6)``.

    The tuple hash of CPython >= 3.8 is computed here, so that the result does not depend on the
    interpreter. The remainder is of floats: most bits of the hash are rounded away, and only about
    34,000 distinct seeds occur per million indices.

    Source: the xxHash64 accumulation documented in CPython's ``Objects/tupleobject.c``.
    """
    prime_1, prime_2, prime_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
    items = (seed, epoch, index)
    acc = prime_5
    for item in items:
        acc = (acc + (hash(item) & _MASK) * prime_2) & _MASK
        acc = (acc << 31 | acc >> 33) & _MASK
        acc = acc * prime_1 & _MASK
    acc = (acc + (len(items) ^ prime_5 ^ 3527539)) & _MASK
    signed = acc - _WORD if acc >= _WORD // 2 else acc
    return int((1546275796 if signed == -1 else signed) % 1e6)
