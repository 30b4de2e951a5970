"""Corpora drawn from a source, in text files, the same for any number of processes.

Sentences come in blocks of fixed size; a block is a function of (seed, file, number) alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.files.io import PathLike, atomic_write
from fairseq.files.text_blocks import map_tasks, progress
from fairseq.pcfg.draws import Sentences
from fairseq.pcfg.source import Drawing, Source
from fairseq.rng import philox

BLOCK = 1 << 14
"""Sentences of a block."""

_MOST_DRAWS = 1000  # per sentence kept
_LONGEST_LINE = 1 << 16  # bytes that are looked at: enough to see whose text it is


def draw_exactly(
    source: Drawing, rng: np.random.Generator, count: int, longest: int
) -> tuple[Sentences, int]:
    """Return ``count`` sentences of at most ``longest`` words, and how many were drawn for them.

    Raises:
        DataError: if hardly any sentence is that short.
    """
    parts: list[Sentences] = []
    kept = drawn = 0
    while kept < count:
        # a round that kept next to nothing must not ask for millions in the next
        share = max(kept / drawn, 1 / 64) if drawn else 1.0
        size = math.ceil((count - kept) / share)
        parts.append(source.draw(rng, size, longest))
        kept, drawn = kept + len(parts[-1].offset_B1) - 1, drawn + size
        if drawn > _MOST_DRAWS * (count + kept):
            raise DataError(
                f"of {drawn:,} sentences {kept:,} have {longest} words at most; raise --max-len"
            )
    return Sentences.join(parts).take(count), drawn


@dataclass(frozen=True)
class BlockWriter:
    """Makes the text of a block; picklable where its source is.

    Attributes:
        source: where sentences come from.
        seed: of all files.
        longest: most words of a sentence.
        blank_lines: whether an empty line follows each sentence.
    """

    source: Source
    seed: int
    longest: int
    blank_lines: bool = False

    def __call__(self, task: tuple[str, int, int]) -> tuple[bytes, np.ndarray, int]:
        """Return text, word counts int64 (T,), and the number of sentences drawn.

        Args:
            task: name of the file, number of the block, sentences.
        """
        purpose, number, count = task
        rng = philox(self.seed, f"pcfg/sample/{purpose}", number)
        sentences, drawn = draw_exactly(self.source, rng, count, self.longest)
        return (
            self.text(sentences),
            np.bincount(sentences.words_N, minlength=len(self.source.terminals)),
            drawn,
        )

    def text(self, sentences: Sentences) -> bytes:
        """Return one sentence a line."""
        end = "\n\n" if self.blank_lines else "\n"
        terminals = self.source.terminals
        table = [f"{word} ".encode() for word in terminals]
        table += [f"{word}{end}".encode() for word in terminals]
        code_N = sentences.words_N.copy()
        # last words take the second half of the table, where a line ends
        code_N[sentences.offset_B1[1:] - 1] += len(terminals)
        return b"".join(map(table.__getitem__, code_N.tolist()))


@dataclass(frozen=True)
class Sampled:
    """What was written: sentences and words of all files, and the share of draws that was kept."""

    files: dict[str, int]
    words: int
    kept: float


def write_samples(
    source: Source,
    folder: PathLike,
    sizes: dict[str, int],
    seed: int = 1,
    longest: int = 32,
    workers: int = 1,
    blank_lines: bool = False,
) -> Sampled:
    """Write ``NAME.txt`` for every size, and ``dict.txt`` with the words of ``train*.txt``.

    Args:
        source: where sentences come from.
        folder: made if it does not exist.
        sizes: sentences of each file; the name is part of the randomness.
        seed: another one gives other sentences.
        longest: most words of a sentence; longer ones are drawn again.
        workers: processes; they do not change a byte.
        blank_lines: write an empty line after each sentence, for programs that pack documents.

    Raises:
        ConfigError: if there is nothing to write.
        DataError: if hardly any sentence is short enough, or the folder holds other texts.
    """
    if not sizes or min(sizes.values()) < 0 or longest < 1:
        raise ConfigError("give the sentences of each file, 0 or more, and --max-len of at least 1")
    dictionary_of(source.terminals)  # refuses words before anything is written
    make_folder(folder, source.terminals, *(f"{name}.txt" for name in sizes))
    writer = BlockWriter(source, seed, longest, blank_lines)
    counts_T = np.zeros(len(source.terminals), dtype=np.int64)
    words = drawn = before = 0
    with progress("sampling", sum(sizes.values()), "sentences") as show:
        for name, size in sizes.items():
            with atomic_write(Path(folder) / f"{name}.txt") as handle:
                tasks = list(_blocks(name, size))
                # a process without a block would be started for nothing
                blocks = map_tasks(writer, tasks, min(workers, len(tasks)), "sampling")
                for number, (text, block_T, used) in enumerate(blocks, 1):
                    # blocks come back in their order, whatever process made them
                    handle.write(text)
                    words, drawn = words + int(block_T.sum()), drawn + used
                    counts_T += block_T if name.startswith("train") else 0
                    show(before + min(number * BLOCK, size))
            before += size
    dictionary_of(source.terminals, counts_T).save(Path(folder) / "dict.txt")
    return Sampled(dict(sizes), words, sum(sizes.values()) / max(drawn, 1))


def _blocks(name: str, size: int) -> Iterator[tuple[str, int, int]]:
    for number, first in enumerate(range(0, size, BLOCK)):
        yield name, number, min(BLOCK, size - first)


def make_folder(folder: PathLike, terminals: tuple[str, ...], *names: str) -> None:
    """Make a folder for sentences of these words; what it has of an earlier run is replaced.

    Raises:
        DataError: see :func:`refuse_other_texts`.
    """
    refuse_other_texts(folder, terminals, *names)
    Path(folder).mkdir(parents=True, exist_ok=True)


def refuse_other_texts(folder: PathLike, terminals: tuple[str, ...], *names: str) -> None:
    """Refuse a folder whose files would be replaced by something else.

    Raises:
        DataError: if ``dict.txt``, or the first line of a text, holds a word of something else.
    """
    known = {word.encode() for word in terminals}
    for path in (Path(folder) / name for name in ("dict.txt", *names)):
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            words = file.readline(_LONGEST_LINE).split()
            if path.name == "dict.txt":  # lines of a word and its count
                words = [*words[:1], *(word for line in file for word in line.split()[:1])]
        if other := next((word for word in words if word not in known), None):
            raise DataError(
                f"{path} is no text of this source: it holds '{other.decode(errors='replace')}', "
                "so it is not replaced; choose another folder, or remove it yourself"
            )


def dictionary_of(terminals: tuple[str, ...], counts_T: np.ndarray | None = None) -> Dictionary:
    """Return a dictionary of all words in their order, with their counts.

    Raises:
        DataError: if a word has the name of a special symbol.
    """
    dictionary = Dictionary()
    clash = Counter(terminals).keys() & {*dictionary.symbols, dictionary.mask_word}
    if clash:
        raise DataError(f"the word {min(clash)} means something else in a dictionary; rename it")
    for place, word in enumerate(terminals):
        dictionary.add_symbol(word, 1 if counts_T is None else int(counts_T[place]))
    return dictionary
