"""Intervals and verdicts against worked numbers, n-grams against sums over the whole vocabulary."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "examples")]

import studies  # noqa: E402
from floors import KneserNey, bidirectional_bits, causal_bits, discount  # noqa: E402
from verdicts import Interval, paired, verdict  # noqa: E402

SIZE = 7


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    return np.random.default_rng(3).choice(SIZE - 1, 200, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05])


def test_an_interval_is_students() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t(2) = 4.303.
    reach = 4.303 / math.sqrt(3)
    assert paired([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 2 - reach, 2 + reach))
    with pytest.raises(ValueError, match="2 to 15 pairs"):
        paired([1.0], [0.0])


def test_a_verdict_follows_from_the_interval() -> None:
    assert verdict(Interval(-1, -2, -0.1)) == "holds"
    assert verdict(Interval(1, 0.1, 2)) == "does not hold"
    assert verdict(Interval(-1, -2, 0.1)) == "cannot be told"
    assert verdict(Interval(-1, -2, -0.1), below=-3) == "does not hold"


def by_hand(stream: np.ndarray, history: tuple[int, ...], word: int) -> float:
    """Kneser-Ney by counting in loops, straight from the definition."""
    lists = [tuple(map(int, stream[i : i + 3])) for i in range(len(stream) - 2)]
    pairs = [tuple(map(int, stream[i : i + 2])) for i in range(len(stream) - 1)]

    def mixed(counts: dict[int, int], lower: float) -> float:
        total = sum(counts.values())
        if total == 0:
            return lower
        taken = discounts[level]
        kept = max(counts.get(word, 0) - taken, 0) / total
        return kept + taken * len(counts) / total * lower

    kinds: dict[int, int] = {}
    for _, last in set(pairs):
        kinds[last] = kinds.get(last, 0) + 1
    discounts = {"1": discount(np.array(list(kinds.values())))}
    level = "1"
    value = mixed(kinds, 1 / SIZE)
    top_pairs = {pair: pairs.count(pair) for pair in set(pairs)}
    lower_pairs: dict[tuple[int, int], int] = {}
    for _, middle, last in set(lists):
        lower_pairs[middle, last] = lower_pairs.get((middle, last), 0) + 1
    used = top_pairs if len(history) == 1 else lower_pairs
    discounts["2"], level = discount(np.array(list(used.values()))), "2"
    value = mixed({w: n for (v, w), n in used.items() if v == history[-1]}, value)
    if len(history) == 2:
        triples = {one: lists.count(one) for one in set(lists)}
        discounts["3"], level = discount(np.array(list(triples.values()))), "3"
        value = mixed({w: n for (u, v, w), n in triples.items() if (u, v) == history}, value)
    return value


def test_n_grams_equal_the_definition_and_sum_to_one(stream: np.ndarray) -> None:
    model, words = KneserNey(stream, SIZE), np.arange(SIZE)
    matrix_VV = model.bigram_matrix()
    for before in range(SIZE):
        given = model.bigram_probability(np.full(SIZE, before), words)
        assert given.sum() == pytest.approx(1)
        assert given == pytest.approx([by_hand(stream, (before,), w) for w in words])
        assert matrix_VV[before] == pytest.approx(given, rel=1e-5)
    for first, second in [(0, 0), (1, 0), (5, 5), (6, 2), (3, 6)]:
        given = model.trigram_probability(np.full(SIZE, first), np.full(SIZE, second), words)
        assert given.sum() == pytest.approx(1)
        assert given == pytest.approx([by_hand(stream, (first, second), w) for w in words])
    bits = causal_bits(model, stream[:20])
    hand = [
        -math.log2(by_hand(stream, (int(stream[i - 1]),), int(stream[i]))) for i in range(2, 20)
    ]
    assert bits["bigram"] == pytest.approx(sum(hand) / len(hand))


def test_both_neighbours_by_enumeration(stream: np.ndarray) -> None:
    model, hidden = KneserNey(stream, SIZE), SIZE - 1
    matrix_VV = model.bigram_matrix().astype(float)
    left, right = np.array([0, 2, hidden, hidden]), np.array([1, hidden, 3, hidden])
    target = np.array([2, 0, 4, 1])
    bits = bidirectional_bits(matrix_VV, model.unigram_V, left, right, target, hidden, chunk=3)
    for row in range(4):
        scores = [
            (model.unigram_V[w] if left[row] == hidden else matrix_VV[left[row], w])
            * (1 if right[row] == hidden else matrix_VV[w, right[row]])
            for w in range(SIZE)
        ]
        assert bits[row] == pytest.approx(-math.log2(scores[target[row]] / sum(scores)))


def test_a_rate_at_the_edge_is_followed_further() -> None:
    tried: list[float] = []

    def train(runs: list[studies.Run]) -> list[dict[str, object]]:
        tried.extend(float(run.name) for run in runs)
        losses = [abs(math.log2(float(run.name) / 0.008)) for run in runs]
        return [{"curve": [{"loss": loss if loss else math.nan}]} for loss in losses[:1]] + [
            {"curve": [{"loss": loss}]} for loss in losses[1:]
        ]

    rate, losses = studies.tune(lambda r: studies.Run(str(r), 1, ()), (0.001, 0.002, 0.004), train)
    # 0.008 diverged (not a number): 0.004 stays the best, now between two others.
    assert tried == [0.001, 0.002, 0.004, 0.008]
    assert rate == 0.004 and losses[0.008] == math.inf


def test_a_run_is_known_by_what_its_files_hold(tmp_path: Path) -> None:
    places = [tmp_path / "here" / "g.rules", tmp_path / "there" / "g.rules"]
    for place in places:
        place.parent.mkdir()
        place.write_text("S a 1\n")
    words = [("--lr", "1", "--grammar", str(place), "--x") for place in places]
    runs = [studies.Run("a b", 3, own, files=("--grammar",)) for own in words]
    first, second = [run.folder(tmp_path) for run in runs]
    assert first == second and first.name.startswith("a-b-3-")
    places[1].write_text("S b 1\n")
    assert runs[1].folder(tmp_path) != first
    other = studies.Run("a b", 3, ("--lr", "2", *words[0][2:]), files=("--grammar",))
    assert other.folder(tmp_path) != first
    # made when the path itself was in the digest
    older = studies.Run("a b", 3, words[0]).folder(tmp_path)
    assert older != first
    older.mkdir()
    assert runs[0].folder(tmp_path) == older
