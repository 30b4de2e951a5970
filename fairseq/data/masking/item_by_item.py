"""``MaskTokensDataset``: masked items one by one, under the name and signature plug-ins know.

Training itself masks whole batches (``masked_lm_dataset``); both give the same tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.wrappers import BaseWrapperDataset
from fairseq.data.masking import MaskSpec, mask_tokens
from fairseq.data.masking.mask import check_data_rng, mask_item
from fairseq.data.storage.dictionary import Dictionary

__all__ = ["MaskSpec", "MaskTokensDataset", "check_data_rng", "mask_item", "mask_tokens"]


class MaskTokensDataset(BaseWrapperDataset):
    """The masked items of a dataset, or their targets.

    Use :meth:`apply_mask` to get both. Items are int64 tensors (T,).
    """

    @classmethod
    def apply_mask(
        cls, dataset: FairseqDataset, *args: Any, **kwargs: Any
    ) -> tuple[MaskTokensDataset, MaskTokensDataset]:
        """Return the dataset of masked sources and that of targets (pad where none is predicted).

        Args:
            dataset: the items to mask, int tensors or arrays (T,).
            *args: as the constructor's, from ``vocab`` on.
            **kwargs: as the constructor's, without ``return_masked_tokens``.
        """
        source = cls(dataset, *args, **{**kwargs, "return_masked_tokens": False})
        target = cls(dataset, *args, **{**kwargs, "return_masked_tokens": True})
        return source, target

    def __init__(
        self,
        dataset: FairseqDataset,
        vocab: Dictionary,
        pad_idx: int,
        mask_idx: int,
        return_masked_tokens: bool = False,
        seed: int = 1,
        mask_prob: float = 0.15,
        leave_unmasked_prob: float = 0.1,
        random_token_prob: float = 0.1,
        freq_weighted_replacement: bool = False,
        mask_whole_words: torch.Tensor | np.ndarray | None = None,
        mask_multiple_length: int = 1,
        mask_stdev: float = 0.0,
        skip_masking: bool = False,
        *,
        data_rng: str = "philox",
    ) -> None:
        """Mask ``dataset``.

        Args:
            dataset: the items to mask, int tensors or arrays (T,).
            vocab: their dictionary.
            pad_idx: id that fills the targets where nothing is predicted.
            mask_idx: id shown for masked tokens.
            return_masked_tokens: return targets instead of sources.
            seed: the run's seed.
            mask_prob: share of the tokens (or words) to choose.
            leave_unmasked_prob: share of the chosen tokens shown unchanged.
            random_token_prob: share of the chosen tokens shown as a random token.
            freq_weighted_replacement: draw random tokens by their counts in the dictionary.
            mask_whole_words: (V,), nonzero for ids that begin a word, to mask whole words.
            mask_multiple_length: mean number of consecutive units masked together.
            mask_stdev: standard deviation of that number.
            skip_masking: return the items as they are.
            data_rng: one of ``DATA_RNGS``.

        Raises:
            ConfigError: if an argument is out of range.
        """
        super().__init__(dataset)
        self.return_masked_tokens = return_masked_tokens
        self.seed = seed
        self.epoch = 1
        self.skip_masking = skip_masking
        self.data_rng = check_data_rng(data_rng)
        self.spec = MaskSpec.from_dictionary(
            vocab,
            mask=mask_idx,
            pad=pad_idx,
            freq_weighted_replacement=freq_weighted_replacement,
            word_begin_V=None if mask_whole_words is None else np.asarray(mask_whole_words),
            mask_prob=mask_prob,
            leave_unmasked_prob=leave_unmasked_prob,
            random_token_prob=random_token_prob,
            mask_multiple_length=mask_multiple_length,
            mask_stdev=mask_stdev,
        )

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the masked item, or its target: int64 (T,)."""
        tokens_T = np.asarray(self.dataset[index]).astype(np.int64)
        if self.skip_masking:
            return torch.from_numpy(tokens_T)
        source_T, target_T = mask_item(
            tokens_T,
            index,
            spec=self.spec,
            seed=self.seed,
            epoch=self.epoch,
            data_rng=self.data_rng,
        )
        return torch.from_numpy(target_T if self.return_masked_tokens else source_T)
