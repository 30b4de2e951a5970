"""Streams named by (seed, purpose, counters): the cipher, its layout, and their independence."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq.errors import ConfigError
from fairseq.rng import DATA_RNGS, derive_seed, legacy_item_seed, philox, raw_words

WORD = 1 << 64
seeds = st.integers(-(1 << 63), (1 << 63) - 1)
counters = st.lists(st.integers(0, WORD - 1), max_size=3)


def cipher(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in plain integers (Salmon et al. 2011, figure 2 and table 2)."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = q >> 64 ^ b ^ k, q % WORD, p >> 64 ^ d ^ m, p % WORD
        k, m = (k + 0x9E3779B97F4A7C15) % WORD, (m + 0xBB67AE8584CAA73B) % WORD
    return [a, b, c, d]


def expected_words(seed: int, purpose: str, args: list[int], n: int) -> list[int]:
    digest = hashlib.sha256(f"{purpose}/{len(args)}".encode()).digest()
    key = [seed % WORD, int.from_bytes(digest[:8], "little")]
    rest = args + [0] * (3 - len(args))
    blocks = range(1, n // 4 + 2)  # numpy steps the counter before each block
    return [word for block in blocks for word in cipher([block, *rest], key)][:n]


def test_the_plain_cipher_gives_the_published_known_answer():
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert cipher([0] * 4, [0] * 2) == known


@given(seeds, st.text(max_size=9), counters)
def test_streams_are_philox_of_the_documented_key_and_counter(seed, purpose, args):
    stream = philox(seed, purpose, *args).bit_generator.random_raw(9).tolist()
    assert stream == expected_words(seed, purpose, args, 9)
    assert derive_seed(seed, purpose, *args) == stream[0] >> 1


@given(seeds, st.lists(st.integers(0, WORD // 2), max_size=2), st.integers(0, 11))
def test_raw_words_are_the_streams_of_their_rows(seed, args, n_words):
    indices = np.array([0, 7, 1, 1, 2**40])
    words = raw_words(seed, "mask", *args, indices_N=indices, n_words=n_words)
    assert words.dtype == np.uint64 and words.shape == (5, n_words)
    for row, index in zip(words, indices.tolist(), strict=True):
        assert row.tolist() == expected_words(seed, "mask", [*args, index], n_words)


def test_values_do_not_change_between_versions():
    assert derive_seed(1, "model") == 640133310893652769
    assert derive_seed(-1, "dropout", 3, 0, 2) == 7647184740070075020


def test_no_two_names_share_a_seed():
    names = [(s, p, c) for s in range(-2, 3) for p in ("mask", "order", "") for c in _tuples()]
    values = [derive_seed(seed, purpose, *args) for seed, purpose, args in names]
    assert len(set(values)) == len(names) > 10_000
    assert min(values) >= 0 and max(values) < 1 << 63


def _tuples() -> list[tuple[int, ...]]:
    pairs = [(epoch, index) for epoch in range(20) for index in range(40)]
    return [(), *[(i,) for i in range(40)], *pairs, *[(*pair, 1) for pair in pairs[:200]]]


def test_neighbouring_streams_share_no_word_and_look_uniform():
    words = raw_words(1, "mask", 1, indices_N=np.arange(2000), n_words=50)
    assert len(np.unique(words)) == words.size
    bits = (words[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # 100,000 fair coins per bit position: five standard deviations are 0.0079
    assert np.abs(bits.mean(axis=(0, 1)) - 0.5).max() < 0.0079
    columns = np.corrcoef(words.astype(np.float64), rowvar=False)
    assert np.abs(columns - np.eye(50)).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize("seed", [1 << 63, -(1 << 63) - 1])
def test_a_seed_beyond_64_bits_is_refused(seed):
    with pytest.raises(ConfigError, match="--seed"):
        philox(seed, "order")


def test_a_fractional_seed_or_a_fourth_counter_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError):
        philox(1.5, "order")  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        philox(1, "order", 1, 2, 3, 4)
    with pytest.raises(AssertionError):
        philox(1, "order", -1)


@given(st.integers(-(1 << 70), 1 << 70), st.integers(0, 1 << 40), st.integers(0, 1 << 62))
def test_legacy_seed_is_the_interpreters_tuple_hash(seed, epoch, index):
    assert legacy_item_seed(seed, epoch, index) == int(hash((seed, epoch, index)) % 1e6)


def test_legacy_seed_of_the_original():
    known = {(1, 1, 0): 810752, (1, 1, 1): 808832, (1, 2, 0): 565248}
    assert {key: legacy_item_seed(*key) for key in known} == known


def test_legacy_seeds_are_as_few_as_the_original_has():
    found = {legacy_item_seed(1, 1, index) for index in range(200_000)}
    assert len(found) < 40_000


def test_the_module_needs_no_torch():
    code = "import sys, fairseq.rng; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert DATA_RNGS == ("philox", "fairseq-main", "fairseq-0.12")
