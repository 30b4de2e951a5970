"""Sentences of a grammar, many at a time: all open symbols of all sentences are expanded at once.

Shape suffixes: X symbols, R rules, S symbols of all sentences, P those that have children, N words,
B sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq.pcfg.grammar import Grammar


class Sentences(NamedTuple):
    """Word numbers of all sentences in a row, int64 (N,), and where each begins, int64 (B + 1,)."""

    words_N: np.ndarray
    offset_B1: np.ndarray

    def split(self) -> list[np.ndarray]:
        """Return the sentences one by one."""
        return np.split(self.words_N, self.offset_B1[1:-1])

    def take(self, count: int) -> Sentences:
        """Return the first sentences."""
        offset_B1 = self.offset_B1[: count + 1]
        return Sentences(self.words_N[: offset_B1[-1]], offset_B1)

    @classmethod
    def join(cls, parts: list[Sentences]) -> Sentences:
        """Return the sentences of all parts."""
        lengths = [np.diff(part.offset_B1) for part in parts]
        offset_B1 = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        return cls(np.concatenate([part.words_N for part in parts]), offset_B1)


class Step(NamedTuple):
    """One expansion of all open symbols.

    ``symbol_S`` are those before it, words included; ``parent_S`` says for each symbol after it
    which of these it came from.
    """

    symbol_S: np.ndarray
    parent_S: np.ndarray


class Choices:
    """Weighted choices from many lists at once, each by one number and two look-ups.

    Source: Walker 1977 (alias method), tables made as in Vose 1991.

    Args:
        weights: one list of weights per row, summing to anything above zero.
    """

    def __init__(self, weights: list[np.ndarray]) -> None:
        self._sizes = np.array([len(row) for row in weights], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self._sizes)])
        tables = [_alias(row / row.sum()) for row in weights]
        self._keep = np.concatenate([keep for keep, _ in tables])
        self._alias = np.concatenate(
            [first + alias for first, (_, alias) in zip(self.first, tables, strict=False)]
        )

    def draw(self, rows_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a choice for each row, counted over all rows (see ``first``), int64 (S,)."""
        point_S = rng.random(len(rows_S)) * self._sizes[rows_S]
        place_S = point_S.astype(np.int64)
        # the whole part chose a column, the fraction is as good as a second draw
        point_S -= place_S
        place_S += self.first[rows_S]
        return np.where(point_S < self._keep[place_S], place_S, self._alias[place_S])


def _alias(prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of its column each choice keeps, and who has the rest."""
    keep, alias = prob * len(prob), np.arange(len(prob))
    small = np.flatnonzero(keep < 1).tolist()
    large = np.flatnonzero(keep >= 1).tolist()
    while small and large:
        less, more = small.pop(), large[-1]
        alias[less] = more
        keep[more] -= 1 - keep[less]
        if keep[more] < 1:
            small.append(large.pop())
    for rest in small:  # 1 but for rounding, unless it is impossible
        if prob[rest] > 0:
            keep[rest] = 1.0
        else:
            alias[rest] = int(prob.argmax())
    return keep, alias


class Draws:
    """Draws sentences from a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.start, self.count = grammar.start, len(grammar.nonterminals)
        place_of = {name: place for place, name in enumerate(grammar.nonterminals)}
        # words get the numbers after those of the symbols
        place_of |= {word: self.count + place for place, word in enumerate(grammar.terminals)}
        rules: list[list[tuple[int, int, float]]] = [[] for _ in grammar.nonterminals]
        # sorted, so that draws depend on the rules and not on their order in a file
        for parent, right, prob in sorted(grammar.rules()):
            second = place_of[right[1]] if len(right) == 2 else -1
            rules[place_of[parent]].append((place_of[right[0]], second, prob))
        self._choices = Choices([np.array([rule[2] for rule in rules_of]) for rules_of in rules])
        flat = [rule for rules_of in rules for rule in rules_of]
        self._left_R = np.array([rule[0] for rule in flat], dtype=np.int32)
        self._right_R = np.array([rule[1] for rule in flat], dtype=np.int32)

    def draw(self, rng: np.random.Generator, count: int, longest: int) -> Sentences:
        """Draw ``count`` sentences; return those of at most ``longest`` words.

        Leaving out the long ones changes no conditional: it divides the probability of all
        sentences of a length by the same number.
        """
        return self.derive(rng, count, longest)[0]

    def derive(
        self, rng: np.random.Generator, count: int, longest: int, keep_steps: bool = False
    ) -> tuple[Sentences, list[Step]]:
        """Draw the sentences of :meth:`draw`; return the steps of their derivations, too.

        Args:
            rng: of all choices.
            count: sentences to draw.
            longest: most words of those that are returned.
            keep_steps: whether the steps are wanted.
        """
        steps: list[Step] = []
        symbol_S = np.full(count, self.start, dtype=np.int32)
        sentence_S = np.arange(count, dtype=np.int32)
        while len(open_S := np.flatnonzero(symbol_S < self.count)):
            before, parent_S = symbol_S, np.arange(len(symbol_S))
            rule_S = self._choices.draw(symbol_S[open_S], rng)
            right_S = self._right_R[rule_S]
            symbol_S = before.copy() if keep_steps else symbol_S
            symbol_S[open_S] = self._left_R[rule_S]
            if len(pairs_S := np.flatnonzero(right_S >= 0)):
                # every pair before makes one place more: the second child of pair k moves on by k +
                # 1
                behind_S = open_S[pairs_S] + np.arange(1, len(pairs_S) + 1)
                repeats_S = np.ones(len(symbol_S), dtype=np.int64)
                repeats_S[open_S[pairs_S]] = 2
                symbol_S = np.repeat(symbol_S, repeats_S)
                symbol_S[behind_S] = right_S[pairs_S]
                sentence_S = np.repeat(sentence_S, repeats_S)
                parent_S = np.repeat(parent_S, repeats_S)
            # a symbol is at least one word, so what is too long now stays so
            fits_B = np.bincount(sentence_S, minlength=count) <= longest
            if not fits_B.all():
                kept_S = fits_B[sentence_S]
                symbol_S, sentence_S = symbol_S[kept_S], sentence_S[kept_S]
                parent_S = parent_S[kept_S]
            if keep_steps:
                steps.append(Step(before, parent_S))
        lengths_B = np.bincount(sentence_S, minlength=count)
        offset_B1 = np.concatenate([[0], np.cumsum(lengths_B[lengths_B > 0])])
        return Sentences(symbol_S.astype(np.int64) - self.count, offset_B1), steps


@dataclass(frozen=True)
class Span:
    """A part of every sentence.

    Attributes:
        first: its first word.
        last: the word behind it, None for the end of the sentence.
        symbols: the symbols that are asked for.
    """

    first: int
    last: int | None
    symbols: np.ndarray


class SpanDraws:
    """Draws the sentences of :class:`Draws`, and keeps which symbol a span of each came from.

    Attributes:
        symbol_B: of all sentences so far the highest symbol of those asked for whose words are
            just those of the span; -1 where none is.
    """

    def __init__(self, draws: Draws, span: Span) -> None:
        self._draws, self._span = draws, span
        self._wanted_X = np.zeros(draws.count, dtype=bool)
        self._wanted_X[span.symbols] = True
        self.symbol_B = np.zeros(0, dtype=np.int64)

    def draw(self, rng: np.random.Generator, count: int, longest: int) -> Sentences:
        """Draw sentences; see :meth:`Draws.draw`."""
        sentences, steps = self._draws.derive(rng, count, longest, keep_steps=True)
        self.symbol_B = np.concatenate([self.symbol_B, self._symbols(sentences, steps)])
        return sentences

    def _symbols(self, sentences: Sentences, steps: list[Step]) -> np.ndarray:
        lengths_B = np.diff(sentences.offset_B1)
        last_B = lengths_B if self._span.last is None else np.full_like(lengths_B, self._span.last)
        sentence_S = np.repeat(np.arange(len(lengths_B)), lengths_B)
        start_S = np.arange(len(sentence_S)) - sentences.offset_B1[sentence_S]
        end_S = start_S + 1
        highest_B = np.full(len(lengths_B), -1, dtype=np.int64)
        for step in reversed(
            steps if len(lengths_B) else []
        ):  # from the words up: higher symbols come later, and stay
            # children stand side by side, so the first and the last one bound their parent; what
            # was left out as too long has none
            parent_P, first_P = np.unique(step.parent_S, return_index=True)
            end_P = end_S[np.append(first_P[1:], len(step.parent_S)) - 1]
            sentence_P, start_P = sentence_S[first_P], start_S[first_P]
            symbol_P = step.symbol_S[parent_P]
            is_open_P = symbol_P < self._draws.count
            fits_P = is_open_P & self._wanted_X[np.where(is_open_P, symbol_P, 0)]
            fits_P &= (start_P == self._span.first) & (end_P == last_B[sentence_P])
            highest_B[sentence_P[fits_P]] = symbol_P[fits_P]
            size = len(step.symbol_S)
            sentence_S, start_S, end_S = (
                _spread(values, parent_P, size) for values in (sentence_P, start_P, end_P)
            )
        return highest_B


def _spread(values_P: np.ndarray, place_P: np.ndarray, size: int) -> np.ndarray:
    """Return an array of ``size`` with values at their places, -1 elsewhere."""
    spread_S = np.full(size, -1, dtype=np.int64)
    spread_S[place_P] = values_P
    return spread_S
