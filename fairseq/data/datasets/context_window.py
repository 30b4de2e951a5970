"""``LMContextWindowDataset``: scores every token with a minimum of context before it.

Shape suffixes: B items, T tokens of the longest item with its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.wrappers import BaseWrapperDataset


class LMContextWindowDataset(BaseWrapperDataset):
    """Puts the last tokens of the items before it in front of every item of a batch.

    Targets of these tokens are padding. The context is read from the dataset, so that it is the
    same whatever the order of the items, the batches, the workers and the shards.
    """

    def __init__(
        self, dataset: FairseqDataset, tokens_per_sample: int, context_window: int, pad_idx: int
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: a ``MonolingualDataset`` with at most one target.
            tokens_per_sample: most tokens of an item; a longer one gets less context.
            context_window: tokens to put in front of each item, where there are so many.
            pad_idx: padding id.
        """
        assert context_window > 0, context_window
        super().__init__(dataset)
        self.tokens_per_sample = tokens_per_sample
        self.context_window = context_window
        self.pad_idx = pad_idx

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Merge items into a batch.

        Returns:
            The wrapped dataset's batch, with ``src_tokens``, ``src_lengths`` and ``target``
            including the context, and ``start_indices``, a list of B ints: the place of each
            item's own first token.
        """
        sample = self.dataset.collater(samples)
        if not sample:
            return sample
        tokens, targets = sample["net_input"]["src_tokens"], sample["target"]
        rows, length = tokens.shape
        tokens_BT = tokens.new_full((rows, length + self.context_window), self.pad_idx)
        targets_BT = torch.full_like(tokens_BT, self.pad_idx)
        starts = [0] * len(samples)
        for row, item in enumerate(samples):
            context = self._context(item)
            start = starts[row] = len(context)
            tokens_BT[row, :start] = context
            tokens_BT[row, start : start + length] = tokens[row]
            targets_BT[row, start : start + length] = targets[row]
        net_input = dict(sample["net_input"], src_tokens=tokens_BT)
        # the context counts as input, though not as target
        net_input["src_lengths"] = net_input["src_lengths"] + torch.tensor(starts)
        batch = dict(
            sample,
            net_input=net_input,
            target=targets_BT,
            start_indices=starts,
            predicted_positions=targets_BT.flatten().ne(self.pad_idx).nonzero()[:, 0],
        )
        return self.dataset.with_documents(batch)

    def _context(self, item: dict[str, Any]) -> torch.Tensor:
        """Return the last tokens before an item that fit in front of it."""
        # an item longer than the others leaves less room in front of it
        room = self.tokens_per_sample + self.context_window - len(item["source"])
        wanted = max(0, min(room, self.context_window))
        # an empty part, so that the first item has something to join
        index, tokens, parts = int(item["id"]), 0, [item["source"][:0]]
        # items may be shorter than the window: as many as it takes are read
        while index > 0 and tokens < wanted:
            index -= 1
            source_T = self.dataset[index]["source"]
            parts.insert(0, source_T)
            tokens += len(source_T)
        joined = torch.cat(parts)
        return joined[len(joined) - min(tokens, wanted) :]

    def ordered_indices(self) -> np.ndarray:
        """Return all indices in order: evaluation never shuffles."""
        return np.arange(len(self.dataset), dtype=np.int64)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Do nothing: the context needs items beside those of the batch."""
