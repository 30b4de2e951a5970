"""Hidden-Markov models, and mixtures of them as in GINC, with exact conditionals.

A sentence first draws its component, then states and words. The file is JSON: ``words``,
``shortest`` and ``longest`` (lengths are uniform between them), and ``components``, each with
``weight``, ``initial`` (K), ``transition`` (K, K) and ``emission`` (K, T); rows sum to 1.

Sources: Rabiner 1989 (forward and backward); Xie et al. 2022, section 4 (GINC).

Shape suffixes: B sentences of one length, N words, K states, T terminals, C components.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq.errors import DataError
from fairseq.files.io import PathLike, atomic_write, require_file
from fairseq.pcfg.draws import Choices, Sentences
from fairseq.pcfg.grammar import TOLERANCE

_KEYS = ("initial", "transition", "emission")


@dataclass(frozen=True, eq=False)
class Component:
    """One hidden-Markov model and its weight; every row of the float64 arrays sums to 1."""

    weight: float
    initial_K: np.ndarray
    transition_KK: np.ndarray
    emission_KT: np.ndarray


class HiddenMarkov:
    """A mixture of hidden-Markov models.

    Args:
        terminals: words, in the order of the columns of the emissions.
        components: the models; their weights sum to 1.
        shortest: fewest words of a sentence.
        longest: most words of a sentence.

    Raises:
        DataError: if shapes or sums do not fit.
    """

    def __init__(
        self, terminals: list[str], components: list[Component], shortest: int, longest: int
    ) -> None:
        if not 1 <= shortest <= longest:
            raise DataError(f"lengths from {shortest} to {longest} are impossible; begin at 1")
        if not components or len(set(terminals)) != len(terminals):
            raise DataError("a hidden-Markov model needs components, and words that all differ")
        self.terminals = tuple(terminals)
        self.components = components
        self.shortest, self.longest = shortest, longest
        _check_sums("the weights of the components", np.array([c.weight for c in components]))
        for number, c in enumerate(components):
            states = len(c.initial_K)
            shapes = [(states,), (states, states), (states, len(terminals))]
            parts = (c.initial_K, c.transition_KK, c.emission_KT)
            for name, part, shape in zip(_KEYS, parts, shapes, strict=True):
                if part.shape != shape:
                    raise DataError(f"component {number}: {name} is {part.shape}, not {shape}")
                _check_sums(f"component {number}: {name}", part)
        self._choose = Choices([np.array([c.weight for c in components])])
        self._tables = [
            (Choices([c.initial_K]), Choices(list(c.transition_KK)), Choices(list(c.emission_KT)))
            for c in components
        ]

    @classmethod
    def load(cls, path: PathLike) -> HiddenMarkov:
        """Read a JSON file.

        Raises:
            DataError: if it is damaged, or does not sum to one.
        """
        file = require_file(path, "model", "fairseq-pcfg grammar writes one.")
        try:
            record = json.loads(file.read_text("utf-8-sig"))
            components = [
                Component(float(c["weight"]), *(np.array(c[key], dtype=float) for key in _KEYS))
                for c in record["components"]
            ]
            words = [str(word) for word in record["words"]]
            return cls(words, components, int(record["shortest"]), int(record["longest"]))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no hidden-Markov model: {error!r}") from None

    def save(self, path: PathLike) -> None:
        """Write the JSON file."""
        record: dict[str, Any] = {
            "words": self.terminals,
            "shortest": self.shortest,
            "longest": self.longest,
            "components": [
                {
                    "weight": c.weight,
                    "initial": c.initial_K.tolist(),
                    "transition": c.transition_KK.tolist(),
                    "emission": c.emission_KT.tolist(),
                }
                for c in self.components
            ],
        }
        with atomic_write(path, "w") as handle:
            json.dump(record, handle)

    def draw(self, rng: np.random.Generator, count: int, longest: int) -> Sentences:
        """Draw ``count`` sentences; return those of at most ``longest`` words."""
        length_B = rng.integers(self.shortest, self.longest + 1, count)
        component_B = self._choose.draw(np.zeros(count, dtype=np.int64), rng)
        words_BN = np.zeros((count, self.longest), dtype=np.int64)
        for number, (initial, transition, emission) in enumerate(self._tables):
            rows_B = np.flatnonzero(component_B == number)
            state_B = initial.draw(np.zeros(len(rows_B), dtype=np.int64), rng)
            for i in range(self.longest):
                words_BN[rows_B, i] = emission.draw(state_B, rng) - emission.first[state_B]
                state_B = transition.draw(state_B, rng) - transition.first[state_B]
        length_B = length_B[kept_B := length_B <= longest]
        shown_BN = np.arange(self.longest) < length_B[:, None]
        return Sentences(words_BN[kept_B][shown_BN], np.concatenate([[0], np.cumsum(length_B)]))

    def logprob(self, words_BN: np.ndarray) -> np.ndarray:
        """Return log P(words), natural, float64 (B,)."""
        return self.conditionals(words_BN)[1]

    def conditionals(self, words_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distribution of every word given the others; see ``Chart.conditionals``."""
        parts = [_messages(c, words_BN) for c in self.components]
        log_CBN = np.stack([log_BN for _, log_BN, _ in parts])
        log_CB = np.stack([logp_B for *_, logp_B in parts])
        fits = self.shortest <= words_BN.shape[1] <= self.longest
        with np.errstate(invalid="ignore", divide="ignore"):
            # -inf less -inf has no value: where no component fits, shares are zero instead
            share_CBN = np.exp(log_CBN - log_CBN.max(axis=0).clip(min=-1e300))
            q_BNT = sum(
                share_BN[:, :, None] * (d_BNK @ c.emission_KT)
                for share_BN, (d_BNK, *_), c in zip(share_CBN, parts, self.components, strict=True)
            )
            q_BNT /= q_BNT.sum(axis=-1, keepdims=True)
            length_law = np.log(fits / (self.longest - self.shortest + 1))
            return q_BNT, np.logaddexp.reduce(log_CB, axis=0) + length_law

    def batch_size(self, length: int) -> int:
        """Return how many sentences of a length are worked on together."""
        states = max(len(c.initial_K) for c in self.components)
        # messages and answers of a batch take about 16 MiB
        return int(np.clip((1 << 21) // (length * (states + len(self.terminals))), 8, 1024))


def _messages(c: Component, words_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run forward and backward with the scale of each position kept apart.

    Returns:
        ``d_BNK`` and ``log_BN``: d * exp(log) is the derivative of P(words, component) by the
        emission of the state at the position; ``logp_B`` is log P(words, component).
    """
    # the last column, which MASK = -1 picks, is the emission of a hidden word
    emission = np.concatenate([c.emission_KT, c.emission_KT.sum(1, keepdims=True)], axis=1)
    seen_NBK = emission[:, words_BN.T].transpose(1, 2, 0)
    length, count, states = seen_NBK.shape
    d_NBK = np.empty((length, count, states))
    log_NB = np.empty((length, count))
    with np.errstate(divide="ignore"):
        state_BK = np.broadcast_to(c.initial_K, (count, states))
        log_B = np.full(count, np.log(c.weight))
        for i in range(length):
            d_NBK[i], log_NB[i] = state_BK, log_B
            state_BK, log_B = _scaled(state_BK * seen_NBK[i], log_B)
            state_BK = state_BK @ c.transition_KK
        logp_B = log_B
        after_BK, log_B = np.ones((count, states)), np.zeros(count)
        for i in reversed(range(length)):
            d_NBK[i] *= after_BK
            log_NB[i] += log_B
            after_BK, log_B = _scaled((after_BK * seen_NBK[i]) @ c.transition_KK.T, log_B)
    return d_NBK.transpose(1, 0, 2), log_NB.T, logp_B


def _scaled(message_BK: np.ndarray, log_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide messages by their sums, whose logarithms go to ``log_B``."""
    sum_B = message_BK.sum(axis=1)
    return message_BK / np.where(sum_B > 0, sum_B, 1.0)[:, None], log_B + np.log(sum_B)


def _check_sums(what: str, part: np.ndarray) -> None:
    off = np.abs(part.sum(axis=-1) - 1).max()
    if not off <= TOLERANCE or (part < 0).any():
        raise DataError(f"{what} must be at least 0 and sum to 1; a row is off by {off:.3g}")
