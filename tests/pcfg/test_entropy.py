"""Entropies of sources, against sums over all their sentences."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from small_grammars import grammars

from fairseq.files import text_blocks
from fairseq.pcfg.entropy import derivation_entropy, entropy_per_word, mean_length
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.hmm import HiddenMarkov
from fairseq.pcfg.random_sources import levelled_grammar, tree_grammar
from fairseq.pcfg.source import GrammarSource, Source
from fairseq_cli import pcfg
from tests.pcfg.brute import derivations


def every_sentence(source: Source, longest: int) -> tuple[float, float, float]:
    """Return the mass, the entropy and the mean length of all sentences, one by one."""
    mass = nats = words = 0.0
    for length in range(1, longest + 1):
        pairs = itertools.product(range(len(source.terminals)), repeat=length)
        logp_S = source.logprob(np.array(list(pairs)))
        logp_S = logp_S[np.isfinite(logp_S)]
        p_S = np.exp(logp_S)
        mass, words = mass + p_S.sum(), words + length * p_S.sum()
        nats -= (p_S * logp_S).sum()
    return mass, nats, words


SMALL = {"levels": 2, "width": 2, "roots": 2, "binary": 2, "vocab": 4, "emit": 2}


class Terminal(io.StringIO):
    """What a person sits in front of."""

    def isatty(self) -> bool:
        return True


def test_an_estimate_that_takes_its_time_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_blocks, "_BAR_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", said := Terminal())
    entropy_per_word(GrammarSource(levelled_grammar(0, **SMALL)), count=50)
    assert "estimating the entropy" in said.getvalue() and "sentences" in said.getvalue()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_levelled_grammars(seed: int) -> None:
    grammar = levelled_grammar(seed, **SMALL)
    mass, nats, words = every_sentence(GrammarSource(grammar), 4)
    assert mass == pytest.approx(1)
    assert mean_length(grammar) == pytest.approx(words)
    assert derivation_entropy(grammar) >= nats - 1e-12
    found = entropy_per_word(GrammarSource(grammar), seed, count=4000)
    assert found is not None and abs(found[0] - nats / words) < 4 * found[1] < 0.1


def test_derivations_one_by_one() -> None:
    grammar = levelled_grammar(5, **SMALL)
    total = mass = 0.0
    for length in range(1, 5):
        for words in itertools.product(range(len(grammar.terminals)), repeat=length):
            for prob in derivations(grammar, grammar.start, words):
                mass, total = mass + prob, total - prob * math.log(prob)
    assert mass == pytest.approx(1) and derivation_entropy(grammar) == pytest.approx(total)


def test_a_geometric_law() -> None:
    """S -> A S (p) | a: with one parse each, sentences and derivations are as uncertain."""
    p = 0.8
    grammar = Grammar.from_rules(
        [("S", ("A", "S"), p), ("S", ("a",), 1 - p), ("A", ("a",), 0.5), ("A", ("b",), 0.5)]
    )
    words = 1 / (1 - p)
    of_choice = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    nats = words * of_choice + (words - 1) * math.log(2)
    assert mean_length(grammar) == pytest.approx(words)
    assert derivation_entropy(grammar) == pytest.approx(nats)
    found = entropy_per_word(GrammarSource(grammar), count=3000, longest=200)
    assert found is not None and abs(found[0] - nats / words) < 4 * found[1]


def test_sentences_without_end_or_too_long_have_none() -> None:
    growing = Grammar.from_rules([("S", ("S", "S"), 0.7), ("S", ("a",), 0.3)])
    assert mean_length(growing) == derivation_entropy(growing) == math.inf
    assert entropy_per_word(GrammarSource(growing), count=50) is None  # 3 in 7 have an end
    assert entropy_per_word(GrammarSource(tree_grammar(0)), count=50) is None


@settings(max_examples=60, deadline=None)
@given(grammars())
def test_lengths_of_random_grammars(grammar: Grammar) -> None:
    law_W = grammar.length_law(400)[grammar.start]
    if (words := mean_length(grammar)) < 20 and law_W.sum() > 1 - 1e-9:
        assert words == pytest.approx(float(law_W @ np.arange(401)), rel=1e-4)


@pytest.mark.parametrize("kind", ["levelled", "tree", "hmm"])
def test_the_command_says_it(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / ("g.json" if kind == "hmm" else "g.rules")
    assert pcfg.main(["grammar", "--kind", kind, "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    if kind == "tree":  # sentences of hundreds of words
        assert record["entropy_per_word"] is None and record["mean_length"] > 64
        assert 0 < record["derivation_entropy_per_word"] < math.log(3)
        return
    assert 0 < record["entropy_per_word_se"] < 0.1 * record["entropy_per_word"]
    assert record["entropy_per_word"] < math.log(record["terminals"])
    if kind == "levelled":
        assert record["derivation_entropy_per_word"] > record["entropy_per_word"]
    else:
        assert isinstance(HiddenMarkov.load(out), HiddenMarkov) and "mean_length" not in record
