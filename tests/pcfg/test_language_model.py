"""A bigram model as a source: its truth is that of all sentences written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fairseq.errors import DataError
from fairseq.pcfg.language_model import LanguageModelSource, restricted
from fairseq.pcfg.score import score
from fairseq.pcfg.source import Source
from fairseq.rng import philox

BEGIN, END = 4, 4


def bigrams(words_BN: np.ndarray) -> np.ndarray:
    """Four words and the end; rows are what was before, the last one the beginning."""
    p = np.random.default_rng(5).dirichlet(np.ones(5), size=5)
    before_BN = np.concatenate([np.full((len(words_BN), 1), BEGIN), words_BN], axis=1)
    return np.log(p)[before_BN]


@pytest.fixture
def source() -> LanguageModelSource:
    return LanguageModelSource("a b c".split(), restricted(bigrams, [0, 1, 3, END]), 4)


def everything(source: Source, longest: int) -> dict[tuple[int, ...], float]:
    return {
        words: float(np.exp(source.logprob(np.array([words]))[0]))
        for length in range(1, longest + 1)
        for words in itertools.product(range(3), repeat=length)
    }


def test_sentences_follow_the_model(source: LanguageModelSource) -> None:
    table = everything(source, 4)
    empty = np.exp(source.next_words(np.zeros((1, 0), dtype=np.int64))[0, 0, -1])
    assert sum(table.values()) + empty == pytest.approx(1)
    drawn = source.draw(philox(1, "test"), 20_000, 9).split()
    assert len(drawn) == pytest.approx(20_000 * (1 - empty), abs=300)
    for words, p in sorted(table.items(), key=lambda item: -item[1])[:10]:
        seen = sum(tuple(own.tolist()) == words for own in drawn)
        assert abs(seen - 20_000 * p) < 4.5 * np.sqrt(20_000 * p)
    found = score(source, drawn[:2000]).optimum()
    assert abs(found["optimum_macro"] - found["nll_macro"]) < 4 * found["nll_macro_se"]


def test_conditionals_by_enumeration(source: LanguageModelSource) -> None:
    table = everything(source, 4)
    q_BNT, logp_B = source.conditionals(np.array([[0, 2, 1], [1, 1, 0]]))
    assert logp_B[0] == pytest.approx(np.log(table[0, 2, 1]))
    expected = np.array([table[0, w, 1] for w in range(3)])
    np.testing.assert_allclose(q_BNT[0, 1], expected / expected.sum())
    hidden, logp_B = source.conditionals(np.array([[0, -1, 1], [1, 1, 0]]))
    np.testing.assert_allclose(hidden[0, 1], q_BNT[0, 1])
    np.testing.assert_allclose(hidden[1], q_BNT[1])
    assert np.isnan(hidden[0, [0, 2]]).all() and logp_B[0] == pytest.approx(np.log(expected.sum()))
    with pytest.raises(DataError, match="--masks single"):
        source.conditionals(np.array([[-1, -1, 1]]))
