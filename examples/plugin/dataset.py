"""A dataset in one file: ``--task counting`` trains on sentences that count through the words.

A dataset of tokens needs ``__len__`` and ``__getitem__``; those of ``fairseq.data`` that mask,
shorten or batch go around it, and are told how long its items are. What it gives for a number must
always be the same: data workers and a run that goes on ask again.
"""

import numpy as np
import torch

from fairseq.data import FairseqDataset, MaskedLMDataset
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask


class Counting(FairseqDataset):
    def __init__(self, words, length, items=256):
        super().__init__()
        self.words, self.length, self.items = words, length, items

    def __len__(self):
        return self.items

    def __getitem__(self, index):
        return torch.tensor([self.words[(index + n) % len(self.words)] for n in range(self.length)])


@register_task("counting", dataclass=MaskedLMConfig)
class CountingTask(MaskedLMTask):  # loads DATA/dict.txt; there are no other files
    def load_dataset(self, split, **unused):
        words = range(self.dictionary.nspecial, len(self.dictionary))
        numbers = Counting(words, min(8, self.cfg.tokens_per_sample))
        sizes = np.full(len(numbers), numbers.length)
        more = {"pad": self.dictionary.pad(), "seed": self.cfg.seed}
        self.datasets[split] = MaskedLMDataset(numbers, self.mask_spec(), sizes=sizes, **more)
