"""``TokenBlockDataset``: a corpus of sentences, read as blocks of tokens.

Shape suffixes: T tokens of a block, M sentences, K blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fairseq.data.datasets.base import FairseqDataset, Items
from fairseq.data.datasets.block_boundaries import block_slices, block_to_dataset_index
from fairseq.data.datasets.wrappers import OwnSizes
from fairseq.errors import DataError, UnsupportedError


class TokenBlockDataset(OwnSizes, FairseqDataset):
    """Cuts the stream of all tokens of a dataset into blocks.

    If the dataset offers its whole stream as one array ``flat``, a block is one slice of it;
    otherwise its sentences are read and joined.
    """

    def __init__(
        self,
        dataset: Items,
        sizes: np.ndarray | Sequence[int] | torch.Tensor,
        block_size: int | None,
        pad: int,
        eos: int,
        break_mode: str | None = None,
        include_targets: bool = False,
        document_sep_len: int = 1,
        use_plasma_view: bool = False,
        split_path: str | None = None,
        plasma_path: str | None = None,
    ) -> None:
        """Cut ``dataset`` into blocks.

        Args:
            dataset: sentences, int tensors (T,).
            sizes: int (len(dataset),), their lengths.
            block_size: most tokens of a block, where the break mode heeds it.
            pad: padding id, for ``include_targets``.
            eos: end-of-sentence id, for ``include_targets``.
            break_mode: see :func:`fairseq.data.datasets.block_boundaries.block_slices`.
            include_targets: items are triples (source, block, past): the block shifted right by
                one and by two tokens.
            document_sep_len: see :func:`fairseq.data.datasets.block_boundaries.block_slices`.
            use_plasma_view: refused.
            split_path: ignored.
            plasma_path: ignored.

        Raises:
            DataError: if the sizes do not fit the dataset.
            ConfigError: if break mode and block size do not make sense.
            UnsupportedError: if ``use_plasma_view`` is set.
        """
        super().__init__()
        if use_plasma_view:
            raise UnsupportedError(
                "--use-plasma-view is not supported: the index is small and mapped files are "
                "shared between processes; drop the flag"
            )
        sizes_M = np.asarray(sizes, dtype=np.int64)
        if len(sizes_M) != len(dataset) or not len(sizes_M):
            raise DataError(f"{len(sizes_M)} sizes for a dataset of {len(dataset)} sentences")
        self.dataset: Any = dataset  # old formats and sequences lack tokens() and prefetch()
        self.pad = pad
        self.eos = eos
        self.include_targets = include_targets
        self._break_mode = break_mode
        self._sentence_sizes = sizes
        self._slices = block_slices(sizes_M, break_mode, block_size, document_sep_len)
        self._sizes = self._slices[:, 1] - self._slices[:, 0]
        self._is_flat = _is_flat(dataset, int(sizes_M.sum()))
        self._places = None
        if include_targets or not self._is_flat:
            self._places = self.block_to_dataset_index

    @property
    def slice_indices(self) -> np.ndarray:
        """Int64 (K, 2): first token and token after the last of each block, in the stream."""
        return self._slices

    @property
    def block_to_dataset_index(self) -> np.ndarray:
        """Int64 (K, 3): first sentence, offset in it of the first token, last sentence."""
        if self._places is not None:
            return self._places
        sizes_M = np.asarray(self._sentence_sizes, dtype=np.int64)
        return block_to_dataset_index(self._slices, sizes_M, self._break_mode)

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the block (T,), or (source, block, past), each (T,), if targets are included."""
        if not self.include_targets:
            return self._tokens(index, 0)
        assert self._places is not None
        lookback = min(int(self._places[index, 1]), 2)
        tokens = self._tokens(index, lookback)
        # before a text stands an end of sentence, and before that nothing
        history = tokens.new_tensor([self.pad, self.eos][lookback:])
        shifted = torch.cat([history, tokens])
        return shifted[1:-1], shifted[2:], shifted[:-2]

    def _tokens(self, index: int, lookback: int) -> torch.Tensor:
        """Return the block and the ``lookback`` tokens of its first sentence before it."""
        begin, end = self._slices[index].tolist()
        if self._is_flat:
            return torch.from_numpy(self.dataset.tokens(begin - lookback, end).astype(np.int64))
        assert self._places is not None
        first, offset, last = self._places[index].tolist()
        sentences = [self.dataset[i] for i in range(first, last + 1)]
        joined = torch.cat(sentences) if len(sentences) > 1 else sentences[0]
        return joined[offset - lookback : offset + end - begin]

    def attr(self, attr: str, index: int) -> Any:
        return getattr(self.dataset, "attr", super().attr)(attr, index)

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Load the sentences of these blocks ahead of time."""
        places = self.block_to_dataset_index[np.asarray(indices)]
        n_sentences = len(self._sentence_sizes)
        # +1 at the first sentence of a block, -1 behind its last: the sum tells who is needed
        begins = np.bincount(places[:, 0], minlength=n_sentences)
        ends = np.bincount(places[:, 2] + 1, minlength=n_sentences)[:n_sentences]
        self.dataset.prefetch(np.flatnonzero(np.cumsum(begins - ends)))


def _is_flat(dataset: Items, total: int) -> bool:
    """Tell whether ``dataset.flat`` is the stream of its ``total`` tokens.

    Raises:
        DataError: if it has another length.
    """
    flat = getattr(dataset, "flat", None)
    # The old formats may store every token plus one, and correct that item by item.
    if not isinstance(flat, np.ndarray) or getattr(dataset, "fix_lua_indexing", False):
        return False
    if not hasattr(dataset, "tokens"):  # which looks whether the file is still whole
        return False
    if len(flat) != total:
        raise DataError(f"the sizes given add up to {total} tokens, the dataset has {len(flat)}")
    return True
