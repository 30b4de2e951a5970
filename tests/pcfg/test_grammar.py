"""Rule files: what is read, what is mended, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from small_grammars import TOY, grammars

from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.pcfg.grammar import Grammar, read_grammar
from fairseq.pcfg.random_sources import levelled_grammar, random_hmm, tree_grammar


def test_the_seed_grammar_reads_as_it_is(shared: Path) -> None:
    path = shared / "data" / "pcfg" / "rule_deep_mlm.txt"
    grammar = read_grammar(path)
    assert (len(grammar.nonterminals), len(grammar.terminals)) == (50, 200)
    assert grammar.nonterminals[grammar.start] == "S" and len(grammar.rules()) == 1407
    assert [grammar.nonterminals[x] for x in np.flatnonzero(~grammar.reachable())] == ["A1_9"]
    assert "242 repeated rules" in grammar.notes[0] and "2.3e-04" in grammar.notes[1]
    law = [0.042, 0.011, 0.003, 0.025, 0.073, 0.032, 0.089, 0.143, 0.053, 0.047, 0.106, 0.118]
    found_W = grammar.length_law(16)[grammar.start]
    np.testing.assert_allclose(found_W[2:], [*law, 0.071, 0.111, 0.076], atol=6e-4)
    assert found_W.sum() == pytest.approx(1)


def test_sums_to_one_repeated_rules_and_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "g.rules"
    path.write_text(
        "S  # 0.5\n\nS\t<s> 0.25\r\nS 0.3 '\"\u00a0x 0.25\n# é 1\n0.3 ( .9996\n'\"\u00a0x ) 1\n"
    )
    grammar = read_grammar(path)
    assert grammar.terminals == ("(", ")", "<s>", "é")
    assert grammar.nonterminals == ("#", "'\"\u00a0x", "0.3", "S")
    assert grammar.emission_XT.sum(axis=1).tolist() == [1, 1, 1, 0.25]
    assert "4.0e-04" in grammar.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rules"),
        ("S a\n", "line 1: 2 fields"),
        ("S a 1\nA B C D 1\n", "line 2: 5 fields"),
        ("S a 1\nA a x\n", "line 2: 'x' is no probability"),
        ("S a -1\n", "line 1: '-1' is no probability"),
        ("S a nan\n", "'nan' is no probability"),
        ("S a 0.5\nS b 0.4\n", "the rules of S sum to 0.9"),
        ("S a 0\n", "the rules of S sum to 0"),
        ("S A b 1\nA a 1\n", "b has no rules of its own"),
        ("S S S 1\n", "no derivation of S ends"),
        ("S A .5\nS a .5\nA B 1\nB A 1\n", "circle of probability 1"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "g.rules"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_grammar(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_grammar(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"S \xff 1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_grammar(tmp_path / "binary")


def test_unnormalised_rules_are_scaled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "g.rules"
    path.write_text("S a 3\nS b 1\n")
    with pytest.raises(DataError, match="--normalize"):
        read_grammar(path)
    assert read_grammar(path, normalize=True).emission_XT.tolist() == [[0.75, 0.25]]


@settings(max_examples=30, deadline=None)
@given(grammars())
def test_saved_grammars_are_read_back(grammar: Grammar) -> None:
    again = Grammar.from_rules(grammar.rules())
    assert again.rules() == grammar.rules()


def test_saving(toy: Grammar, tmp_path: Path) -> None:
    toy.save(tmp_path / "a")
    read_grammar(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(TOY.splitlines()) == 1 + len(toy.rules())


@pytest.mark.parametrize("seed", range(4))
def test_random_grammars_keep_their_promises(seed: int) -> None:
    grammar = levelled_grammar(seed, levels=3, width=6, roots=5, binary=4, vocab=40, emit=15)
    assert grammar.reachable().all() and (grammar.emission_XT > 0).any(axis=0).all()
    assert not grammar.notes and grammar.length_law(8)[grammar.start].sum() == pytest.approx(1)
    assert grammar.rules() == levelled_grammar(seed, 3, 6, 5, 4, 40, 15).rules()
    tree = tree_grammar(seed, levels=3)
    law_W = tree.length_law(27)[tree.start]
    assert tree.reachable().all() and law_W[8:].sum() == pytest.approx(1) and not law_W[:8].any()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not cover"):
        levelled_grammar(0, width=2, vocab=100, emit=10)
    with pytest.raises(ConfigError, match="different pairs"):
        levelled_grammar(0, width=3, roots=10)
    with pytest.raises(ConfigError, match="2 or 3 children"):
        tree_grammar(0, children=(1, 2))
    with pytest.raises(ConfigError, match="at least 1"):
        random_hmm(0, states=0)


def test_as_many_slots_as_symbols_are_filled() -> None:
    """15 roots of two symbols each have to name all 30: chance alone would not end."""
    grammar = levelled_grammar(0, levels=2, width=30, roots=15, binary=2, vocab=60, emit=4)
    roots = [right for parent, right, _ in grammar.rules() if parent[0] == "S" and parent != "S"]
    names = [name for right in roots for name in right]
    assert len(names) == 30 and set(names) == {f"A1_{number}" for number in range(30)}
