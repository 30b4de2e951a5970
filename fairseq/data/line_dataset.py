"""Lines as samples, each between its own marks: how published distilled models were fed.

A line becomes ``<s> line </s>``. One that is longer than allowed is cut into pieces of two tokens
less, each of which gets the marks it lacks. Pieces of at most 11 tokens, and those of which half
or more is unknown, are left out.

Source: Sanh et al. 2019 (DistilBERT), published code.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.wrappers import BaseWrapperDataset, OwnSizes
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SHORTEST_LEFT_OUT = 11


class LineDataset(OwnSizes, BaseWrapperDataset):
    """Pieces of lines, int64 (T,), from ``<s>`` to ``</s>``.

    Args:
        dataset: lines, with or without marks at their ends.
        sizes: their lengths.
        dictionary: what the marks and the unknown are.
        longest: most tokens of a piece, marks included; at least 3.

    Raises:
        ConfigError: if pieces could hold nothing but marks.
        DataError: if no piece is left.
    """

    def __init__(
        self, dataset: FairseqDataset, sizes: np.ndarray, dictionary: Dictionary, longest: int
    ) -> None:
        super().__init__(dataset)
        if longest < 3:
            raise ConfigError(f"--sample-break-mode line needs samples of 3 tokens, not {longest}")
        self.bos, self.eos, self.longest = dictionary.bos(), dictionary.eos(), longest
        places, lengths, short, unknown = [], [], 0, 0
        for line in range(len(sizes)):
            marked_T = self._marked(np.asarray(dataset[line]))
            # a piece from the middle of a line gets both marks, for which there must be room
            step = longest - 2 if len(marked_T) > longest else longest
            for start in range(0, len(marked_T), step):
                piece_T = self._marked(marked_T[start : start + step])
                if len(piece_T) <= SHORTEST_LEFT_OUT:
                    short += 1
                elif 2 * np.count_nonzero(piece_T == dictionary.unk()) >= len(piece_T):
                    unknown += 1
                else:
                    places.append((line, start, start + step))
                    lengths.append(len(piece_T))
        logger.info(
            "%s lines make %s pieces of at most %s tokens, %s in all; left out: %s of at most %s "
            "tokens, %s that are mostly unknown",
            f"{len(sizes):,}", f"{len(places):,}", longest, f"{sum(lengths):,}", f"{short:,}",
            SHORTEST_LEFT_OUT, f"{unknown:,}",
        )  # fmt: skip
        if not places:
            raise DataError(
                f"--sample-break-mode line leaves nothing of {len(sizes)} lines: all are short (at "
                f"most {SHORTEST_LEFT_OUT} tokens) or mostly unknown"
            )
        self.places = np.array(places, dtype=np.int64)
        self._sizes = np.array(lengths, dtype=np.int64)

    def _marked(self, tokens_T: np.ndarray) -> np.ndarray:
        """Return the tokens with the marks that they lack at their ends."""
        first = [] if len(tokens_T) and tokens_T[0] == self.bos else [self.bos]
        last = [] if len(tokens_T) and tokens_T[-1] == self.eos else [self.eos]
        return np.concatenate([first, tokens_T, last]).astype(np.int64)

    def __getitem__(self, index: int) -> Any:
        line, start, stop = self.places[index]
        whole_T = self._marked(np.asarray(self.dataset[int(line)]))
        return torch.from_numpy(self._marked(whole_T[start:stop]))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def supports_prefetch(self) -> bool:
        """Return False: lines are read one by one."""
        return False


class ShiftedLineDataset(LineDataset):
    """The same for causal models: triples (all but the last, all but the first, unused)."""

    def __init__(
        self, dataset: FairseqDataset, sizes: np.ndarray, dictionary: Dictionary, longest: int
    ) -> None:
        super().__init__(dataset, sizes, dictionary, longest)
        self._sizes = self._sizes - 1

    def __getitem__(self, index: int) -> Any:
        piece_T = super().__getitem__(index)
        return piece_T[:-1], piece_T[1:], piece_T[:-1]
