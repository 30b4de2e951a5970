"""One grammar and what a reference file says about it: see ``pcfg``."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fairseq.pcfg.chart import MASK
from fairseq.pcfg.grammar import Grammar, words_of
from fairseq.pcfg.source import GrammarSource
from fairseq.pcfg.viterbi import Viterbi, brackets
from tests.pcfg.brute import derivations, tree_probability

NOT_COMPARED = {"grammar", "rules", "start", "terminals", "nonterminals", "note", "sentence"}


class Reference:
    """One grammar and the differences found so far.

    Attributes:
        columns: the words in the order of the file's rows of numbers.
        worst: largest difference for every key that was compared.
        unknown: keys that were not.
    """

    def __init__(self, grammar: Grammar, record: dict[str, Any], folder: Path) -> None:
        self.grammar, self.record, self.folder = grammar, record, folder
        self.source, self.viterbi = GrammarSource(grammar), Viterbi(grammar)
        self.symbol = {name: place for place, name in enumerate(grammar.nonterminals)}
        self.word = {name: place for place, name in enumerate(grammar.terminals)}
        # columns of rows of numbers: the order that the file states
        self.columns = [self.word[w] for w in record.get("terminals", grammar.terminals)]
        self.worst: dict[str, float] = {}
        self.unknown: set[str] = set()
        # what a model answers in the place of the truth, a row for each listed sentence
        self.answers = [record[key] for key in record if re.search("model|predict", key)]

    def note(self, key: str, found: Any, wanted: Any) -> None:
        """Compare numbers; a missing one (None) stands for none."""
        if wanted is None or (isinstance(wanted, list) and None in wanted):
            off = 0.0 if not np.any(np.isfinite(np.asarray(found, dtype=float))) else math.inf
        elif np.shape(found) != np.shape(wanted):
            off = math.inf
        else:
            apart = np.abs(np.asarray(found, dtype=float) - np.asarray(wanted, dtype=float))
            off = float(np.max(apart, initial=0.0))
        self.worst[key] = max(self.worst.get(key, 0.0), math.inf if math.isnan(off) else off)

    def words(self, sentence: str | list[str]) -> np.ndarray:
        """Return a sentence as word numbers (1, N)."""
        names = words_of(sentence) if isinstance(sentence, str) else sentence
        return np.array([[self.word[name] for name in names]])

    def compare(self) -> None:
        """Compare all that is known, by the name of its key or by its form."""
        for key, value in self.record.items():
            if key in NOT_COMPARED:
                continue
            if key in WHOLE:
                WHOLE[key](self, key, value)
            elif not self._by_form(key, value):
                self.unknown.add(key)

    def _by_form(self, key: str, value: Any) -> bool:
        """Compare a table by what its keys are; tell if it is understood."""
        if isinstance(value, str) and value.endswith(".npy") and self._listed():
            value = np.load(self.folder / value, allow_pickle=False).tolist()
        if value in self.answers:
            return True
        if self._listed() and isinstance(value, list) and len(value) == len(self._listed()):
            return key == "sentences" or self._rows(key, value)
        if isinstance(value, float) and re.search("cross|kl|ce$", key, re.I):
            return self._against_answers(key, value)
        if isinstance(value, float) and re.search("entropy|optim|loss", key):
            self.average(key, value)
        elif re.search("label", key):
            return self._label_tables(value, [key])
        elif isinstance(value, list) and value and all(self._is_row(row) for row in value):
            part = Reference.masked if "masked" in value[0] else Reference.records
            part(self, key, value)
        elif not isinstance(value, dict) or not value:
            return False
        elif all("|" in name and self.is_sentence(name.rpartition("|")[0]) for name in value):
            self.masked(key, value)
        elif not all(map(self.is_sentence, value)):
            return False
        elif re.search("viterbi|best|tree", key):
            self.trees(key, value)
        else:
            for sentence, wanted in value.items():
                if isinstance(wanted, dict):
                    self.records(key, [{"sentence": sentence, **wanted}])
                else:
                    self.note(key, self.prob(self.words(sentence)), wanted)
        return True

    def _listed(self) -> list[str]:
        """Return the sentences that the file lists as plain text."""
        listed = self.record.get("sentences")
        plain = isinstance(listed, list) and all(isinstance(sentence, str) for sentence in listed)
        return listed if plain else []

    def _rows(self, key: str, value: list[Any]) -> bool:
        """Compare a row for each listed sentence: all conditionals, position after position."""
        for sentence, row in zip(self._listed(), value, strict=True):
            q_1NT, _ = self.source.conditionals(self.words(sentence))
            flat = q_1NT[0][:, self.columns].ravel()
            row = np.asarray(row, dtype=float).ravel()
            if len(row) < len(flat):
                return False
            self.note(key, row[: len(flat)], flat.tolist())  # what follows only fills the row
        return True

    def _against_answers(self, key: str, value: float) -> bool:
        """Compare cross-entropy or KL of a model's answers, mean over positions."""
        if len(self.answers) != 1 or np.shape(self.answers[0])[:1] != (len(self._listed()),):
            return False
        parts = []
        for sentence, row in zip(self._listed(), self.answers[0], strict=True):
            q_NT = self.source.conditionals(self.words(sentence))[0][0][:, self.columns]
            p_NT = np.asarray(row, dtype=float).ravel()[: q_NT.size].reshape(q_NT.shape)
            top_NT = q_NT if re.search("kl", key, re.I) else np.ones_like(q_NT)
            ratio_NT = np.divide(top_NT, p_NT, out=np.ones_like(q_NT), where=q_NT > 0)
            parts.extend((q_NT * np.log(ratio_NT)).sum(1).tolist())
        self.note(key, float(np.mean(parts)), value)
        return True

    def _is_row(self, row: Any) -> bool:
        return isinstance(row, dict) and self.is_sentence(row.get("sentence", ""))

    def is_sentence(self, text: str) -> bool:
        names = words_of(text)
        return bool(names) and all(name in self.word for name in names)

    def _label_tables(self, value: Any, trail: list[str]) -> bool:
        """Compare labels anywhere below a key; its names tell the span and the notion of likely."""
        if isinstance(value, dict):
            done = [self._label_tables(inner, [*trail, key]) for key, inner in value.items()]
            return all(done)
        sentences = [part for part in trail if self.is_sentence(part)]
        if value is not None and value not in self.symbol or not sentences:
            return False
        words_1N = self.words(sentences[-1])
        names = " ".join(part for part in trail if part not in sentences)
        match = re.search(r"(?:prefix|span|first)\D*(\d+)", names) or re.search(r"\b[BC]\b", names)
        width = words_1N.shape[1]
        if match:
            width = int(match.group(1)) if match.lastindex else 4 if match.group() == "B" else 2
        if re.search("post|map|prior", names, re.I):
            table = np.nan_to_num(
                self.source.span_marginals(self.source.inside(words_1N), 0, width)[0]
            )
        elif re.search("viterbi|best", names, re.I):
            table = _unscaled(self.viterbi.span_best(words_1N[:, :width]))
        else:
            table = _unscaled(self.source.span_inside(words_1N[:, :width]))
        candidates = self.grammar.candidates
        if not match and self.grammar.unary_XX[self.grammar.start].any():
            candidates = np.flatnonzero(self.grammar.unary_XX[self.grammar.start])
        got = float(table[self.symbol[value]]) if value is not None else 0.0
        # ties may go either way: compare what the label scores
        self.note(" ".join(names.split()[:3]), got, float(table[candidates].max(initial=0.0)))
        return True

    # -- questions about one sentence (1, N) ------------------------------------------------------

    def prob(self, words_1N: np.ndarray) -> float:
        return float(np.exp(self.source.logprob(words_1N)[0]))

    def best(self, words_1N: np.ndarray) -> float:
        return float(np.exp(self.viterbi.parse(words_1N).logprob_B[0]))

    @functools.cached_property
    def language(self) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """All sentences of the file's ``language``: probability, words, entropy by position."""
        found = []
        for sentence in self._all_sentences():
            words_1N = self.words(sentence)
            q_1NT, logp_1 = self.source.conditionals(words_1N)
            log_1NT = np.log(q_1NT, out=np.zeros_like(q_1NT), where=q_1NT > 0)
            weight = 1 / len(self._listed()) if self._listed() else float(np.exp(logp_1[0]))
            found.append((weight, words_1N[0], -(q_1NT * log_1NT).sum(-1)[0]))
        return found

    def _all_sentences(self) -> list[str]:
        """Return the sentences the file lists, or all of a small grammar without recursion."""
        if self._listed():
            return self._listed()
        for key in ("language", "sentences", "probabilities"):
            if isinstance(listed := self.record.get(key), dict):
                return list(listed)
            if isinstance(listed, list) and all(self._is_row(row) for row in listed):
                return [row["sentence"] for row in listed]
        law_W = self.grammar.length_law(6)[self.grammar.start]
        if law_W.sum() < 1 - 1e-9 or len(self.word) ** int(np.flatnonzero(law_W)[-1]) > 50_000:
            return []
        every = [
            " ".join(names)
            for length in np.flatnonzero(law_W).tolist()
            for names in itertools.product(self.grammar.terminals, repeat=length)
        ]
        return [sentence for sentence in every if self.prob(self.words(sentence)) > 0]

    # -- parts of a file --------------------------------------------------------------------------

    def records(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Compare ``records``: everything about single sentences."""
        for row in rows:
            words_1N = self.words(row["sentence"])
            self.note("prob", self.prob(words_1N), row.get("prob", self.prob(words_1N)))
            for name in ("p", "probability"):
                if isinstance(row.get(name), float):
                    self.note("prob", self.prob(words_1N), row[name])
            if row.get("logprob") is not None:
                self.note("logprob", float(self.source.logprob(words_1N)[0]), row["logprob"])
            self._spans(words_1N, row)
            for width, wanted in row.get("prefix_labels", {}).items():
                self._labels(words_1N, int(width), wanted)
            if row.get("viterbi_tree"):
                self._tree(words_1N, row)
            self._derivations(words_1N, row)

    def _spans(self, words_1N: np.ndarray, row: dict[str, Any]) -> None:
        """Compare tables of spans ``"i,j,X"``; what they leave out must be zero."""
        length, possible = words_1N.shape[1], self.prob(words_1N) > 0
        whole, needed = self.source.inside(words_1N, True), self.source.inside(words_1N)
        grad = self.source.outside(needed)
        scale = {
            (i, j): self._exponent(words_1N, i, j)
            for i in range(length)
            for j in range(i + 1, length + 1)
        }
        for name in ("inside", "outside", "span_marginals"):
            if name not in row or (name != "inside" and not possible):
                continue
            found = {}
            for i, j in scale:
                rows_X = np.zeros(len(self.symbol))
                if name == "span_marginals":
                    rows_X = self.source.span_marginals(needed, i, j)[0]
                elif name == "inside":
                    places, rows_X1 = whole.cell(i, j)
                    rows_X[self.source.order_X[places]] = np.ldexp(rows_X1[:, 0], scale[i, j])
                elif (i, j) in needed.plan.at:
                    cell = needed.plan.at[i, j]
                    total = scale[0, length] - scale[i, j]
                    rows_X[self.source.order_X[cell.low : cell.high]] = np.ldexp(
                        grad[cell.all_rows][:, 0], total
                    )
                found.update({f"{i},{j},{x}": rows_X[n] for x, n in self.symbol.items()})
            wanted = row[name]
            # the outside of what cannot be there is left out of the references
            keys = (
                wanted if name == "outside" else wanted.keys() | {k for k, v in found.items() if v}
            )
            for key in keys:
                self.note(name, found[key], wanted.get(key, 0.0))

    def _exponent(self, words_1N: np.ndarray, i: int, j: int) -> int:
        """Return by which power of two the chart's cell is too large."""
        top_N = np.frexp(self.grammar.emission_XT[:, words_1N[0]].max(axis=0))[1]
        return int(top_N[i:j].sum())

    def _labels(self, words_1N: np.ndarray, width: int, wanted: dict[str, Any]) -> None:
        """Compare what the first words come from, under every notion of likely."""
        part = words_1N[:, :width]
        inside = self.source.inside(words_1N)
        tables = {
            "inside": _unscaled(self.source.span_inside(part)),
            "viterbi": _unscaled(self.viterbi.span_best(part)),
            "posterior": np.nan_to_num(self.source.span_marginals(inside, 0, width)[0]),
        }
        chosen = {
            "inside": "likelihood_label",
            "viterbi": "viterbi_label",
            "posterior": "map_label",
        }
        for name, table in tables.items():
            if name not in wanted:
                continue
            values = {x: float(table[self.symbol[x]]) for x in wanted[name]}
            for symbol, number in wanted[name].items():
                self.note(f"label {name}", values[symbol], number)
            label = wanted.get(chosen[name])
            top = max(values.values(), default=0.0)
            if chosen[name] in wanted:  # ties may go either way: compare what the label scores
                got = values.get(label, math.inf) if label is not None else 0.0
                self.note(f"label {name}", got, top)

    def _tree(self, words_1N: np.ndarray, row: dict[str, Any]) -> None:
        """Compare best trees by their probability: ties may go either way."""
        own = brackets(self.viterbi.parse(words_1N), self.grammar, words_1N)[0]
        for tree in (own, row["viterbi_tree"]):
            prob, words = tree_probability(self.grammar, tree)
            self.note("viterbi_tree", prob, row.get("viterbi_prob", self.best(words_1N)))
            self.note("viterbi_tree", [self.word[w] for w in words], words_1N[0].tolist())

    def _derivations(self, words_1N: np.ndarray, row: dict[str, Any]) -> None:
        best, prob = self.best(words_1N), self.prob(words_1N)
        if row.get("viterbi_prob") is not None:
            self.note("viterbi_prob", best, row["viterbi_prob"])
        if row.get("viterbi_posterior") is not None:
            self.note("viterbi_posterior", best / prob, row["viterbi_posterior"])
        count = row.get("n_derivations")
        if count is None or count > 20_000:
            return
        every = sorted(derivations(self.grammar, self.grammar.start, (*words_1N[0].tolist(),)))
        self.note("n_derivations", len(every), count)
        if row.get("viterbi_runner_up_prob") is not None and len(every) > 1:
            self.note("viterbi_runner_up_prob", every[-2], row["viterbi_runner_up_prob"])

    def masked(self, key: str, value: Any) -> None:
        """Compare conditionals: a list of cases, or ``"sentence|i,j"`` -> word -> probability."""
        rows = value if isinstance(value, list) else list(keyed_masks(value))
        for row in rows:
            names = row.get("terminals") or self.record.get("terminals") or self.grammar.terminals
            order = [self.word[name] for name in names]
            words_1N = self.words(row["sentence"])
            hidden = words_1N.copy()
            hidden[0, row["masked"]] = MASK
            q_1NT, logp_1 = self.source.conditionals(hidden)
            q_KT = q_1NT[0, row["masked"]]
            wanted = row.get("marginals")
            if isinstance(wanted, dict):
                wanted = [[wanted.get(name, 0.0) for name in names]]
            if wanted is not None:
                self.note(key, q_KT[:, order], np.array(wanted, dtype=float))
            log_KT = np.log(q_KT, out=np.zeros_like(q_KT), where=q_KT > 0)
            if "entropy" in row:
                self.note("entropy", -(q_KT * log_KT).sum(1), np.atleast_1d(row["entropy"]))
            if "prob_observed" in row:
                self.note("prob_observed", float(np.exp(logp_1[0])), row["prob_observed"])
            if "joint" in row:
                self._joint(hidden, row, float(logp_1[0]))

    def _joint(self, hidden: np.ndarray, row: dict[str, Any], logp: float) -> None:
        """Compare the probabilities of all fillings."""
        probs = []
        for filling, wanted in row["joint"].items():
            words_1N = hidden.copy()
            words_1N[0, row["masked"]] = [self.word[name] for name in words_of(filling)]
            probs.append(float(np.exp(self.source.logprob(words_1N)[0] - logp)))
            self.note("joint", probs[-1], wanted)
        self.note("joint", sum(probs), 1.0)
        if "joint_entropy" in row:
            self.note(
                "joint_entropy", -sum(p * math.log(p) for p in probs if p), row["joint_entropy"]
            )
        if row.get("nll_true") is not None:
            truth = self.source.logprob(self.words(row["sentence"]))[0] - logp
            self.note("nll_true", -float(truth), row["nll_true"])

    def lengths(self, key: str, value: dict[str, float]) -> None:
        law_W = self.grammar.length_law(max(map(int, value)))[self.grammar.start]
        for width, wanted in value.items():
            self.note(key, float(law_W[int(width)]), wanted)

    def mass(self, key: str, value: float) -> None:
        longest = (self.record.get("n_sentences_upto") or {}).get("length") or max(
            map(int, self.record.get("length_distribution", {"1": 0}))
        )
        self.note(key, float(self.grammar.length_law(longest)[self.grammar.start].sum()), value)

    def average(self, key: str, value: float) -> None:
        """Compare averages over the language, which must be whole."""
        probs = np.array([p for p, *_ in self.language])
        counts = np.array([len(words) for _, words, _ in self.language])
        sums = np.array([entropy.sum() for *_, entropy in self.language])
        if not len(probs) or abs(probs.sum() - 1) > 1e-9:
            self.unknown.add(key)
        elif key == "sentence_entropy":
            self.note(key, float(-(probs * np.log(probs)).sum()), value)
        elif re.search("micro|token", key) or (self._listed() and "macro" not in key):
            self.note(key, float(probs @ sums / (probs @ counts)), value)
        else:
            self.note(key, float(probs @ (sums / counts)), value)

    def count(self, key: str, value: dict[str, int]) -> None:
        if self.language:
            self.note(key, len(self.language), value["count"])

    def trees(self, key: str, value: dict[str, Any]) -> None:
        """Compare best parses given as trees, as probabilities, or as both."""
        for sentence, wanted in value.items():
            words_1N = self.words(sentence)
            row = wanted if isinstance(wanted, dict) else {}
            tree = row.get("tree", wanted if isinstance(wanted, str) else None)
            prob = row.get("prob", wanted if isinstance(wanted, int | float) else None)
            if prob is not None:
                self.note(key, self.best(words_1N), prob)
            if tree is not None:
                self._tree(words_1N, {"viterbi_tree": tree})

    def every_derivation(self, key: str, value: dict[str, int]) -> None:
        for sentence, wanted in value.items():
            words = (*self.words(sentence)[0].tolist(),)
            self.note(key, len(list(derivations(self.grammar, self.grammar.start, words))), wanted)


Compare = Callable[[Reference, str, Any], None]
WHOLE: dict[str, Compare] = {
    "records": Reference.records,
    "masked": Reference.masked,
    "length_distribution": Reference.lengths,
    "total_mass_upto": Reference.mass,
    "n_sentences_upto": Reference.count,
    "sentence_entropy": Reference.average,
    "viterbi": Reference.trees,
    "n_derivations": Reference.every_derivation,
}


def _unscaled(scaled: tuple[np.ndarray, np.ndarray]) -> Any:
    """Return the probabilities (X,) of a batch of one."""
    p_1X, exponent_1 = scaled
    return np.ldexp(p_1X[0], exponent_1[0])


def keyed_masks(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cases of a table ``"sentence|positions"`` -> distribution."""
    for key, wanted in value.items():
        sentence, _, places = key.rpartition("|")
        positions = [int(place) for place in re.findall(r"\d+", places)]
        if len(positions) == 1:
            yield {"sentence": sentence, "masked": positions, "marginals": wanted}
        elif any(" " in filling for filling in wanted):
            yield {"sentence": sentence, "masked": positions, "joint": wanted}
        else:
            rows = wanted.values() if isinstance(wanted, dict) else wanted
            yield {"sentence": sentence, "masked": positions, "marginals": list(rows)}
