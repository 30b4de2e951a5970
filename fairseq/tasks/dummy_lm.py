"""Language modelling on random tokens: no data folder is read, so only the training is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.data.datasets.causal_lm import MonolingualDataset
from fairseq.data.datasets.token_blocks import TokenBlockDataset
from fairseq.data.datasets.wrappers import PrependTokenDataset
from fairseq.data.masking.dataset import MaskedLMDataset
from fairseq.data.masking.item_by_item import MaskSpec
from fairseq.data.storage.dictionary import Dictionary
from fairseq.protocols import Model
from fairseq.rng import philox
from fairseq.tasks import register_task
from fairseq.tasks.one_dictionary import OneDictionaryTask


@dataclass
class DummyMaskedLMConfig(FairseqDataclass):
    """Settings of masked language modelling on random tokens."""

    dict_size: int = option(49996, "words of the dictionary", minimum=1)
    dataset_size: int = option(100000, "blocks of an epoch", minimum=1)
    tokens_per_sample: int = option(512, "length of every block", minimum=1)
    max_target_positions: int | None = II("task.tokens_per_sample")
    seed: int = II("common.seed")
    data_rng: str = option(II("dataset.data_rng"), new=True)


@dataclass
class DummyLMConfig(DummyMaskedLMConfig):
    """Settings of causal language modelling on random tokens."""

    add_bos_token: bool = option(False, "begin blocks with <s>")


class RandomLines:
    """Lines of random words that end with end-of-sentence; a line is always the same.

    Args:
        dictionary: of the words.
        words: how many of them there are, from the first ordinary one.
        count: number of lines.
        length: tokens of each.
        seed: other lines for another seed.
        split: other lines for another split.
    """

    def __init__(
        self, dictionary: Dictionary, words: int, count: int, length: int, seed: int, split: str
    ) -> None:
        self.dictionary, self.words, self.length = dictionary, words, length
        self.seed, self.purpose = seed, f"dummy/{split}"
        self.sizes = np.full(count, length)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return a line, int64 (T,)."""
        tokens_T = philox(self.seed, self.purpose, int(index)).integers(
            self.words, size=self.length
        )
        tokens_T += self.dictionary.nspecial
        tokens_T[-1] = self.dictionary.eos()
        return torch.from_numpy(tokens_T)


class DummyTask(OneDictionaryTask):
    """Base of the tasks of this module.

    Attributes:
        dictionary: ``word0``, ``word1`` and so on.
    """

    def __init__(self, cfg: DummyMaskedLMConfig) -> None:
        super().__init__(cfg)
        self.dictionary = Dictionary()
        for number in range(cfg.dict_size):
            self.dictionary.add_symbol(f"word{number}")
        self.dictionary.pad_to_multiple_(8)

    def blocks(self, split: str, length: int, include_targets: bool) -> TokenBlockDataset:
        """Return the lines of a split as blocks of ``length`` tokens."""
        cfg, dictionary = self.cfg, self.dictionary
        lines = RandomLines(dictionary, cfg.dict_size, cfg.dataset_size, length, cfg.seed, split)
        return TokenBlockDataset(
            lines,
            lines.sizes,
            length,
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            break_mode="eos",
            include_targets=include_targets,
        )


@register_task("dummy_lm", dataclass=DummyLMConfig)
class DummyLMTask(DummyTask):
    """Predict the next of random tokens."""

    def load_dataset(self, split: str, combine: bool = False, *args: Any, **kwargs: Any) -> None:
        cfg = self.cfg
        length = cfg.tokens_per_sample - cfg.add_bos_token
        blocks = self.blocks(split, length, include_targets=True)
        self.datasets[split] = MonolingualDataset(
            blocks,
            blocks.sizes,
            self.dictionary,
            self.dictionary,
            add_eos_for_other_targets=False,
            shuffle=True,
            targets=["future"],
            add_bos_token=cfg.add_bos_token,
        )


@register_task("dummy_masked_lm", dataclass=DummyMaskedLMConfig)
class DummyMaskedLMTask(DummyTask):
    """Predict random tokens that are hidden.

    Attributes:
        mask_idx: id of ``<mask>``, the last entry of the dictionary.
    """

    targets = ("self",)

    def __init__(self, cfg: DummyMaskedLMConfig) -> None:
        super().__init__(cfg)
        self.mask_idx = self.dictionary.add_symbol(self.dictionary.mask_word)

    def load_dataset(self, split: str, combine: bool = False, *args: Any, **kwargs: Any) -> None:
        cfg, dictionary = self.cfg, self.dictionary
        blocks = PrependTokenDataset(
            self.blocks(split, cfg.tokens_per_sample - 1, include_targets=False), dictionary.bos()
        )
        self.datasets[split] = MaskedLMDataset(
            blocks,
            MaskSpec.from_dictionary(dictionary, mask=self.mask_idx),
            sizes=blocks.sizes,
            pad=dictionary.pad(),
            seed=cfg.seed,
            data_rng=self.data_rng,
        )

    def begin_epoch(self, epoch: int, model: Model) -> None:
        model.set_epoch(epoch)

    def max_positions(self) -> int:
        return self.cfg.tokens_per_sample
