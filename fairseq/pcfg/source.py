"""What sentences come from, whatever it is: it draws them, and knows every conditional."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fairseq.errors import DataError
from fairseq.files.io import PathLike, require_file
from fairseq.pcfg.chart import Chart
from fairseq.pcfg.draws import Draws, Sentences, Span, SpanDraws
from fairseq.pcfg.grammar import Grammar, read_grammar, words_of
from fairseq.pcfg.hmm import HiddenMarkov


class Drawing(Protocol):
    """What draws sentences."""

    def draw(self, rng: np.random.Generator, count: int, longest: int) -> Sentences:
        """Draw ``count`` sentences; return those of at most ``longest`` words."""


class Source(Drawing, Protocol):
    """A distribution of sentences."""

    @property
    def terminals(self) -> tuple[str, ...]:
        """Return the words; their places are the word numbers."""

    def logprob(self, words_BN: np.ndarray) -> np.ndarray:
        """Return log P(words), natural, float64 (B,)."""

    def conditionals(self, words_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return q_BNT, each word given the others that are shown, and log P(words) (B,)."""

    def batch_size(self, length: int) -> int:
        """Return how many sentences of a length are worked on together."""


class GrammarSource(Chart):
    """A grammar as a source."""

    def __init__(self, grammar: Grammar) -> None:
        super().__init__(grammar)
        self._draws = Draws(grammar)

    @property
    def terminals(self) -> tuple[str, ...]:
        """Return the words, sorted."""
        return self.grammar.terminals

    def draw(self, rng: np.random.Generator, count: int, longest: int) -> Sentences:
        """Draw sentences; see :meth:`fairseq.pcfg.draws.Draws.draw`."""
        return self._draws.draw(rng, count, longest)

    def symbols_of_spans(self, span: Span) -> SpanDraws:
        """Return what draws the same sentences, and keeps the symbols that a span came from."""
        return SpanDraws(self._draws, span)


def load_source(path: PathLike, normalize: bool = False) -> Source:
    """Read a grammar, or a hidden-Markov model (a JSON file).

    Args:
        path: the file.
        normalize: see :meth:`fairseq.pcfg.grammar.Grammar.from_rules`.

    Raises:
        DataError: if it is neither.
        MissingFileError: if there is no such file.
    """
    with open(require_file(path, "grammar", "fairseq-pcfg grammar writes one."), "rb") as handle:
        head = handle.read(4).removeprefix(codecs.BOM_UTF8)
        is_json = head.startswith(b"{") and str(path).endswith(".json")
    return HiddenMarkov.load(path) if is_json else GrammarSource(read_grammar(path, normalize))


def batches(
    source: Source, sentences: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``(indices_B, words_BN)`` of sentences of equal length, in batches that fit."""
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    for length in np.unique(lengths).tolist():
        members = np.flatnonzero(lengths == length)
        size = source.batch_size(length)
        for first in range(0, len(members), size):
            indices_B = members[first : first + size]
            yield indices_B, np.stack([sentences[index] for index in indices_B])


def read_sentences(path: PathLike, terminals: Sequence[str]) -> list[np.ndarray]:
    """Read one sentence a line, words separated by blanks; empty lines are passed over.

    Returns:
        the word numbers of each sentence, int64 (N,).

    Raises:
        DataError: naming the line and word that the source does not know.
        MissingFileError: if there is no such file.
    """
    number = {word: place for place, word in enumerate(terminals)}
    sentences = []
    with open(require_file(path, "text", "Check the path."), encoding="utf-8-sig") as handle:
        try:
            for row, line in enumerate(handle, 1):
                words = words_of(line)
                unknown = [word for word in words if word not in number]
                if unknown:
                    raise DataError(
                        f"{path}, line {row}: '{unknown[0][:80]}' is no word of the grammar; "
                        "score the text with the grammar that it was drawn from"
                    )
                if words:
                    sentences.append(np.array([number[word] for word in words], dtype=np.int64))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from None
    if not sentences:
        raise DataError(f"{path} holds no sentence")
    return sentences
