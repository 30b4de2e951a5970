"""Masked language modelling: blocks of text with some tokens hidden, to be predicted.

text lines -> token blocks -> ``<s>`` in front -> masked batches. Source: Devlin et al. 2019,
section 3.1; masks drawn anew in every epoch: Liu et al. 2019, section 4.1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fairseq.config.schema import II, SHARE, option
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.documents import number_documents
from fairseq.data.datasets.nested_dictionary import NestedDictionaryDataset
from fairseq.data.datasets.token_blocks import TokenBlockDataset
from fairseq.data.datasets.wrappers import (
    IdDataset,
    NumelDataset,
    PrependTokenDataset,
    RightPadDataset,
    SortDataset,
)
from fairseq.data.line_dataset import LineDataset
from fairseq.data.masking import word_begins
from fairseq.data.masking.dataset import MaskedLMDataset
from fairseq.data.masking.item_by_item import MaskSpec
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.load import load_lines
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.protocols import Model, Settings
from fairseq.tasks import register_task
from fairseq.tasks.blocks import BlocksConfig, shortened
from fairseq.tasks.one_dictionary import MaskTask

logger = logging.getLogger(__name__)


@dataclass
class MaskedLMConfig(BlocksConfig):
    """Settings of masked language modelling."""

    tokens_per_sample: int = option(1024, "longest block, <s> included", minimum=1)
    mask_prob: float = option(0.15, "share of the tokens that are predicted", **SHARE)
    leave_unmasked_prob: float = option(0.1, "share of those that are shown as they are", **SHARE)
    random_token_prob: float = option(
        0.1, "share of those that are shown as a random token", **SHARE
    )
    freq_weighted_replacement: bool = option(False, "draw random tokens by their frequency")
    mask_whole_words: bool = option(False, "mask all pieces of a word or none; needs --bpe")
    mask_multiple_length: int = option(1, "mask runs of N tokens", minimum=1)
    mask_stdev: float = option(0.0, "standard deviation of the length of such runs", minimum=0)
    mask_count: int = option(
        0,
        "predict exactly N tokens of each sample, not a share (0: --mask-prob)",
        new=True,
        minimum=0,
    )
    static_masks: int = option(
        0,
        "draw the masks of the training data N times, then repeat them: epoch e has those "
        "of e modulo N (0: other masks in every epoch)",
        new=True,
        minimum=0,
    )
    mask_smoothing: float = option(
        0.0,
        "choose rarer tokens more often: by their count to the power of minus this",
        new=True,
        minimum=0,
    )
    include_target_tokens: bool = option(False, "also give the unmasked tokens to the model")
    include_index: bool = option(True, "also give the index of each sample to the model")
    skip_masking: bool = option(False, "hide nothing and predict every token")
    omit_mask: bool = option(
        False, "keep <mask> out of the dictionary; set by --mask-embedding zero"
    )
    dataset_impl: str | None = option(II("dataset.dataset_impl"), new=True)


@register_task("masked_lm", dataclass=MaskedLMConfig)
class MaskedLMTask(MaskTask):
    """Predict hidden tokens.

    Args:
        cfg: the settings.
        dictionary: the dictionary of the data; that of the data folder if None.

    Attributes:
        bpe: the encoder the data were made with; needed to mask whole words.
    """

    cfg: MaskedLMConfig
    targets = ("self",)

    def __init__(self, cfg: MaskedLMConfig, dictionary: Dictionary | None = None) -> None:
        super().__init__(cfg)
        if cfg.include_target_tokens:
            raise UnsupportedError(
                "--include-target-tokens feeds models that exist in the original only (data2vec)"
            )
        if dictionary is None:
            dictionary = self.dictionary_of_data()
        self.use_dictionary(dictionary)
        self.bpe: Any = None

    @classmethod
    def setup_task(cls, cfg: MaskedLMConfig, **kwargs: Any) -> MaskedLMTask:
        """Load ``dict.txt`` from the (first) data folder and set up the task."""
        task = cls(cfg, **kwargs)
        logger.info("dictionary: %s types", f"{len(task.dictionary):,}")
        return task

    def load_dataset(
        self,
        split: str,
        combine: bool = False,
        task_cfg: Settings | None = None,
        epoch: int = 1,
        **kwargs: Any,
    ) -> None:
        blocks = self.unmasked_blocks(split, epoch, combine)
        cfg = self.cfg
        self.datasets[split] = MaskedLMDataset(
            blocks,
            self._spec(),
            sizes=blocks.sizes,
            pad=self.dictionary.pad(),
            seed=cfg.seed,
            data_rng=self.data_rng,
            include_index=cfg.include_index,
            documents_end=self.dictionary.eos() if cfg.document_mask else None,
            fixed_draws=cfg.static_masks if split == self.train_split else 0,
        )

    def _spec(self) -> MaskSpec | None:
        """Return what is masked, None for nothing.

        Raises:
            ConfigError: if that makes no sense.
        """
        cfg = self.cfg
        if cfg.mask_count and self.data_rng != "philox":
            raise ConfigError(f"--mask-count exists with --data-rng philox, not {self.data_rng}")
        if cfg.static_masks < 0:
            raise ConfigError(f"--static-masks must not be negative, not {cfg.static_masks}")
        nothing = cfg.skip_masking or (cfg.mask_prob == 0 and not cfg.mask_count)
        return None if nothing else self.mask_spec()

    def unmasked_blocks(self, split: str, epoch: int = 1, combine: bool = False) -> FairseqDataset:
        """Return the blocks of a split, unmasked, with ``<s>`` in front, and their ``sizes``."""
        cfg, dictionary = self.cfg, self.dictionary
        folder = self.data_folder(split, epoch)
        lines = load_lines(
            folder,
            split,
            dictionary,
            # <mask> was added here: no file of data may hold its id
            size=len(dictionary) - self._adds_mask,
            dataset_impl=cfg.dataset_impl,
            combine=combine,
        )
        if cfg.sample_break_mode == "line":
            return LineDataset(lines, lines.sizes, dictionary, cfg.tokens_per_sample)
        # one token of the block is <s>; the original truncates one token too late
        exact = self.data_rng == "philox"
        longest = cfg.tokens_per_sample - (1 if exact else 0)
        lines = shortened(self, lines, split, longest)
        blocks = TokenBlockDataset(
            lines,
            lines.sizes,
            cfg.tokens_per_sample - 1,
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            break_mode=cfg.sample_break_mode,
        )
        logger.info("loaded %s blocks from: %s/%s", f"{len(blocks):,}", folder, split)
        return PrependTokenDataset(blocks, dictionary.bos())

    # its name in the original
    _load_dataset_split = unmasked_blocks

    def mask_spec(self) -> MaskSpec:
        """Return what is masked and how."""
        cfg = self.cfg
        return MaskSpec.from_dictionary(
            self.dictionary,
            mask=self.mask_idx,
            freq_weighted_replacement=cfg.freq_weighted_replacement,
            smoothing=self._smoothing(),
            word_begin_V=self._word_begins() if cfg.mask_whole_words else None,
            mask_prob=cfg.mask_prob,
            mask_count=cfg.mask_count,
            leave_unmasked_prob=cfg.leave_unmasked_prob,
            random_token_prob=cfg.random_token_prob,
            mask_multiple_length=cfg.mask_multiple_length,
            mask_stdev=cfg.mask_stdev,
        )

    def _smoothing(self) -> float:
        """Return the checked ``--mask-smoothing``."""
        cfg = self.cfg
        if cfg.mask_smoothing < 0:
            raise ConfigError(f"--mask-smoothing must not be negative, not {cfg.mask_smoothing}")
        if cfg.mask_smoothing and (self.data_rng != "philox" or cfg.mask_whole_words):
            raise ConfigError(
                "--mask-smoothing weighs single tokens, as the original cannot: drop "
                "--mask-whole-words and --data-rng fairseq-*"
            )
        return cfg.mask_smoothing

    def _word_begins(self) -> np.ndarray:
        """Return for every id whether it begins a word."""
        if self.bpe is None or not hasattr(self.bpe, "is_beginning_of_word"):
            raise ConfigError("--mask-whole-words needs --bpe, with the encoder of the data")
        return word_begins(self.dictionary, self.bpe)

    def build_dataset_for_inference(
        self, src_tokens: Sequence[Any], src_lengths: Sequence[Any], sort: bool = True
    ) -> Any:
        """Return a dataset of given token sequences, unmasked, with ``<s>`` in front.

        Args:
            src_tokens: dataset or list of int64 tensors (T,).
            src_lengths: their lengths.
            sort: order them by length.
        """
        pad = self.dictionary.pad()
        sizes = np.asarray(src_lengths)
        blocks = TokenBlockDataset(
            src_tokens,
            sizes,
            self.cfg.tokens_per_sample - 1,
            pad=pad,
            eos=self.dictionary.eos(),
            break_mode="eos",
        )
        source = PrependTokenDataset(blocks, self.dictionary.bos())
        net_input = {
            "src_tokens": RightPadDataset(source, pad),
            "src_lengths": NumelDataset(source),
        }
        dataset = NestedDictionaryDataset(
            {"id": IdDataset(), "net_input": net_input}, sizes=source.sizes
        )
        return SortDataset(dataset, sizes) if sort else dataset

    def documents_of(self, tokens_BT: Tensor) -> Tensor | None:
        if not self.cfg.document_mask:
            return None
        dictionary = self.dictionary
        return number_documents(tokens_BT, eos=dictionary.eos(), pad=dictionary.pad())

    def begin_epoch(self, epoch: int, model: Model) -> None:
        model.set_epoch(epoch)

    def max_positions(self) -> int:
        return self.cfg.tokens_per_sample
