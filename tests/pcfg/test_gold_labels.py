"""Gold labels: the symbols that spans came from, against posteriors and against derivations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_grammars import grammars

from fairseq.errors import ConfigError, DataError
from fairseq.pcfg.downstream import Labeller
from fairseq.pcfg.draws import Span
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.random_sources import levelled_grammar
from fairseq.pcfg.source import GrammarSource, batches
from fairseq.rng import philox
from fairseq_cli import pcfg


@pytest.mark.parametrize("task", ["A", "B", "C", "span:1:2", "span:1:3"])
@pytest.mark.parametrize("kind", ["toy", "levels"])
def test_gold_labels_follow_the_posterior(toy: Grammar, kind: str, task: str) -> None:
    sizes = {"levels": 3, "width": 4, "roots": 4, "binary": 5, "vocab": 12, "emit": 6}
    grammar = toy if kind == "toy" else levelled_grammar(1, **sizes)
    source = GrammarSource(grammar)
    labeller = Labeller(source, task, "gold")
    sentences, label_S = labeller.draw(philox(5, "test"), 6000, 9)
    assert len(label_S) == 6000 and (label_S >= 0).any()
    total_K = np.zeros(len(labeller.names))
    variance_K = np.zeros_like(total_K)
    whole = sentences.split()
    for indices_B, words_BN in batches(source, whole):
        # no symbol but a root spans what another one does: posteriors of symbols sum to one at most
        if words_BN.shape[1] < (labeller.last or 0):
            assert (label_S[indices_B] < 0).all()
            continue
        posterior = Labeller(source, task, "map").scores(words_BN)
        total_K += posterior.sum(0)
        variance_K += (posterior * (1 - posterior)).sum(0)
    counts_K = np.bincount(label_S[label_S >= 0], minlength=len(total_K))
    assert (np.abs(counts_K - total_K) <= 4 * np.sqrt(variance_K.clip(0)) + 1e-6).all()


@pytest.mark.parametrize("task", ["A", "B", "span:1:3"])
@pytest.mark.parametrize("kind", ["toy", "levels"])
def test_the_best_guess_is_right_as_often_as_the_ceiling_says(
    toy: Grammar, kind: str, task: str
) -> None:
    sizes = {"levels": 3, "width": 4, "roots": 4, "binary": 5, "vocab": 12, "emit": 6}
    source = GrammarSource(toy if kind == "toy" else levelled_grammar(1, **sizes))
    gold, best = Labeller(source, task, "gold"), Labeller(source, task, "map")
    sentences, label_S = gold.draw(philox(7, "test"), 6000, 9)
    kept = [words for words, label in zip(sentences.split(), label_S, strict=True) if label >= 0]
    right_S = best.labels(kept) == label_S[label_S >= 0]
    ceiling = gold.ceiling(kept)
    assert ceiling is not None and 0.3 < ceiling < 1
    assert abs(right_S.mean() - ceiling) < 4 * np.sqrt(ceiling * (1 - ceiling) / len(kept))
    assert best.ceiling(kept) == 1.0  # a text has one such label
    assert gold.ceiling([np.zeros(65, dtype=np.int64)]) is None  # would take long


def test_spans_below_the_range_of_float64_are_labelled() -> None:
    """Two symbols that make words from left to right: P(words | symbol) is a product."""
    size = 6000
    words = [f"w{k:05d}" for k in range(size)]
    rising_W = 2 * np.arange(1, size + 1) / (size * (size + 1))
    skewed = {"A": rising_W, "B": rising_W[::-1]}
    rules: list[tuple[str, tuple[str, ...], float]] = [("S", (name,), 0.5) for name in skewed]
    for name, p_W in skewed.items():
        rules.append((name, (f"{name}1", name), 0.99))
        for word, p in zip(words, p_W.tolist(), strict=True):
            rules += [(f"{name}1", (word,), p), (name, (word,), 0.01 * p)]
    grammar = Grammar.from_rules(rules)
    sentences = [philox(k, "test").integers(0, size, 5 if k < 3 else 90) for k in range(9)]
    log = {name: np.log(p_W) for name, p_W in skewed.items()}
    sums = {name: np.array([log[name][words].sum() for words in sentences]) for name in log}
    assert max(sums["A"][3:].max(), sums["B"][3:].max()) < -745  # where float64 ends
    wanted = (sums["B"] > sums["A"]).astype(int).tolist()
    assert {*wanted[3:]} == {0, 1}
    source = GrammarSource(grammar)
    for how in ("likelihood", "viterbi", "map"):
        labeller = Labeller(source, "A", how)
        assert labeller.names == ["A", "B"]
        assert labeller.labels(sentences).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gold_symbols_can_make_their_words(data: st.DataObject) -> None:
    """Recursive grammars and chains, too; long sentences are left out on the way."""
    grammar = data.draw(grammars())
    source = GrammarSource(grammar)
    first = data.draw(st.integers(0, 2))
    last = data.draw(st.one_of(st.none(), st.integers(first + 1, 4)))
    every = np.arange(len(grammar.nonterminals))
    draws = source.symbols_of_spans(Span(first, last, every))
    seed = data.draw(st.integers(0, 99))
    drawn = [draws.draw(philox(seed, "test", part), 200, 4) for part in (0, 1)]
    again = [source.draw(philox(seed, "test", part), 200, 4) for part in (0, 1)]
    words = [one for part in drawn for one in part.split()] if len(draws.symbol_B) else []
    for mine, plain in zip(drawn, again, strict=True):
        assert np.array_equal(mine.words_N, plain.words_N)
    assert len(words) == len(draws.symbol_B)
    for sentence, symbol in zip(words, draws.symbol_B.tolist(), strict=True):
        part = sentence[first : len(sentence) if last is None else last]
        if last is None and first == 0:
            assert symbol == grammar.start  # of all symbols the start is the highest
        if symbol >= 0:
            assert len(part) == (len(sentence) if last is None else last) - first
            assert source.span_inside(part[None])[0][0, symbol] > 0


def test_the_command_gives_the_sentences_of_the_other_labels(
    toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for how in ("gold", "map"):
        pcfg.main(["downstream", str(toy_file), str(tmp_path / how), "--task", "A", "--label", how,
                   "--num", "400", "--valid", "20", "--min-len", "2", "--json"])  # fmt: skip
    texts = [(tmp_path / how / "train.input0").read_bytes() for how in ("gold", "map")]
    assert texts[0] == texts[1]
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["dropped"] for record in records] == [0, 0]
    assert 0.5 < records[0]["ceiling"] < 1 == records[1]["ceiling"]
    gold, best = (
        (tmp_path / how / "train.label").read_text().splitlines() for how in ("gold", "map")
    )
    # what is most probable is most often true
    assert 0.5 < np.mean([a == b for a, b in zip(gold, best, strict=True)]) < 1


def test_no_sentence_at_all_has_no_label(toy_file: Path, tmp_path: Path) -> None:
    words = ["downstream", str(toy_file), str(tmp_path), "--task", "A", "--label", "gold"]
    assert pcfg.main([*words, "--num", "10", "--valid", "0", "--min-len", "2"]) == 0
    assert (tmp_path / "valid.label").read_text() == ""


def test_a_failure_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules, out = tmp_path / "g.rules", tmp_path / "task"
    pcfg.main(["grammar", "--out", str(rules)])
    words = ["downstream", str(rules), str(out), "--num", "5", "--valid", "2"]
    with pytest.raises(ConfigError, match="0 or more"):
        pcfg.main([*words, "--num", "-5"])
    for more, message in (
        (["--task", "span:0:30"], "a span that no symbol fits"),
        (["--min-len", "30", "--max-len", "5"], "hardly any sentence"),
    ):
        with pytest.raises(DataError, match=message):
            pcfg.main([*words, *more])
        assert not out.exists()
    for command in (words, ["sample", *words[1:3]], ["grammar", "--out", str(out)]):
        with pytest.raises(SystemExit):
            pcfg.main([*command, "--seed", "-1"])
        assert "must be at least 0, not -1" in capsys.readouterr().err
