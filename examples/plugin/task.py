"""A task in one file: ``--task plain_text`` reads text lines, without fairseq-preprocess."""

import numpy as np

from fairseq.data import MaskedLMDataset
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask


@register_task("plain_text", dataclass=MaskedLMConfig)
class PlainText(MaskedLMTask):  # loads DATA/dict.txt and brings the masking
    def load_dataset(self, split, **unused):  # DATA/train.txt, DATA/valid.txt: a line, an item
        encode, longest = self.dictionary.encode_line, self.cfg.tokens_per_sample
        with open(f"{self.data_folder(split)}/{split}.txt", encoding="utf-8") as text:
            lines = [encode(line, add_if_not_exist=False)[:longest] for line in text]
        sizes = np.array([len(line) for line in lines])
        pad, seed = self.dictionary.pad(), self.cfg.seed
        self.datasets[split] = MaskedLMDataset(
            lines, self.mask_spec(), sizes=sizes, pad=pad, seed=seed
        )
