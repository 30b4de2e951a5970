"""``MaskedLMDataset``: blocks of tokens to masked batches, masking whole batches at once.

Items are cheap and unmasked; padding and masking happen in ``collater``, in the worker. What an
item becomes depends on (seed, epoch, its index) only, so any batch composition gives the same.

Shape suffixes: B items, T tokens of the longest item, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.documents import number_documents
from fairseq.data.datasets.wrappers import BaseWrapperDataset, OwnSizes
from fairseq.data.masking import MaskSpec, mask_tokens
from fairseq.data.masking.mask import check_data_rng, mask_item
from fairseq.errors import ConfigError
from fairseq.rng import philox


class MaskedLMItem(TypedDict):
    """One unmasked item: its index, and its tokens as an int array (T,)."""

    id: int
    tokens: np.ndarray


class MaskedLMDataset(OwnSizes, BaseWrapperDataset):
    """Masked batches of ``blocks``; see :meth:`collater` for their layout."""

    def __init__(
        self,
        blocks: FairseqDataset,
        spec: MaskSpec | None,
        *,
        sizes: np.ndarray,
        pad: int,
        seed: int,
        data_rng: str = "philox",
        include_index: bool = True,
        shuffle: bool = True,
        documents_end: int | None = None,
        fixed_draws: int = 0,
    ) -> None:
        """Mask ``blocks``.

        Args:
            blocks: dataset of int arrays or tensors (T,), beginning with ``<s>`` if wanted.
            spec: what to mask and how; None to mask nothing and predict every token.
            sizes: int (len(blocks),): tokens of each block.
            pad: padding id.
            seed: the run's seed.
            data_rng: one of ``DATA_RNGS``.
            include_index: put the items' indices into ``net_input`` as ``src_id``.
            shuffle: order blocks of equal size at random rather than by index.
            documents_end: end-of-sentence id, to put the number of each token's document into
                ``net_input`` as ``documents``; None for rows that are one document.
            fixed_draws: draw masks so many times only: epoch e has those of e modulo this number;
                0 for other masks in every epoch.

        Raises:
            ConfigError: if ``data_rng`` is unknown or cannot take this seed.
        """
        super().__init__(blocks)
        assert len(sizes) == len(blocks), (len(sizes), len(blocks))
        if check_data_rng(data_rng) != "philox" and not 0 <= seed < 1 << 32:
            raise ConfigError(f"--data-rng {data_rng} needs a --seed in [0, 2**32), not {seed}")
        self.spec = spec
        self._sizes = sizes
        self.pad = pad
        self.seed = seed
        self.data_rng = data_rng
        self.include_index = include_index
        self.shuffle = shuffle
        self.documents_end = documents_end
        self.fixed_draws = fixed_draws
        self.epoch = 1

    def __len__(self) -> int:
        return len(self._sizes)

    def ordered_indices(self) -> np.ndarray:
        """Return all indices by size, items of equal size in an order fixed by the seed."""
        if not self.shuffle:
            return np.argsort(self._sizes, kind="stable")
        if self.data_rng != "philox":
            permutation = np.random.RandomState(self.seed).permutation(len(self))
            return np.lexsort([permutation, self._sizes])
        # Raw words as sorting keys: stable between numpy versions, unlike ``permutation``.
        words = philox(self.seed, "order").bit_generator.random_raw(len(self))
        return np.lexsort([words, self._sizes])

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> MaskedLMItem:
        """Return one unmasked item."""
        return {"id": int(index), "tokens": np.asarray(self.dataset[index])}

    def collater(self, samples: Sequence[MaskedLMItem]) -> dict[str, Any]:
        """Pad and mask items into one batch.

        Args:
            samples: items of this dataset, in any order.

        Returns:
            An empty dict for no samples, else ``id`` int64 (B,); ``net_input`` with ``src_tokens``
            int64 (B, T) right padded, ``src_lengths`` int64 (B,) and, unless turned off, ``src_id``
            int64 (B,), and if asked for ``documents`` int64 (B, T); ``target`` int64 (B, T), pad
            where nothing is predicted; ``predicted_positions`` int64 (N,), ascending indices into
            the flattened (B, T); ``nsentences`` and ``ntokens``, ints.

        Raises:
            DataError: if tokens do not fit the dictionary.
        """
        if not samples:
            return {}
        indices_B = np.array([sample["id"] for sample in samples], dtype=np.int64)
        lengths_B = np.array([len(sample["tokens"]) for sample in samples], dtype=np.int64)
        tokens_BT = np.full((len(samples), lengths_B.max()), self.pad, dtype=np.int64)
        for row_T, sample in zip(tokens_BT, samples, strict=True):
            row_T[: len(sample["tokens"])] = sample["tokens"]
        documents_BT = self._documents(tokens_BT)  # masking may hide where documents end
        source_BT, target_BT = self._mask(tokens_BT, lengths_B, indices_B)

        ids = torch.from_numpy(indices_B)
        net_input = {
            "src_tokens": torch.from_numpy(source_BT),
            "src_lengths": torch.from_numpy(lengths_B),
        }
        if self.include_index:
            net_input["src_id"] = ids
        if documents_BT is not None:
            net_input["documents"] = documents_BT
        return {
            "id": ids,
            "net_input": net_input,
            "target": torch.from_numpy(target_BT),
            "predicted_positions": torch.from_numpy(np.flatnonzero(target_BT != self.pad)),
            "nsentences": len(samples),
            "ntokens": int(lengths_B.sum()),
        }

    def _documents(self, tokens_BT: np.ndarray) -> torch.Tensor | None:
        if self.documents_end is None:
            return None
        tokens = torch.from_numpy(tokens_BT)
        return number_documents(tokens, eos=self.documents_end, pad=self.pad)

    def _mask(
        self, tokens_BT: np.ndarray, lengths_B: np.ndarray, indices_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return source_BT and target_BT."""
        if self.spec is None:
            return tokens_BT, tokens_BT.copy()
        epoch = self.epoch % self.fixed_draws if self.fixed_draws else self.epoch
        if self.data_rng == "philox":
            return mask_tokens(
                tokens_BT, lengths_B, indices_B, spec=self.spec, seed=self.seed, epoch=epoch
            )
        source_BT, target_BT = tokens_BT, np.full_like(tokens_BT, self.pad)
        rows = zip(lengths_B.tolist(), indices_B.tolist(), strict=True)
        for row, (length, index) in enumerate(rows):
            source_BT[row, :length], target_BT[row, :length] = mask_item(
                tokens_BT[row, :length],
                index,
                spec=self.spec,
                seed=self.seed,
                epoch=epoch,
                data_rng=self.data_rng,
            )
        return source_BT, target_BT
