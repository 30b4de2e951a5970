"""Probabilistic context-free grammars in binary form, as text files of rules.

One rule a line, fields parted by blanks: ``PARENT LEFT RIGHT PROB`` (two nonterminals),
``PARENT CHILD PROB`` (a nonterminal or a word). A symbol is a nonterminal if it has rules of its
own, the parent of the first rule is the start, and repeated rules add up.

Shape suffixes: R rules, X nonterminals, T terminals, W widths.
"""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq.errors import DataError
from fairseq.files.io import PathLike, atomic_write, require_file

TOLERANCE = 1e-3
"""How far the rules of a symbol may sum from 1; they are scaled to 1, or refused beyond this."""

_BLANKS = re.compile(r"[ \t\r\f\v]+")
Right = tuple[str, ...]


class BinaryRules(NamedTuple):
    """Rules with two children: int64 (R,) of parents, left and right children, float64 (R,)."""

    parent_R: np.ndarray
    left_R: np.ndarray
    right_R: np.ndarray
    prob_R: np.ndarray


def words_of(line: str) -> list[str]:
    """Split at ASCII blanks only: other spaces may be part of a word."""
    return [word for word in _BLANKS.split(line.rstrip("\n")) if word]


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar whose rules sum to one for every nonterminal.

    Attributes:
        nonterminals: names in sorted order; their places are the symbol numbers.
        terminals: words in sorted order; their places are the word numbers.
        start: number of the start symbol.
        binary: rules with two children.
        unary_XX: float64, probability of the rule parent (row) -> one nonterminal (column).
        emission_XT: float64, probability of the rule parent (row) -> word (column).
        notes: what was mended while reading.
    """

    nonterminals: tuple[str, ...]
    terminals: tuple[str, ...]
    start: int
    binary: BinaryRules
    unary_XX: np.ndarray
    emission_XT: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def from_rules(
        cls,
        rules: Iterable[tuple[str, Right, float]],
        where: str = "grammar",
        normalize: bool = False,
    ) -> Grammar:
        """Build a grammar from ``(parent, right side, probability)``; the first parent starts.

        Args:
            rules: in any order but for the first.
            where: its name in messages.
            normalize: scale whatever the rules of a symbol sum to, instead of refusing it.

        Raises:
            DataError: if there are no rules, their sums are off, a word stands in a binary rule,
                chains of single nonterminals go on forever, or no sentence is finite.
        """
        table: dict[str, dict[Right, float]] = defaultdict(lambda: defaultdict(float))
        start, repeated = None, 0
        for parent, right, prob in rules:
            start = parent if start is None else start
            repeated += right in table[parent]
            table[parent][right] += prob
        if start is None:
            raise DataError(f"{where} has no rules; write lines such as 'S A B 0.5'")
        notes = [f"{repeated} repeated rules were added up"] if repeated else []
        off = _normalize(table, where, normalize)
        if off > 1e-9:
            notes.append(f"sums of rules were off by up to {off:.1e} and scaled to 1")
        _refuse_words_beside_others(table, where)
        return _arrays(cls, table, start, tuple(notes), where)

    def rules(self) -> list[tuple[str, Right, float]]:
        """Return all rules of positive probability, the start's first."""
        rules: list[tuple[str, Right, float]] = []
        names = self.nonterminals
        for parent, left, right, prob in zip(*self.binary, strict=True):
            rules.append((names[parent], (names[left], names[right]), float(prob)))
        for matrix, columns in ((self.unary_XX, names), (self.emission_XT, self.terminals)):
            for row, column in np.argwhere(matrix > 0).tolist():
                rules.append((names[row], (columns[column],), float(matrix[row, column])))
        first = names[self.start]
        return sorted(rules, key=lambda rule: (rule[0] != first, rule[0]))

    def save(self, path: PathLike) -> None:
        """Write the rules, one a line; reading them gives the same numbers."""
        with atomic_write(path, "w", newline="\n") as handle:
            handle.writelines(f"{p} {' '.join(r)} {prob!r}\n" for p, r, prob in self.rules())

    @functools.cached_property
    def closure_XX(self) -> np.ndarray:
        """Float64 (X, X): ``(I - U)^-1``, total probability of chains of single nonterminals."""
        return np.linalg.inv(np.eye(len(self.nonterminals)) - self.unary_XX)

    @functools.cached_property
    def unary_parents(self) -> np.ndarray:
        """Int64: symbols that have rules with a single nonterminal."""
        return np.flatnonzero(self.unary_XX.any(axis=1))

    @property
    def candidates(self) -> np.ndarray:
        """Int64: symbols a span can be labelled with: all but a start that only renames others."""
        # but for rounding, all its probability goes to rules of one symbol
        renames = self.unary_XX[self.start].sum() > 1 - 1e-12
        return np.delete(np.arange(len(self.nonterminals)), [self.start] if renames else [])

    def reachable(self) -> np.ndarray:
        """Return bool (X,): whether a derivation of the start can hold the symbol."""
        child_XX = self.unary_XX > 0
        child_XX[self.binary.parent_R, self.binary.left_R] = True
        child_XX[self.binary.parent_R, self.binary.right_R] = True
        seen_X = np.zeros(len(self.nonterminals), dtype=bool)
        seen_X[self.start] = True
        while True:
            more_X = seen_X | child_XX[seen_X].any(axis=0)
            if np.array_equal(more_X, seen_X):
                return seen_X
            seen_X = more_X

    def length_law(self, longest: int) -> np.ndarray:
        """Return float64 (X, longest + 1): the probability that a symbol has so many words."""
        law_XW = np.zeros((len(self.nonterminals), longest + 1))
        parent_R, left_R, right_R, prob_R = self.binary
        for width in range(1, longest + 1):
            # k words to the left, width - k to the right: the second factor runs backwards
            sums_R = np.einsum(
                "rk,rk->r", law_XW[left_R, 1:width], law_XW[right_R, width - 1 : 0 : -1]
            )
            # of no rules at all numpy counts whole numbers
            direct_X = np.bincount(parent_R, prob_R * sums_R, len(law_XW)).astype(np.float64)
            if width == 1:
                direct_X += self.emission_XT.sum(axis=1)
            law_XW[:, width] = self.closure_XX @ direct_X
        return law_XW


def read_grammar(path: PathLike, normalize: bool = False) -> Grammar:
    """Read a file of rules.

    Args:
        path: the file, UTF-8.
        normalize: see :meth:`Grammar.from_rules`.

    Raises:
        DataError: naming the line that is no rule, or the symbol whose rules do not fit.
        MissingFileError: if there is no such file.
    """
    require_file(path, "grammar", "fairseq-pcfg grammar writes one.")

    def rules() -> Iterable[tuple[str, Right, float]]:
        with open(path, encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, 1):
                if fields := words_of(line):
                    yield _rule(fields, f"{path}, line {number}")

    try:
        return Grammar.from_rules(rules(), str(path), normalize)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _rule(fields: list[str], where: str) -> tuple[str, Right, float]:
    """Return the rule of a line."""
    if not 3 <= len(fields) <= 4:
        raise DataError(
            f"{where}: {len(fields)} fields; a rule is 'PARENT CHILD PROB' or 'PARENT LEFT RIGHT "
            "PROB' (split longer right sides into binary rules)"
        )
    try:
        prob = float(fields[-1])
    except ValueError:
        prob = math.nan
    if not (math.isfinite(prob) and prob >= 0):
        raise DataError(f"{where}: '{fields[-1]}' is no probability; write a number from 0 to 1")
    return fields[0], tuple(fields[1:-1]), prob


def _normalize(table: Mapping[str, dict[Right, float]], where: str, force: bool) -> float:
    """Scale the rules of every symbol to sum to 1; return how far the worst sum was off."""
    worst = 0.0
    for parent, rights in table.items():
        total = math.fsum(rights.values())
        off = abs(total - 1)
        if total <= 0 or (off > TOLERANCE and not force):
            raise DataError(
                f"{where}: the rules of {parent} sum to {total:.6g}, not 1; correct them"
                + (" or pass --normalize" if total > 0 else "")
            )
        worst = max(worst, off)
        if off > 1e-12:  # what is 1 but for rounding keeps its digits
            rights.update({right: prob / total for right, prob in rights.items()})
    return worst


def _refuse_words_beside_others(table: Mapping[str, dict[Right, float]], where: str) -> None:
    for parent, rights in table.items():
        for right in rights:
            lost = [name for name in right if len(right) > 1 and name not in table]
            if lost:
                raise DataError(
                    f"{where}: the rule {parent} -> {' '.join(right)} has two children, but "
                    f"{lost[0]} has no rules of its own; give it some (a word needs a symbol that "
                    "emits it)"
                )


def _arrays(
    cls: type[Grammar],
    table: Mapping[str, dict[Right, float]],
    start: str,
    notes: tuple[str, ...],
    where: str,
) -> Grammar:
    """Return the grammar of normalised rules."""
    names = tuple(sorted(table))
    number = {name: place for place, name in enumerate(names)}
    words = sorted({r[0] for rights in table.values() for r in rights if r[0] not in number})
    place_of = {word: place for place, word in enumerate(words)}
    unary_XX = np.zeros((len(names), len(names)))
    emission_XT = np.zeros((len(names), len(words)))
    binary: list[tuple[int, int, int, float]] = []
    for parent, rights in table.items():
        row = number[parent]
        for right, prob in sorted(rights.items()):
            if len(right) == 2 and prob > 0:
                binary.append((row, number[right[0]], number[right[1]], prob))
            elif len(right) == 1 and right[0] in number:
                unary_XX[row, number[right[0]]] = prob
            elif len(right) == 1:
                emission_XT[row, place_of[right[0]]] = prob
    binary.sort()
    ints_R3 = np.array([rule[:3] for rule in binary], dtype=np.int64).reshape(-1, 3)
    prob_R = np.array([rule[3] for rule in binary], dtype=np.float64)
    rules = BinaryRules(ints_R3[:, 0], ints_R3[:, 1], ints_R3[:, 2], prob_R)
    # chains of one symbol sum to (I - U)^-1, which exists if U has a spectral radius below 1
    if unary_XX.any() and np.abs(np.linalg.eigvals(unary_XX)).max() > 1 - 1e-9:
        raise DataError(
            f"{where}: rules with a single nonterminal lead in a circle of probability 1"
        )
    grammar = cls(names, tuple(words), number[start], rules, unary_XX, emission_XT, notes)
    if not _ends(grammar)[grammar.start]:
        raise DataError(f"{where}: no derivation of {start} ends; its symbols need words")
    return grammar


def _ends(grammar: Grammar) -> np.ndarray:
    """Return bool (X,): whether a symbol can become words."""
    parent_R, left_R, right_R, _ = grammar.binary
    ends_X = (grammar.emission_XT > 0).sum(axis=1) > 0
    while True:
        more_X: np.ndarray = ends_X | (grammar.unary_XX[:, ends_X].sum(axis=1) > 0)
        more_X[parent_R[more_X[left_R] & more_X[right_R]]] = True
        if np.array_equal(more_X, ends_X):
            return ends_X
        ends_X = more_X
