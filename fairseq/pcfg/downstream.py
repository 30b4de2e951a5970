"""Labels of spans: which symbol a part of a sentence comes from, most likely.

Tasks, as in Liu et al. 2023: ``A`` asks which root the whole sentence has, ``B`` and ``C`` which
symbol the first 4 and 2 words; ``span:i:j`` asks the same of words i to j. The label is the
symbol X with the largest

- ``likelihood``: P(words of the span | X), the sum over all parses, without a prior;
- ``viterbi``: probability of the best derivation of the span from X;
- ``map``: posterior probability that X spans these words of the whole sentence.

``gold`` is no guess: the symbol that the span came from when the sentence was drawn, the highest
but the start where several did; a span that no symbol made has none.

Ties go to the first symbol in sorted order.

Shape suffixes: B sentences, N words, X symbols, K labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairseq.catalog import SPAN_LABELS
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.files.io import PathLike, atomic_write
from fairseq.pcfg.draws import Sentences, Span
from fairseq.pcfg.sample import BLOCK, dictionary_of, draw_exactly, make_folder, refuse_other_texts
from fairseq.pcfg.source import GrammarSource, batches
from fairseq.pcfg.viterbi import Viterbi
from fairseq.rng import philox

_LONGEST_PARSED = 64
_PARSED = 1000  # sentences that the ceiling is estimated on


class Labeller:
    """Labels sentences of a grammar.

    Args:
        source: the grammar.
        task: see the module.
        how: one of ``catalog.SPAN_LABELS``.

    Attributes:
        names: the labels, sorted; the same for every file.
        csv_numbers: their numbers in the original's csv files: for A among the roots, else among
            all symbols.

    Raises:
        ConfigError: for an unknown task, or one the grammar does not have.
    """

    def __init__(self, source: GrammarSource, task: str, how: str = "likelihood") -> None:
        grammar = source.grammar
        spans = {"A": (0, None), "B": (0, 4), "C": (0, 2)}
        if match := re.fullmatch(r"span:(\d+):(\d+)", task):
            spans[task] = (int(match.group(1)), int(match.group(2)))
        if task not in spans or how not in SPAN_LABELS:
            raise ConfigError(
                f"task {task}, labels by {how}: choose A, B, C or span:i:j, and "
                + ", ".join(SPAN_LABELS)
            )
        self.first, self.last = spans[task]
        if self.last is not None and self.first >= self.last:
            raise ConfigError(f"{task} is an empty span; write span:i:j with i < j")
        self.source, self.how = source, how
        self.symbols = grammar.candidates
        self.csv_numbers = self.symbols
        if task == "A":
            self.symbols = np.flatnonzero(grammar.unary_XX[grammar.start])
            self.csv_numbers = np.arange(len(self.symbols))
            if not len(self.symbols):
                raise ConfigError("task A asks for roots, but the start has no rule of one symbol")
        self.names = [grammar.nonterminals[symbol] for symbol in self.symbols]
        self._viterbi = Viterbi(grammar) if how == "viterbi" else None

    def scores(self, words_BN: np.ndarray) -> np.ndarray:
        """Return what is compared, float64 (B, K): zeros where no symbol fits, -1 if too short.

        The scores of a sentence are in proportion to the probabilities that the module names.
        """
        last = words_BN.shape[1] if self.last is None else self.last
        if words_BN.shape[1] < last:
            return np.full((len(words_BN), len(self.symbols)), -1.0)
        if self.how == "map":
            return self._posterior(words_BN)
        if self._viterbi is not None:
            score_BX = self._viterbi.span_best(words_BN[:, self.first : last])[0]
        else:
            score_BX = self.source.span_inside(words_BN[:, self.first : last])[0]
        return score_BX[:, self.symbols]

    def _posterior(self, words_BN: np.ndarray) -> np.ndarray:
        """Return the posterior probability of each label's symbol, float64 (B, K)."""
        last = words_BN.shape[1] if self.last is None else self.last
        inside = self.source.inside(words_BN)
        posterior_BX = np.nan_to_num(self.source.span_marginals(inside, self.first, last))
        return posterior_BX[:, self.symbols]

    def labels(self, sentences: Sequence[np.ndarray]) -> np.ndarray:
        """Return the place of each sentence's label in ``names``, int64; -1 where none fits.

        Not for ``gold``, which a text does not tell: see :meth:`draw`.
        """
        label_S = np.full(len(sentences), -1, dtype=np.int64)
        for indices_B, words_BN in batches(self.source, sentences):
            score_BK = self.scores(words_BN)
            label_S[indices_B] = np.where(score_BK.max(axis=1) > 0, score_BK.argmax(axis=1), -1)
        return label_S

    def ceiling(self, sentences: Sequence[np.ndarray]) -> float | None:
        """Return the accuracy that no guess from the text exceeds, estimated on sentences.

        All labels but gold ones follow from the text. The best guess of a gold one is the symbol
        with the largest posterior probability, among those where some symbol made the span.

        Args:
            sentences: of those that are labelled.

        Returns:
            None where it is not computed: for symbols that rename each other, and for sentences of
            more than 64 words, whose parsing takes the cube of that.
        """
        if self.how != "gold":
            return 1.0
        renames = bool(self.source.grammar.unary_XX[self.symbols].any())
        if renames or not sentences or max(map(len, sentences)) > _LONGEST_PARSED:
            return None
        best_S = np.empty(len(sentences))
        for indices_B, words_BN in batches(self.source, sentences):
            posterior_BK = self._posterior(words_BN)
            best_S[indices_B] = posterior_BK.max(axis=1) / posterior_BK.sum(axis=1)
        return float(best_S.mean())

    def draw(
        self, rng: np.random.Generator, count: int, longest: int
    ) -> tuple[Sentences, np.ndarray]:
        """Draw exactly ``count`` sentences, the same for all ways to label them.

        Returns:
            the sentences, and the places of their gold labels, zeros for the other ways.
        """
        if self.how != "gold":
            return draw_exactly(self.source, rng, count, longest)[0], np.zeros(count, np.int64)
        draws = self.source.symbols_of_spans(Span(self.first, self.last, self.symbols))
        sentences, _ = draw_exactly(draws, rng, count, longest)
        place_X = np.full(len(self.source.grammar.nonterminals) + 1, -1)  # the last: no symbol
        place_X[self.symbols] = np.arange(len(self.symbols))
        return sentences, place_X[draws.symbol_B[:count]]


@dataclass(frozen=True)
class Labelled:
    """What was written.

    Attributes:
        sizes: sentences that the files of each split hold.
        majority: share of the commonest label.
        ceiling: see :meth:`Labeller.ceiling`; of the first thousand sentences of the last split.
        used: labels that occur.
        dropped: sentences that were left out.
    """

    sizes: dict[str, int]
    majority: float
    ceiling: float | None
    used: int
    dropped: int


def write_downstream(
    labeller: Labeller,
    folder: PathLike,
    sizes: dict[str, int],
    seed: int = 1,
    lengths: tuple[int, int] = (5, 31),
    drop_unparsable: bool = False,
) -> Labelled:
    """Write labelled sentences for the task ``sentence_prediction``.

    For each split ``SPLIT.input0`` and ``SPLIT.label``, to be binarized with ``dict.txt`` and
    ``label.dict.txt``, and ``SPLIT.csv`` (``text,label``) for the original's programs.

    Args:
        labeller: the task.
        folder: made if it does not exist.
        sizes: sentences of each split.
        seed: another one gives other sentences.
        lengths: fewest and most words of a sentence.
        drop_unparsable: leave out sentences whose span no symbol fits.

    Raises:
        ConfigError: for less than no sentences.
        DataError: if there are such sentences, or hardly any of these lengths, or the folder holds
            other texts.
    """
    if min(sizes.values()) < 0:
        raise ConfigError(f"give the sentences of each file, 0 or more, not {sizes}")
    dictionary = dictionary_of(labeller.source.terminals)
    folder = Path(folder)
    texts = [f"{split}.input0" for split in sizes]
    refuse_other_texts(folder, labeller.source.terminals, *texts)
    drawn: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    counts_K = np.zeros(len(labeller.names), dtype=np.int64)
    for split, size in sizes.items():
        sentences, label_S = _sentences(labeller, seed, split, size, lengths)
        if (label_S < 0).any() and not drop_unparsable:
            raise DataError(
                f"{split}: {int((label_S < 0).sum())} of {size} sentences have a span that no "
                "symbol fits; choose another span or leave them out with --drop-unparsable"
            )
        counts_K += np.bincount(label_S[label_S >= 0], minlength=len(counts_K))
        drawn[split] = sentences, label_S
    # made as late as this, so that a failure leaves nothing
    make_folder(folder, labeller.source.terminals, *texts)
    for split, parts in drawn.items():
        _write(labeller, folder, split, *parts)
    dictionary.save(folder / "dict.txt")
    names = Dictionary()
    for name in labeller.names:
        names.add_symbol(name)
    names.save(folder / "label.dict.txt")
    written = {split: int((label_S >= 0).sum()) for split, (_, label_S) in drawn.items()}
    total = sum(written.values())
    last = next((parts for parts in reversed(drawn.values()) if len(parts[1])), None)
    kept = [words for words, label in zip(*last, strict=True) if label >= 0] if last else []
    return Labelled(
        sizes=written,
        majority=float(counts_K.max() / max(total, 1)),
        ceiling=labeller.ceiling(kept[:_PARSED]),
        used=int((counts_K > 0).sum()),
        dropped=sum(sizes.values()) - total,
    )


def _sentences(
    labeller: Labeller, seed: int, split: str, size: int, lengths: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return sentences within the lengths, by blocks as in ``sample``, and their labels."""
    kept: list[np.ndarray] = []
    gold: list[int] = []
    block = drawn = 0
    while len(kept) < size:
        rng = philox(seed, f"pcfg/downstream/{split}", block)
        sentences, label_B = labeller.draw(rng, BLOCK, lengths[1])
        whole = sentences.split()
        fits = [place for place, words in enumerate(whole) if len(words) >= lengths[0]]
        kept += [whole[place] for place in fits]
        gold += label_B[fits].tolist()
        block, drawn = block + 1, drawn + BLOCK
        if drawn > 1000 * (size + len(kept)):
            raise DataError(f"hardly any sentence has {lengths[0]} to {lengths[1]} words")
    kept = kept[:size]
    if labeller.how == "gold":
        return kept, np.array(gold[:size], dtype=np.int64)
    return kept, labeller.labels(kept)


def _write(
    labeller: Labeller, folder: Path, split: str, sentences: list[np.ndarray], label_S: np.ndarray
) -> None:
    """Write the three files of a split."""
    terminals = labeller.source.terminals
    with (
        atomic_write(folder / f"{split}.input0", "w", newline="\n") as text,
        atomic_write(folder / f"{split}.label", "w", newline="\n") as label,
        atomic_write(folder / f"{split}.csv", "w", newline="\n") as csv,
    ):
        csv.write("text,label\n")
        for words, number in zip(sentences, label_S.tolist(), strict=True):
            if number >= 0:
                line = " ".join(terminals[word] for word in words)
                quoted = '"' + line.replace('"', '""') + '"' if {",", '"'} & {*line} else line
                text.write(f"{line}\n")
                label.write(f"{labeller.names[number]}\n")
                csv.write(f"{quoted},{labeller.csv_numbers[number]}\n")
