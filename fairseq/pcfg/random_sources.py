"""New grammars and hidden-Markov models, each a function of its seed and settings.

Words are called ``w000``, ``w001`` and so on. Every symbol is reached and every word emitted.

Sources: Liu et al. 2023, section 3.1, for levelled grammars; Allen-Zhu and Li 2023, "Physics of
Language Models: Part 1", for ``tree_grammar``; Xie et al. 2022 for mixtures of HMMs.
"""

from __future__ import annotations

import math

import numpy as np

from fairseq.errors import ConfigError
from fairseq.pcfg.grammar import Grammar, Right
from fairseq.pcfg.hmm import Component, HiddenMarkov
from fairseq.rng import philox

Rules = list[tuple[str, Right, float]]

ROUNDS = 100  # of drawing pairs, before the symbols are dealt out


def words(count: int) -> list[str]:
    """Return ``count`` made-up words."""
    digits = max(3, len(str(count - 1)))
    return [f"w{number:0{digits}d}" for number in range(count)]


def levelled_grammar(
    seed: int,
    levels: int = 4,
    width: int = 10,
    roots: int = 9,
    binary: int = 20,
    vocab: int = 200,
    emit: int = 100,
    term_prob: tuple[float, float] = (0.05, 0.35),
    peak: float = 1.0,
) -> Grammar:
    """Return a grammar whose symbols form levels, so that no sentence exceeds 2 ** levels words.

    The start chooses a root (Dirichlet 3), a root is one pair of symbols of level 1. A symbol of an
    inner level is a word with probability t, else one of ``binary`` pairs of the next level
    (Dirichlet 1); a symbol of the last level is one of ``emit`` words.

    Args:
        seed: another one is another grammar.
        levels: inner levels and the last.
        width: symbols of each.
        roots: pairs that the start chooses from.
        binary: pairs of an inner symbol.
        vocab: words.
        emit: words of a last symbol.
        term_prob: range that t is drawn from.
        peak: parameter of the Dirichlet distribution of these; small ones are peaked.

    Raises:
        ConfigError: if these numbers do not fit each other.
    """
    if min(levels, width, roots, binary, vocab, emit) < 1 or not peak > 0:
        raise ConfigError("every size of a grammar is at least 1, and --peak above 0")
    if not 0 <= term_prob[0] <= term_prob[1] < 1:
        raise ConfigError("--term-prob is a range in [0, 1), the smaller number first")
    if emit > vocab or width * emit < vocab:
        raise ConfigError(
            f"{width} symbols of {emit} words each do not cover {vocab} words: "
            "--emit is at most --vocab and at least --vocab / --width"
        )
    rng = philox(seed, "pcfg/levelled")
    names = [[f"A{level}_{x}" for x in range(width)] for level in range(1, levels + 1)]
    root_names = [f"S{number:0{len(str(roots))}d}" for number in range(1, roots + 1)]
    rules: Rules = []
    # the start comes first: the parent of the first rule is the start
    _add(rules, "S", [(name,) for name in root_names], rng.dirichlet(np.full(roots, 3.0)))
    pairs = _covering_pairs(rng, 1, roots, width)[0]
    for name, (left, right) in zip(root_names, pairs, strict=True):
        rules.append((name, (names[0][left], names[0][right]), 1.0))
    vocabulary = words(vocab)
    for level, below in zip(names[:-1], names[1:], strict=True):
        pairs_of = _covering_pairs(rng, width, min(binary, width**2), width)
        for name, members in zip(level, pairs_of, strict=True):
            ends = rng.uniform(*term_prob)
            rights: list[Right] = [(below[left], below[right]) for left, right in members]
            weights = rng.dirichlet(np.ones(len(members))) * (1 - ends)
            rights.append((vocabulary[rng.integers(vocab)],))
            _add(rules, name, rights, np.append(weights, ends))
    # every word belongs to one last symbol for certain; the rest of its words are drawn
    shares = [order.tolist() for order in np.array_split(rng.permutation(vocab), width)]
    for name, members in zip(names[-1], shares, strict=True):
        others = np.setdiff1d(np.arange(vocab), members)
        chosen = [*members, *rng.permutation(others)[: emit - len(members)].tolist()]
        weights = rng.dirichlet(np.full(emit, peak))
        _add(rules, name, [(vocabulary[word],) for word in sorted(chosen)], weights)
    return Grammar.from_rules(rules)


def tree_grammar(
    seed: int,
    levels: int = 6,
    width: int = 3,
    rules_each: int = 2,
    vocab: int = 3,
    children: tuple[int, int] = (2, 3),
) -> Grammar:
    """Return a grammar like CFG3: symbols of a level choose evenly between a few rules.

    A rule has two or three symbols of the next level, the symbols of the last level are the words.
    Rules of three are split by helpers, called ``PARENT+RULE``.

    Args:
        seed: another one is another grammar.
        levels: expansions from the start to the words.
        width: symbols of each level between.
        rules_each: rules of a symbol.
        vocab: words.
        children: fewest and most symbols of a rule, 2 or 3.

    Raises:
        ConfigError: if these numbers do not fit each other.
    """
    if min(levels, width, rules_each, vocab) < 1 or not 2 <= children[0] <= children[1] <= 3:
        raise ConfigError("every size is at least 1, and rules have 2 or 3 children")
    rng = philox(seed, "pcfg/tree")
    rules: Rules = []
    vocabulary = words(vocab)
    names = [["S"], *([f"N{n}_{x}" for x in range(width)] for n in range(1, levels))]
    names.append([f"T_{word}" for word in vocabulary])
    for level, below in zip(names[:-1], names[1:], strict=True):
        uses = len(level) * rules_each
        if uses * children[0] < len(below):
            raise ConfigError(f"{uses} rules cannot reach all {len(below)} symbols below them")
        # each symbol below once, then any
        queue = rng.permutation(len(below)).tolist()
        for name in level:
            rights: set[Right] = set()
            for number in range(rules_each):
                for _ in range(100):
                    size = int(rng.integers(children[0], children[1] + 1))
                    taken = queue[:size]
                    more = rng.integers(len(below), size=size - len(taken)).tolist()
                    right = tuple(below[x] for x in [*taken, *more])
                    if right not in rights:
                        break
                else:
                    raise ConfigError(f"{name}: no {rules_each} different rules; raise --width")
                queue = queue[size:]
                rights.add(right)
                if len(right) == 3:
                    rules.append((f"{name}+{number}", right[1:], 1.0))
                    right = (right[0], f"{name}+{number}")
                rules.append((name, right, 1.0 / rules_each))
    rules += [(f"T_{word}", (word,), 1.0) for word in vocabulary]
    # the start's own rules come first
    return Grammar.from_rules(sorted(rules, key=lambda rule: rule[0] != "S"))


def random_hmm(
    seed: int,
    states: int = 100,
    vocab: int = 200,
    components: int = 1,
    lengths: tuple[int, int] = (16, 16),
    peak: float = 0.03,
) -> HiddenMarkov:
    """Return a hidden-Markov model, or a mixture of equal weights that share their emissions.

    Args:
        seed: another one is another model.
        states: hidden states.
        vocab: words.
        components: models of the mixture.
        lengths: shortest and longest sentence.
        peak: parameter of the Dirichlet distributions of all rows; small ones are peaked.

    Raises:
        ConfigError: if a size is below 1.
    """
    if min(states, vocab, components) < 1 or not peak > 0:
        raise ConfigError("every size of a hidden-Markov model is at least 1, and --peak above 0")
    rng = philox(seed, "pcfg/hmm")
    emission_KT = _rows(rng, peak, states, vocab)
    parts = [
        Component(
            1 / components,
            _rows(rng, 1.0, 1, states)[0],
            _rows(rng, peak, states, states),
            emission_KT,
        )
        for _ in range(components)
    ]
    return HiddenMarkov(words(vocab), parts, *lengths)


def _rows(rng: np.random.Generator, peak: float, rows: int, columns: int) -> np.ndarray:
    # with a small parameter a whole row may underflow to 0, which has no sum to divide by
    drawn = rng.standard_gamma(peak, (rows, columns)) + 1e-12
    return drawn / drawn.sum(axis=1, keepdims=True)


def _add(rules: Rules, parent: str, rights: list[Right], weights: np.ndarray) -> None:
    """Add rules that sum to one exactly: the likeliest one takes what rounding leaves."""
    probs = weights.tolist()
    top = int(weights.argmax())
    probs[top] = 1 - math.fsum(probs[:top] + probs[top + 1 :])
    rules += [(parent, right, prob) for right, prob in zip(rights, probs, strict=True)]


def _covering_pairs(
    rng: np.random.Generator, parents: int, each: int, width: int
) -> list[list[tuple[int, int]]]:
    """Return for each parent ``each`` different pairs of numbers below ``width``; all occur."""
    if each > width**2 or 2 * parents * each < width:
        raise ConfigError(
            f"{parents} symbols of {each} different pairs do not fit {width} symbols below them"
        )
    for _ in range(ROUNDS):
        codes = [rng.permutation(width**2)[:each] for _ in range(parents)]
        pairs = [[divmod(code, width) for code in chosen.tolist()] for chosen in codes]
        seen = {symbol for chosen in pairs for pair in chosen for symbol in pair}
        missing = [symbol for symbol in range(width) if symbol not in seen]
        # a random slot for each that is missing; seldom needed, and checked by the next round
        for symbol in missing:
            chosen = pairs[int(rng.integers(parents))]
            place = int(rng.integers(each))
            replacement = (
                (symbol, chosen[place][1]) if rng.random() < 0.5 else (chosen[place][0], symbol)
            )
            if replacement not in chosen:
                chosen[place] = replacement
        seen = {symbol for chosen in pairs for pair in chosen for symbol in pair}
        if len(seen) == width:
            return pairs
    # hardly more slots than symbols, which chance does not fill: all get one before the rest
    while True:
        drawn = rng.integers(width, size=2 * parents * each - width)
        slots = rng.permutation(np.concatenate([np.arange(width), drawn]))
        pairs = [[(a, b) for a, b in rows] for rows in slots.reshape(parents, each, 2).tolist()]
        if all(len(set(chosen)) == each for chosen in pairs):
            return pairs
