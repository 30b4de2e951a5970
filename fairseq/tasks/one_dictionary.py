"""Tasks whose inputs and targets are ids of one dictionary, perhaps with ``<mask>`` at its end."""

from __future__ import annotations

from fairseq.data.storage.dictionary import Dictionary
from fairseq.tasks.base import FairseqTask


class OneDictionaryTask(FairseqTask):
    """A task with one dictionary.

    Attributes:
        dictionary: of inputs and targets.
    """

    dictionary: Dictionary

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
