"""The chart against derivations written out, and against what must hold for any grammar."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from brute import conditionals, derivations, probability, tree_probability
from hypothesis import given, settings
from hypothesis import strategies as st
from small_grammars import grammars

from fairseq.errors import DataError
from fairseq.pcfg.chart import MASK, Chart
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.random_sources import levelled_grammar
from fairseq.pcfg.source import GrammarSource
from fairseq.pcfg.viterbi import Viterbi, brackets


def sentences(grammar: Grammar, longest: int = 5) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(grammar.terminals) - 1), min_size=1, max_size=longest)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_probabilities_conditionals_and_parses_of_random_grammars(data: st.DataObject) -> None:
    grammar = data.draw(grammars())
    words = (*data.draw(sentences(grammar)),)
    batch = np.array([words])
    chart, viterbi = Chart(grammar), Viterbi(grammar)
    every = list(derivations(grammar, grammar.start, words))
    q_BNT, logp_B = chart.conditionals(batch)
    assert np.exp(logp_B[0]) == pytest.approx(sum(every), rel=1e-12, abs=1e-300)
    for i in range(len(words)):
        expected = conditionals(grammar, words, i)
        np.testing.assert_allclose(q_BNT[0, i], expected, rtol=1e-11, atol=1e-15)
    parses = viterbi.parse(batch)
    assert np.exp(parses.logprob_B[0]) == pytest.approx(max(every, default=0.0), rel=1e-12)
    if every:
        tree = brackets(parses, grammar, batch)[0]
        prob, leaves = tree_probability(grammar, tree)
        assert prob == pytest.approx(max(every), rel=1e-12)
        assert leaves == [grammar.terminals[word] for word in words]
    for symbol in range(len(grammar.nonterminals)):  # unreachable ones too
        found = [*derivations(grammar, symbol, words)]
        for table, wanted in (
            (chart.span_inside(batch), sum(found)),
            (viterbi.span_best(batch), max(found, default=0)),
        ):
            assert np.ldexp(table[0][0, symbol], table[1][0]) == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_several_masks_of_random_grammars(data: st.DataObject) -> None:
    grammar = data.draw(grammars())
    words = data.draw(sentences(grammar))
    hidden = data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1))
    batch = np.array([words])
    batch[0, sorted(hidden)] = MASK
    q_BNT, logp_B = Chart(grammar).conditionals(batch)
    fillings = itertools.product(range(len(grammar.terminals)), repeat=len(hidden))
    table: dict[tuple[int, ...], float] = {}
    for filling in fillings:
        full = batch[0].copy()
        full[sorted(hidden)] = filling
        table[filling] = probability(grammar, (*full.tolist(),))
    total = sum(table.values())
    assert np.exp(logp_B[0]) == pytest.approx(total, rel=1e-11, abs=1e-300)
    for place, position in enumerate(sorted(hidden)):
        for word in range(len(grammar.terminals)):
            mass = sum(p for filling, p in table.items() if filling[place] == word)
            got = q_BNT[0, position, word]
            assert np.isnan(got) if not total else got == pytest.approx(mass / total, rel=1e-10)


def test_a_circle_of_single_symbols_sums_to_its_geometric_series() -> None:
    grammar = Grammar.from_rules(
        [("S", ("A",), 0.5), ("S", ("x",), 0.5), ("A", ("S",), 0.5), ("A", ("y",), 0.5)]
    )
    # S -> x, or S -> A -> S -> ...: every turn costs 1/4
    assert np.exp(Chart(grammar).logprob(np.array([[0]])))[0] == pytest.approx(0.5 / 0.75)
    parses = Viterbi(grammar).parse(np.array([[0], [1]]))
    assert brackets(parses, grammar, np.array([[0], [1]])) == ["(S x)", "(S (A y))"]


def test_posteriors_are_those_of_a_tree(toy: Grammar) -> None:
    source = GrammarSource(toy)
    drawn = source.draw(np.random.default_rng(0), 50, 9).split()
    for words in drawn:
        batch = words[None]
        inside = source.inside(batch)
        z = np.exp(source.logprob(batch)[0])
        marginals = {
            (i, j): source.span_marginals(inside, i, j)[0]
            for i in range(len(words))
            for j in range(i + 1, len(words) + 1)
        }
        assert marginals[0, len(words)][toy.start] == pytest.approx(1)
        for i in range(len(words)):
            assert marginals[i, i + 1].sum() == pytest.approx(1)  # no chains at leaves here
        n = len(words)
        assert sum(m.sum() for m in marginals.values()) == pytest.approx(2 * n - 1 + 1)  # S -> Si
        # a word's own conditional times the mass of the others is the sentence
        q_BNT, _ = source.conditionals(batch)
        for i in range(n):
            hidden = batch.copy()
            hidden[0, i] = MASK
            others = np.exp(source.logprob(hidden)[0])
            assert q_BNT[0, i, words[i]] * others == pytest.approx(z, rel=1e-12)
        assert Viterbi(toy).parse(batch).logprob_B[0] <= np.log(z) + 1e-12


def test_batches_and_order_change_nothing(toy: Grammar) -> None:
    source = GrammarSource(toy)
    batch = np.random.default_rng(1).integers(0, 6, (40, 4))
    q_BNT, logp_B = source.conditionals(batch)
    for row in range(0, 40, 7):
        q_1NT, logp_1 = source.conditionals(batch[row : row + 1])
        np.testing.assert_allclose(q_1NT[0], q_BNT[row], rtol=0, atol=1e-12)
        np.testing.assert_allclose(logp_1[0], logp_B[row], rtol=1e-12)
    rules = [(p, r, prob) for p, r, prob in toy.rules() if prob]
    other = Grammar.from_rules([rules[0], *reversed(rules[1:])])
    np.testing.assert_allclose(GrammarSource(other).logprob(batch), logp_B, rtol=1e-12)


def test_pairs_in_full_and_in_lists_agree(toy: Grammar, monkeypatch: pytest.MonkeyPatch) -> None:
    for grammar in (
        toy,
        levelled_grammar(1, levels=3, width=5, roots=4, binary=6, vocab=20, emit=9),
    ):
        words = GrammarSource(grammar).draw(np.random.default_rng(0), 60, 9).split()
        found = []
        for sparse in (0, 10**9):
            monkeypatch.setattr("fairseq.pcfg.plan._SPARSE", sparse)
            source, viterbi = GrammarSource(grammar), Viterbi(grammar)
            assert {block.dense for block in source.blocks} == {sparse > 0}
            parts = [
                (source.conditionals(part[None])[0][0], viterbi.parse(part[None]).logprob_B)
                for part in words
            ]
            found.append(np.concatenate([np.append(q, logp) for q, logp in parts]))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12, atol=1e-15)


def test_long_sentences_do_not_leave_the_range_of_floats() -> None:
    words = [(f"w{n}",) for n in range(1000)]
    rules = [("S", ("S", "S"), 1e-5), *(("S", word, (1 - 1e-5) / 1000) for word in words)]
    chart = Chart(Grammar.from_rules(rules))
    length = 45  # 1e-5 ** 44 alone is 1e-220
    batch = np.zeros((2, length), dtype=np.int64)
    batch[1] = np.arange(length)
    # Catalan(n - 1) trees, all alike
    catalan = sum(np.log(length - 1 + k) - np.log(k) for k in range(2, length))
    best = (length - 1) * np.log(1e-5) + length * np.log((1 - 1e-5) / 1000)
    q_BNT, logp_B = chart.conditionals(batch)
    np.testing.assert_allclose(logp_B, catalan + best, rtol=1e-10)
    np.testing.assert_allclose(q_BNT, 1e-3, rtol=1e-9)
    np.testing.assert_allclose(Viterbi(chart.grammar).parse(batch[:1]).logprob_B, best, rtol=1e-10)


def a_chain(powers: list[int]) -> Grammar:
    """A symbol for every word but the first, which puts it behind the others: ``2 ** -power``."""
    rules: list[tuple[str, tuple[str, ...], float]] = [("W", ("w",), 1.0), ("S0", ("w",), 1.0)]
    for number, power in enumerate(powers):
        name, p = f"S{number + 1}", 0.5**power
        rules += [(name, (f"S{number}", "W"), p), (name, ("x",), 1 - p)]
    return Grammar.from_rules(rules[::-1])


def test_the_last_of_many_scales_is_that_of_the_chart() -> None:
    """Every run says a better scale, up to the word where it comes down; the last one counts."""
    powers = np.diff(np.rint(3 * np.arange(67) ** 1.8)).astype(int).tolist()
    grammar, words = a_chain(powers), np.zeros((1, 67), np.int64)
    words[:] = grammar.terminals.index("w")
    wanted = -sum(powers) * np.log(2)  # exactly a power of two
    np.testing.assert_allclose(Chart(grammar).logprob(words), wanted, rtol=1e-12)
    np.testing.assert_allclose(Viterbi(grammar).parse(words).logprob_B, wanted, rtol=1e-12)


def test_what_no_scale_fits_is_refused() -> None:
    """What is 1e-42 at the last word and 0.25 at the first leaves the floats on either side."""
    grammar, words = a_chain([2 * n for n in range(1, 71)]), np.zeros((1, 71), np.int64)
    words[:] = grammar.terminals.index("w")
    with np.errstate(all="ignore"), pytest.raises(DataError, match="71 words"):
        Chart(grammar).logprob(words)


def test_impossible_sentences_say_so(toy: Grammar) -> None:
    chart = Chart(toy)
    number = {word: place for place, word in enumerate(toy.terminals)}
    q_BNT, logp_B = chart.conditionals(np.array([[number["a"], number["a"]], [0, 1]]))
    assert logp_B[0] == -np.inf and q_BNT[0, 0].argmax() == number["b"]  # b a is a sentence
    q_BNT, logp_B = chart.conditionals(np.array([[number["a"]] * 4]))
    assert logp_B[0] == -np.inf and np.isnan(q_BNT).all()
    assert not len(Viterbi(toy).parse(np.array([[0, 0]])).sentence_D)
    q_BNT, logp_B = chart.conditionals(np.zeros((2, 40), dtype=np.int64))  # longer than any
    assert (logp_B == -np.inf).all() and np.isnan(q_BNT).all()
