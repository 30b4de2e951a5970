"""Batched masking: equality with a plain per-item reference, statistics, and independence."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.data.masking import MaskSpec, mask_tokens
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.rng import philox

VOCAB, MASK = 60, 59
SPECIALS = {0, 1, 2, MASK}
NEVER_DRAWN = {*SPECIALS, 3, 57, 58}
SPEC = MaskSpec(VOCAB, pad=1, mask=MASK, specials=(0, 1, 2), never_drawn=(3, 57, 58))
WORD_BEGIN = np.arange(VOCAB) % 3 != 0
VARIANTS = {
    "default": {},
    "all": {"mask_prob": 1.0},
    "often": {"mask_prob": 0.6, "leave_unmasked_prob": 0.3, "random_token_prob": 0.4},
    "pure": {"leave_unmasked_prob": 0.0, "random_token_prob": 0.0},
    "weighted": {"counts_V": np.arange(VOCAB) % 7, "random_token_prob": 0.9},
    "words": {"word_begin_V": WORD_BEGIN, "mask_prob": 0.3, "random_token_prob": 0.5},
    "spans": {"mask_multiple_length": 3, "mask_prob": 0.3},
    "normal spans": {"mask_multiple_length": 3, "mask_stdev": 1.5, "mask_prob": 0.4},
    "word spans": {"word_begin_V": WORD_BEGIN, "mask_multiple_length": 2, "mask_stdev": 0.7},
    "zero embedding": {"vocab_size": MASK},
    "counted": {"mask_count": 3},
}


def variant(name: str) -> MaskSpec:
    return dataclasses.replace(SPEC, **VARIANTS[name])


def reference(
    tokens: list[int], index: int, spec: MaskSpec, seed: int, epoch: int
) -> tuple[list[int], list[int]]:
    """Mask one item with lists and integers only."""
    words = philox(seed, "mask", epoch, index).bit_generator.random_raw(2 + 2 * len(tokens))
    rounding, _, *words = words.tolist()
    choice, treatment = words[::2], words[1::2]
    units: list[list[int]] = []
    for t, token in enumerate(tokens):
        if token in SPECIALS:
            continue
        inside = spec.word_begin_V is not None and t > 0 and tokens[t - 1] not in SPECIALS
        if inside and not spec.word_begin_V[token]:
            units[-1].append(t)
        else:
            units.append([t])
    wanted = spec.mask_prob * len(units) / spec.mask_multiple_length + (rounding >> 11) * 2**-53
    if spec.mask_count:
        wanted = spec.mask_count
    ranked = sorted(range(len(units)), key=lambda u: (choice[units[u][0]] >> 32, u))
    masked: set[int] = set()
    for unit in ranked[: int(wanted)]:
        length = span_length(choice[units[unit][0]] % 2**32 / 2**32, spec)
        masked.update(range(unit, min(unit + length, len(units))))
    source, target = list(tokens), [spec.pad] * len(tokens)
    for unit in masked:
        draw = treatment[units[unit][0]] >> 32
        for t in units[unit]:
            target[t] = tokens[t]
            if draw >= (spec.leave_unmasked_prob + spec.random_token_prob) * 2**32:
                source[t] = spec.mask
            elif draw >= spec.leave_unmasked_prob * 2**32:
                source[t] = replacement(treatment[t] % 2**32, spec)
    return source, target


def span_length(uniform: float, spec: MaskSpec) -> int:
    if spec.mask_stdev == 0:
        return spec.mask_multiple_length
    normal = NormalDist(spec.mask_multiple_length, spec.mask_stdev)
    return next(i for i in range(99) if uniform < normal.cdf(i + 0.5))


def replacement(bits: int, spec: MaskSpec) -> int:
    ids = [v for v in range(spec.vocab_size) if v not in NEVER_DRAWN]
    if spec.counts_V is None:
        return ids[bits * len(ids) >> 32]
    weights = [int(spec.counts_V[v]) for v in ids]
    sums = np.cumsum(weights) / sum(weights)
    return ids[int((sums <= bits / 2**32).sum())]


def pad_rows(rows: list[list[int]], extra: int = 0, filler: int = 1) -> np.ndarray:
    width = max(map(len, rows)) + extra
    return np.array([row + [filler] * (width - len(row)) for row in rows])


def run(rows, indices, spec, seed=1, epoch=1, **padding):
    lengths = np.array([len(row) for row in rows])
    tokens = pad_rows(rows, **padding)
    before = tokens.copy()
    batch = mask_tokens(tokens, lengths, np.array(indices), spec=spec, seed=seed, epoch=epoch)
    assert (tokens == before).all()  # the input is left alone
    sources, targets = (
        [x[:n].tolist() for x, n in zip(side, lengths, strict=True)] for side in batch
    )
    return sources, targets


rows_of_tokens = st.lists(
    st.lists(st.integers(0, MASK - 1), min_size=1, max_size=40), min_size=1, max_size=6
)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=40, deadline=None)
@given(rows=rows_of_tokens, seed=st.integers(-9, 2**40), epoch=st.integers(0, 99), data=st.data())
def test_a_batch_equals_the_plain_reference(name, rows, seed, epoch, data):
    spec = variant(name)
    indices = [data.draw(st.integers(0, 2**45)) for _ in rows]
    sources, targets = run(rows, indices, spec, seed, epoch)
    for row, index, source, target in zip(rows, indices, sources, targets, strict=True):
        assert (source, target) == reference(row, index, spec, seed, epoch)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", VARIANTS)
def test_order_batch_padding_and_dtype_play_no_part(name, dtype):
    spec = variant(name)
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 57, size).tolist() for size in rng.integers(1, 50, 64)]
    sources, targets = run(rows, range(64), spec)
    order = rng.permutation(64).tolist()
    for part in (order[:5], order[5:]):
        tokens = pad_rows([rows[i] for i in part], extra=9, filler=7).astype(dtype)
        lengths = np.array([len(rows[i]) for i in part])
        source, target = mask_tokens(tokens, lengths, np.array(part), spec=spec, seed=1, epoch=1)
        assert source.dtype == target.dtype == dtype
        for row, i in enumerate(part):
            n = lengths[row]
            assert source[row, :n].tolist() == sources[i]
            assert target[row, :n].tolist() == targets[i]
            assert (source[row, n:] == 7).all() and (target[row, n:] == spec.pad).all()


def corpus(items: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Items ``<s> ... </s>`` of ordinary tokens, and their lengths."""
    tokens = np.random.default_rng(5).integers(4, 57, (items, size))
    tokens[:, 0], tokens[:, -1] = 0, 2
    return tokens, np.full(items, size)


def masked(spec, items=4000, size=42, seed=1, epoch=1):
    tokens, lengths = corpus(items, size)
    return tokens, *mask_tokens(
        tokens, lengths, np.arange(items), spec=spec, seed=seed, epoch=epoch
    )


def test_shares_are_80_10_10_of_15_percent():
    tokens, source, target = masked(SPEC, items=20_000)
    chosen = target != 1
    assert (target[chosen] == tokens[chosen]).all() and (source == tokens)[~chosen].all()
    # 40 maskable tokens, 6 on average, rounded by a uniform: always exactly 6
    assert (chosen.sum(axis=1) == 6).all()
    n = chosen.sum()
    shown = source[chosen]
    drawable = VOCAB - len(NEVER_DRAWN)
    shares = {
        0.8: (shown == MASK).mean(),
        0.1 + 0.1 / drawable: (shown == tokens[chosen]).mean(),  # some draws give the original
    }
    for expected, found in shares.items():
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_the_number_masked_is_rounded_without_bias():
    _, _, target = masked(SPEC, items=20_000, size=37)  # 35 maskable: 5.25 on average
    counts = (target != 1).sum(axis=1)
    assert set(counts.tolist()) == {5, 6}
    assert abs((counts == 6).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20_000)


def chi_square(observed: np.ndarray, shares: np.ndarray) -> float:
    expected = observed.sum() * shares
    return float(((observed - expected) ** 2 / expected).sum())


def test_positions_and_replacements_are_uniform():
    spec = dataclasses.replace(SPEC, leave_unmasked_prob=0.0, random_token_prob=1.0)
    _, source, target = masked(spec, items=20_000)
    chosen = target != 1
    positions = chosen.sum(axis=0)[1:-1]
    # The 0.1% points of chi-square are 72.1 for 39 degrees of freedom and 89.3 for 52. Positions
    # are drawn without replacement, which makes their statistic smaller, by 34/39.
    assert 10 < chi_square(positions, np.full(40, 1 / 40)) < 72.1
    drawn = np.bincount(source[chosen], minlength=VOCAB)
    allowed = np.array([v not in NEVER_DRAWN for v in range(VOCAB)])
    assert drawn[~allowed].sum() == 0
    assert 15 < chi_square(drawn[allowed], np.full(53, 1 / 53)) < 89.3
    pairs = np.corrcoef(chosen[:, 1:-1], rowvar=False)[np.triu_indices(40, 1)]
    # each item has exactly 6 of 40, so positions repel each other
    assert np.abs(pairs + 1 / 39).max() < 5 / np.sqrt(20_000)


def test_weighted_replacements_follow_the_counts():
    counts = np.arange(VOCAB) ** 2
    spec = dataclasses.replace(
        SPEC, counts_V=counts, leave_unmasked_prob=0.0, random_token_prob=1.0
    )
    _, source, target = masked(spec, items=20_000)
    drawn = np.bincount(source[target != 1], minlength=VOCAB)
    allowed = np.array([v not in NEVER_DRAWN for v in range(VOCAB)])
    assert drawn[~allowed].sum() == 0
    shares = counts[allowed] / counts[allowed].sum()
    assert 15 < chi_square(drawn[allowed], shares) < 89.3


def test_spans_have_the_rounded_normal_lengths():
    spec = dataclasses.replace(
        SPEC, mask_prob=0.02, mask_multiple_length=4, mask_stdev=1.0, leave_unmasked_prob=0.0
    )
    _, _, target = masked(spec, size=202)  # one span in each item: 0.02 * 200 / 4 = 1
    chosen = target != 1
    clear = ~chosen[:, -12:].any(axis=1)  # not cut short by the item's end
    lengths = chosen.sum(axis=1)[clear]
    assert abs(lengths.mean() - 4) < 5 * np.sqrt(1.08 / len(lengths))
    assert abs(lengths.std() - np.sqrt(1 + 1 / 12)) < 0.06
    runs = (np.diff(chosen[clear].astype(int), axis=1) == 1).sum(axis=1)
    assert (runs[lengths > 0] == 1).all()


def test_words_are_masked_whole():
    spec = dataclasses.replace(SPEC, word_begin_V=WORD_BEGIN, random_token_prob=0.0)
    tokens, source, target = masked(spec)
    chosen = target != 1
    inside = ~WORD_BEGIN[tokens[:, 2:-1]]
    assert (chosen[:, 2:-1] == chosen[:, 1:-2])[inside].all()
    kept = source == tokens
    assert (kept[:, 2:-1] == kept[:, 1:-2])[inside].all()  # and treated alike
    assert 0.13 < chosen[:, 1:-1].mean() < 0.17


@pytest.mark.parametrize("name", VARIANTS)
def test_specials_are_never_masked_nor_drawn(name):
    spec = variant(name)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, VOCAB, (500, 30))
    source, target = mask_tokens(
        tokens, np.full(500, 30), np.arange(500), spec=spec, seed=2, epoch=4
    )
    special = np.isin(tokens, list(SPECIALS))
    assert (source[special] == tokens[special]).all() and (target[special] == spec.pad).all()
    changed = source[(source != tokens) & (source != MASK)]
    assert not np.isin(changed, list(NEVER_DRAWN)).any()
    assert (tokens == 3)[target != spec.pad].any()  # <unk> may be predicted


def test_epochs_and_seeds_give_other_masks():
    patterns = {
        (seed, epoch): masked(SPEC, items=50, seed=seed, epoch=epoch)[2]
        for seed in (1, 2)
        for epoch in (1, 2, 3)
    }
    rows = {row.tobytes() for target in patterns.values() for row in target}
    assert len(rows) == 6 * 50
    again = masked(SPEC, items=50, seed=2, epoch=3)[2]
    assert (again == patterns[2, 3]).all()


def test_no_two_items_of_an_epoch_share_a_pattern():
    tokens = np.full((20_000, 64), 9)
    _, target = mask_tokens(
        tokens, np.full(20_000, 64), np.arange(20_000), spec=SPEC, seed=1, epoch=1
    )
    assert len({row.tobytes() for row in target}) == 20_000


def test_an_item_of_specials_only_is_left_alone():
    sources, targets = run([[0, 2], [0, 9, 2]], [0, 1], variant("all"))
    assert sources[0] == [0, 2] and targets == [[1, 1], [1, 9, 1]]


def test_an_id_outside_the_dictionary_is_named():
    with pytest.raises(DataError, match="token id 60 .* 60 symbols"):
        run([[4, 60]], [0], SPEC)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"mask_prob": 0.0}, "--mask-prob"),
        ({"mask_prob": 1.5}, "--mask-prob"),
        ({"leave_unmasked_prob": -0.1}, "--leave-unmasked-prob"),
        ({"random_token_prob": 1.1}, "--random-token-prob"),
        ({"random_token_prob": 0.6, "leave_unmasked_prob": 0.5}, "sum to 1.1"),
        ({"mask_multiple_length": 0}, "--mask-multiple-length"),
        ({"mask_stdev": -1.0}, "--mask-stdev"),
        ({"never_drawn": tuple(range(VOCAB))}, "--random-token-prob 0"),
        ({"counts_V": np.zeros(VOCAB)}, "--random-token-prob 0"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SPEC, **knobs)


def vocabulary(*symbols: tuple[str, int]) -> SimpleNamespace:
    """A dictionary with the special ids of BERT: pad 0, unk 1, bos 2, eos 3."""
    rows = [("[PAD]", 1), ("[UNK]", 1), ("[CLS]", 1), ("[SEP]", 1), *symbols]

    class Vocabulary(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.symbols)

    return Vocabulary(
        symbols=[symbol for symbol, _ in rows],
        count=[count for _, count in rows],
        nspecial=4,
        pad=lambda: 0,
        unk=lambda: 1,
        bos=lambda: 2,
        eos=lambda: 3,
    )


def test_a_spec_is_read_from_the_dictionary():
    vocab = vocabulary(
        ("the", 9), ("rare", 0), ("madeupword0000", 0), ("madeupword0001", 3), ("<mask>", 1)
    )
    spec = MaskSpec.from_dictionary(vocab, mask=8, mask_prob=0.3)
    assert spec.drawable_N.tolist() == [4, 5, 7]
    assert np.flatnonzero(spec.special_V).tolist() == [0, 2, 3, 8]
    assert (spec.pad, spec.mask_prob) == (0, 0.3)
    weighted = MaskSpec.from_dictionary(vocab, mask=8, freq_weighted_replacement=True)
    assert weighted.drawable_N.tolist() == [4, 7]
    assert weighted.drawable_cdf_N.tolist() == [0.75, 1.0]
    outside = MaskSpec.from_dictionary(vocabulary(("the", 9)), mask=5, pad=5)
    assert outside.drawable_N.tolist() == [4] and outside.special_V[5]


# -- weighted choices ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"smoothing": 0.7}, {"freq_weighted_replacement": True}])
def test_counts_that_nobody_made_are_missed(how: dict[str, Any]) -> None:
    plain = Dictionary()
    for word in ("the", "rare"):
        plain.add_symbol(word, n=0)
    mask = plain.add_symbol("<mask>")  # as tasks do, which counts it once
    with pytest.raises(DataError, match="holds no counts"):
        MaskSpec.from_dictionary(plain, mask=mask, **how)
    imported = Dictionary.foreign(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "rare"],
        pad="[PAD]", unk="[UNK]", bos="[CLS]", eos="[SEP]", mask="[MASK]",
    )  # fmt: skip
    with pytest.raises(DataError, match="holds no counts.*--srcdict"):
        MaskSpec.from_dictionary(imported, mask=4, **how)


def test_rarer_tokens_are_chosen_as_often_as_their_weights_say() -> None:
    """Against the probabilities of drawing without replacement, enumerated; by 20,000 items."""
    vocab = Dictionary()
    for word, count in (("often", 1000), ("seldom", 10), ("once", 1)):
        vocab.add_symbol(word, n=count)
    spec = MaskSpec.from_dictionary(
        vocab, mask=7, smoothing=0.7, mask_prob=0.5, random_token_prob=0.0, leave_unmasked_prob=0.0
    )
    counts = np.maximum(np.array(vocab.count), 1.0)
    np.testing.assert_allclose(spec.weight_V, counts**-0.7)  # type: ignore[arg-type]
    row = [4, 4, 5, 6]
    weights = [float(counts[t] ** -0.7) for t in row]
    chance = np.zeros(4)  # that a position is among the two that are chosen
    for first in range(4):
        for second in set(range(4)) - {first}:
            p = weights[first] / sum(weights) * weights[second] / (sum(weights) - weights[first])
            chance[[first, second]] += p
    items = 20_000
    tokens_BT = np.tile(np.array(row), (items, 1))
    source_BT, target_BT = mask_tokens(
        tokens_BT, np.full(items, 4), np.arange(items), spec=spec, seed=1, epoch=1
    )
    chosen_BT = target_BT != spec.pad
    assert (chosen_BT.sum(1) == 2).all() and (source_BT[chosen_BT] == 7).all()
    error = np.sqrt(chance * (1 - chance) / items)
    assert (np.abs(chosen_BT.mean(0) - chance) < 4 * error).all()


def test_equal_weights_are_no_weights_in_distribution_and_pads_stay() -> None:
    vocab = Dictionary()
    for word in range(20):
        vocab.add_symbol(f"w{word}", n=5)
    spec = MaskSpec.from_dictionary(vocab, mask=24, smoothing=0.7, mask_prob=0.3)
    tokens_BT = np.full((3, 12), vocab.pad())
    tokens_BT[:, :8] = [[0, *range(4, 10), 2]] * 3
    lengths_B, indices_B = np.full(3, 8), np.array([5, 1, 9])
    _, target_BT = mask_tokens(tokens_BT, lengths_B, indices_B, spec=spec, seed=1, epoch=2)
    assert (target_BT[:, [0, 7, 8, 9, 10, 11]] == vocab.pad()).all()
    _, alone_BT = mask_tokens(
        tokens_BT[1:2, :8], lengths_B[1:2], indices_B[1:2], spec=spec, seed=1, epoch=2
    )
    assert (target_BT[1, :8] == alone_BT[0]).all()  # a function of seed, epoch and item alone
