"""Tasks whose inputs and targets are ids of one dictionary, perhaps with ``<mask>`` at its end."""

from __future__ import annotations

import itertools
from pathlib import Path

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.dictionary_record import meaningful_symbols
from fairseq.errors import DataError
from fairseq.tasks.base import FairseqTask
from fairseq.utils import split_paths


class OneDictionaryTask(FairseqTask):
    """A task with one dictionary.

    Attributes:
        dictionary: of inputs and targets.
    """

    dictionary: Dictionary

    def dictionary_of_data(self) -> Dictionary:
        """Load ``dict.txt`` of the first data folder, after which all shards are read.

        Raises:
            DataError: if a shard has another one; its ids would mean other words.
        """
        first = Path(self.data_folder("train"), "dict.txt")
        dictionary = self.load_dictionary(str(first))
        content, here = first.read_bytes(), meaningful_symbols(dictionary)
        for folder in split_paths(self.cfg.data)[1:]:
            path = Path(folder, "dict.txt")
            # most are copies, which need not be parsed
            if not path.is_file() or path.read_bytes() == content:
                continue
            there = meaningful_symbols(self.load_dictionary(str(path)))
            pairs = itertools.zip_longest(there, here[: len(there)])
            for index, (word, expected) in enumerate(pairs):
                if word != expected:
                    known = "no word" if expected is None else repr(expected)
                    raise DataError(
                        f"{path}: id {index} is {word!r}, but {known} in {first}, which all shards "
                        f"are read with; binarize this one with it (--srcdict {first})"
                    )
        return dictionary

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary


class MaskTask(OneDictionaryTask):
    """A task whose models know ``<mask>``, as a row of their table or as the zero vector.

    Attributes:
        dictionary: with ``<mask>`` as its last entry, unless that is the zero vector.
        mask_idx: id of ``<mask>``; one past the dictionary where it is the zero vector.
    """

    mask_idx: int

    def use_dictionary(self, dictionary: Dictionary) -> None:
        """Take over a dictionary and settle what stands for ``<mask>``."""
        self.dictionary = dictionary
        zero, word = self.cfg.omit_mask, dictionary.mask_word
        self._adds_mask = not zero and word not in dictionary
        if self._adds_mask:
            dictionary.add_symbol(word)
        # a zero mask lies one past the embedding table
        self.mask_idx = len(dictionary) if zero else dictionary.index(word)

    def fit_dictionary(self, rows: int) -> bool:
        without = (self.dictionary.mask_word,) if self._adds_mask else ()
        # fillers go in front of <mask>, which checkpoints have in their last row
        fitted = self.dictionary.resized(rows - len(without), without)
        if fitted is None:
            return False
        self.use_dictionary(fitted)
        return True
