"""Every derivation written out, without a chart: what the chart is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from fairseq.pcfg.grammar import Grammar


def derivations(
    grammar: Grammar, symbol: int, words: tuple[int, ...], depth: int = 12
) -> Iterator[float]:
    """Yield the probability of every derivation of words (or -1, a hidden word) from a symbol.

    Chains of single nonterminals are followed ``depth`` deep.
    """
    if len(words) == 1:
        row = grammar.emission_XT[symbol]
        yield from (float(p) for p in (row[row > 0] if words[0] < 0 else row[words[0] :][:1]) if p)
    if depth:
        for child in np.flatnonzero(grammar.unary_XX[symbol]):
            for inner in derivations(grammar, int(child), words, depth - 1):
                yield float(grammar.unary_XX[symbol, child]) * inner
    own = np.flatnonzero(grammar.binary.parent_R == symbol)
    for rule, split in itertools.product(own.tolist(), range(1, len(words))):
        rights = list(derivations(grammar, int(grammar.binary.right_R[rule]), words[split:]))
        for left in derivations(grammar, int(grammar.binary.left_R[rule]), words[:split]):
            for right in rights:
                yield float(grammar.binary.prob_R[rule]) * left * right


def probability(grammar: Grammar, words: tuple[int, ...]) -> float:
    return sum(derivations(grammar, grammar.start, words))


def conditionals(grammar: Grammar, words: tuple[int, ...], position: int) -> np.ndarray:
    """Return the distribution of one word given the others, by trying all; NaN if none fits."""
    tried = np.array(
        [
            probability(grammar, (*words[:position], word, *words[position + 1 :]))
            for word in range(len(grammar.terminals))
        ]
    )
    with np.errstate(invalid="ignore"):
        return tried / tried.sum()


def tree_probability(grammar: Grammar, text: str) -> tuple[float, list[str]]:
    """Return the probability and the words of a tree such as ``(S (A a) (B b))``."""
    tokens = iter(text.replace("(", " ( ").replace(")", " ) ").split())
    assert next(tokens) == "("

    def read() -> tuple[str, float, list[str]]:
        name, children, words, product = next(tokens), [], [], 1.0
        for token in tokens:
            if token == ")":
                break
            if token == "(":
                child, inner, below = read()
                product *= inner
                words += below
            else:
                child = token
                words.append(token)
            children.append(child)
        return name, product * rule_probability(grammar, name, tuple(children)), words

    _, product, words = read()
    return product, words


def rule_probability(grammar: Grammar, parent: str, right: tuple[str, ...]) -> float:
    return sum(prob for p, r, prob in grammar.rules() if (p, r) == (parent, right))
