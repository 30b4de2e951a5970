"""What must hold for any grammar, beyond what the chart is compared with in test_chart.py."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from small_grammars import TOY

from fairseq.pcfg.chart import MASK
from fairseq.pcfg.downstream import Labeller
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.source import GrammarSource
from fairseq.rng import philox


def every_sentence(grammar: Grammar) -> dict[int, np.ndarray]:
    """All rows of words by length; the small grammar has 2 to 4 words."""
    words = range(len(grammar.terminals))
    return {n: np.array(list(itertools.product(words, repeat=n))) for n in (2, 3, 4)}


def test_all_sentences_together_have_mass_one(toy: Grammar) -> None:
    source = GrammarSource(toy)
    masses = {n: np.exp(source.logprob(rows)).sum() for n, rows in every_sentence(toy).items()}
    assert sum(masses.values()) == pytest.approx(1, abs=1e-12)
    law_W = toy.length_law(4)[toy.start]
    assert list(masses.values()) == pytest.approx(law_W[2:], abs=1e-12)
    for rows in every_sentence(toy).values():
        q_BNT, _ = source.conditionals(rows)
        sums_BN = q_BNT.sum(axis=-1)
        assert (q_BNT >= 0)[~np.isnan(q_BNT)].all()
        np.testing.assert_allclose(sums_BN[~np.isnan(sums_BN)], 1, atol=1e-12)


def test_leaving_out_long_sentences_changes_no_conditional(toy: Grammar) -> None:
    source = GrammarSource(toy)
    drawn = source.draw(philox(4, "test"), 60_000, 2).split()  # most have four words
    pairs = Counter((*words.tolist(),) for words in drawn)
    q_BNT, _ = source.conditionals(np.array([[MASK, word] for word in range(6)]))
    for word in range(6):
        seen_T = np.array([pairs[first, word] for first in range(6)], dtype=float)
        count = seen_T.sum()
        if not count:
            assert np.isnan(q_BNT[word, 0]).all()
            continue
        q_T = q_BNT[word, 0]
        error_T = 4 * np.sqrt(q_T * (1 - q_T) / count) + 1e-12
        assert (np.abs(seen_T / count - q_T) <= error_T).all()


def test_split_and_shuffled_rules_are_the_same_grammar(toy: Grammar) -> None:
    rules = []
    for line in TOY.splitlines():
        parent, *right, prob = line.split()
        rules += [(parent, (*right,), float(prob) / 4), (parent, (*right,), 3 * float(prob) / 4)]
    head, rest = rules[:2], rules[2:]
    shuffled = [rest[place] for place in np.random.default_rng(0).permutation(len(rest))]
    other = Grammar.from_rules([*head, *shuffled])
    assert other.nonterminals == toy.nonterminals
    sources = [GrammarSource(one) for one in (toy, other)]
    for rows in every_sentence(toy).values():
        found = [source.logprob(rows) for source in sources]
        np.testing.assert_allclose(*found, rtol=1e-12)
    drawn = sources[0].draw(philox(1, "test"), 300, 9).split()
    for task, how in itertools.product("ABC", ("likelihood", "viterbi", "map")):
        labels = [Labeller(source, task, how).labels(drawn) for source in sources]
        assert np.array_equal(*labels)


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropies along the last axis, in nats."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def test_entropies_of_several_masks(toy: Grammar) -> None:
    """Marginals hold no less than the joint; what is shown takes uncertainty away, on average."""
    source = GrammarSource(toy)
    rows = every_sentence(toy)[3]
    joint = np.exp(source.logprob(rows)).reshape(6, 6, 6)
    joint /= joint.sum()
    expected = {1: 0.0, 2: 0.0, 3: 0.0}  # of the first word, by how many words are hidden
    for hidden in (1, 2, 3):
        shown = [place for place in range(3) if place >= hidden]
        for values in itertools.product(range(6), repeat=len(shown)):
            row = np.full((1, 3), MASK)
            row[0, shown] = values
            table = joint[(..., *values)] if values else joint
            mass = table.sum()
            if not mass:
                continue
            q_BNT, _ = source.conditionals(row)
            marginals = entropy(q_BNT[0, :hidden])
            assert marginals.sum() >= entropy((table / mass).ravel()) - 1e-12
            np.testing.assert_allclose(q_BNT[0, 0], table.reshape(6, -1).sum(1) / mass, atol=1e-12)
            expected[hidden] += mass * marginals[0]
    assert expected[1] <= expected[2] + 1e-12 and expected[2] <= expected[3] + 1e-12
    assert expected[1] < expected[3]
