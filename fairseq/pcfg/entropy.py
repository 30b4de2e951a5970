"""How predictable a source is: nats per word that no model can save.

That of the sentences is estimated from a sample, whose probabilities are known. That of the
derivations is exact, and an upper bound, since a derivation says what the sentence is; they agree
where every sentence has one parse.

Source: Grenander 1967, by way of Hale 2006, "Uncertainty about the rest of the sentence" (entropy
of derivations).

Shape suffixes: X symbols, S sentences.
"""

from __future__ import annotations

import numpy as np

from fairseq.files.text_blocks import progress
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.source import Source, batches
from fairseq.rng import philox


def mean_length(grammar: Grammar) -> float:
    """Return the expected number of words of a sentence, inf if it is not finite."""
    return _expected(grammar, grammar.emission_XT.sum(axis=1))


def derivation_entropy(grammar: Grammar) -> float:
    """Return the entropy of a derivation in nats, inf if it is not finite.

    It is the sum over symbols of how often each is expanded, times the entropy of its rules.
    """
    binary = grammar.binary
    of_rules_X = (
        np.bincount(binary.parent_R, _surprise(binary.prob_R), len(grammar.nonterminals))
        + _surprise(grammar.unary_XX).sum(axis=1)
        + _surprise(grammar.emission_XT).sum(axis=1)
    )
    return _expected(grammar, of_rules_X)


def entropy_per_word(
    source: Source, seed: int = 1, count: int = 500, longest: int = 32
) -> tuple[float, float] | None:
    """Estimate -E[log P(sentence)] / E[words], over the sentences of at most ``longest`` words.

    Args:
        source: what they come from.
        seed: of the sample.
        count: sentences that are drawn.
        longest: parsing takes the cube of the length; longer ones are left out.

    Returns:
        nats per word and the standard error of this ratio (Cochran 1977, chapter 6); None if
        less than half of the sentences are so short.
    """
    sentences = source.draw(philox(seed, "pcfg/entropy"), count, longest).split()
    if 2 * len(sentences) < count:
        return None
    length_S = np.array([len(words) for words in sentences])
    nats_S = np.empty(len(sentences))
    with progress("estimating the entropy", len(sentences), "sentences") as show:
        done = 0
        for place_B, words_BN in batches(source, sentences):
            nats_S[place_B] = -source.logprob(words_BN)
            show(done := done + len(place_B))
    # a sentence within the limit is so much likelier among its like
    nats_S += np.log(len(sentences) / count)
    ratio = nats_S.sum() / length_S.sum()
    spread = np.std(nats_S - ratio * length_S, ddof=1)
    return float(ratio), float(spread / np.sqrt(len(sentences)) / length_S.mean())


def _surprise(prob: np.ndarray) -> np.ndarray:
    """Return -p log p, 0 at 0."""
    return -prob * np.log(np.where(prob > 0, prob, 1.0))


def _expected(grammar: Grammar, each_X: np.ndarray) -> float:
    """Return the expected sum of a figure over all symbols that a derivation expands."""
    child_XX = grammar.unary_XX.copy()
    for children_R in (grammar.binary.left_R, grammar.binary.right_R):
        np.add.at(child_XX, (grammar.binary.parent_R, children_R), grammar.binary.prob_R)
    seen = np.flatnonzero(grammar.reachable())
    child_XX = child_XX[np.ix_(seen, seen)]
    # sum_k child^k: how often each symbol is expanded below another one, if that has an end
    if np.abs(np.linalg.eigvals(child_XX)).max() > 1 - 1e-9:
        return float("inf")
    total_X = np.linalg.solve(np.eye(len(seen)) - child_XX, each_X[seen])
    return float(total_X[seen == grammar.start][0])
