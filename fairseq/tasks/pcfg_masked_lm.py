"""Masked language modelling on a stream that never ends: every sentence is drawn when it is needed.

A sentence and its masks are a function of (seed, epoch, index). An epoch is only a stretch of the
stream; the next one has other sentences. So the training loss is the population's, and a run
resumes where it stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.wrappers import OwnSizes
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.pcfg.sample import dictionary_of, draw_exactly
from fairseq.pcfg.source import Source, load_source
from fairseq.protocols import Model
from fairseq.rng import philox
from fairseq.tasks import register_task
from fairseq.tasks.one_dictionary import OneDictionaryTask

_CHUNK = 64  # neighbours that are drawn together; part of what a seed means


@dataclass
class PcfgMaskedLMConfig(FairseqDataclass):
    """Settings of masked language modelling on a stream."""

    grammar: str | None = option(
        II("criterion.grammar"), "file of a grammar or hidden-Markov model", path=True
    )
    tokens_per_sample: int = option(34, "longest sentence, <s> and </s> included", minimum=3)
    mask_count: int = option(1, "words of each sentence that are hidden, all by <mask>", minimum=1)
    epoch_sentences: int = option(1_000_000, "sentences between two ends of an epoch", minimum=1)
    valid_sentences: int = option(
        10_000, "sentences of every other split, always the same", minimum=1
    )
    seed: int = II("common.seed")
    train_subset: str = option(II("dataset.train_subset"), new=True)


class StreamDataset(OwnSizes, FairseqDataset):
    """Masked sentences of a source.

    Args:
        source: where they come from.
        dictionary: with ``<mask>``.
        count: sentences of an epoch.
        cfg: the settings of the task.
        purpose: names the stream.
        endless: whether another epoch has other sentences.
    """

    def __init__(
        self,
        source: Source,
        dictionary: Dictionary,
        count: int,
        cfg: PcfgMaskedLMConfig,
        purpose: str,
        endless: bool,
    ) -> None:
        super().__init__()
        self.source, self.dictionary, self.cfg = source, dictionary, cfg
        self.purpose, self.endless = f"pcfg/{purpose}", endless
        # lengths are known when a sentence is drawn; batches are cut before
        self._sizes = np.full(count, cfg.tokens_per_sample)
        self.epoch = 1
        self._id_W = np.array([dictionary.index(word) for word in source.terminals])
        self._remember()

    def _remember(self) -> None:
        # neighbours are asked for one by one: a chunk is drawn once, not for each of them
        self._chunk = functools.lru_cache(maxsize=16)(self._drawn)

    def __getstate__(self) -> dict[str, Any]:
        """Go to a data worker without the chunks, whose memory no other process can be sent."""
        return {name: value for name, value in vars(self).items() if name != "_chunk"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def __len__(self) -> int:
        return len(self._sizes)

    def set_epoch(self, epoch: int) -> None:
        """Go on to other sentences, if the stream is endless."""
        self.epoch = epoch

    def _drawn(self, epoch: int, chunk: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return ids and hidden positions of neighbouring sentences."""
        rng = philox(self.cfg.seed, self.purpose, epoch, chunk)
        # <s> and </s> take two
        longest = self.cfg.tokens_per_sample - 2
        sentences = draw_exactly(self.source, rng, _CHUNK, longest)[0].split()
        # a sentence shorter than the count is hidden altogether
        hidden = [rng.permutation(len(words))[: self.cfg.mask_count] for words in sentences]
        return [(self._id_W[words], np.sort(h)) for words, h in zip(sentences, hidden, strict=True)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sentence as its index, ids and hidden positions."""
        chunk, place = divmod(int(index), _CHUNK)
        # validation sees the same sentences whatever the epoch is
        ids_N, hidden = self._chunk(self.epoch if self.endless else 0, chunk)[place]
        return {"id": int(index), "tokens": ids_N, "hidden": hidden}

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch laid out as that of ``MaskedLMDataset``."""
        if not samples:
            return {}
        dictionary = self.dictionary
        lengths_B = np.array([len(sample["tokens"]) + 2 for sample in samples])
        tokens_BT = np.full((len(samples), lengths_B.max()), dictionary.pad(), dtype=np.int64)
        target_BT = tokens_BT.copy()
        tokens_BT[:, 0] = dictionary.bos()
        for row, sample in enumerate(samples):
            hidden, ids_N = sample["hidden"], sample["tokens"]
            tokens_BT[row, 1 : len(ids_N) + 1] = ids_N
            tokens_BT[row, len(ids_N) + 1] = dictionary.eos()
            tokens_BT[row, hidden + 1] = dictionary.index(dictionary.mask_word)
            target_BT[row, hidden + 1] = ids_N[hidden]
        ids = torch.tensor([sample["id"] for sample in samples])
        return {
            "id": ids,
            "net_input": {
                "src_tokens": torch.from_numpy(tokens_BT),
                "src_lengths": torch.from_numpy(lengths_B),
                "src_id": ids,
            },
            "target": torch.from_numpy(target_BT),
            "predicted_positions": torch.from_numpy(np.flatnonzero(target_BT != dictionary.pad())),
            "nsentences": len(samples),
            "ntokens": int(lengths_B.sum()),
        }


@register_task("pcfg_masked_lm", dataclass=PcfgMaskedLMConfig)
class PcfgMaskedLMTask(OneDictionaryTask):
    """Predict hidden words of sentences that are drawn on the way.

    Attributes:
        dictionary: the words of the source, padded to a multiple of eight with ``<mask>``.
        mask_idx: id of ``<mask>``, the last entry.
    """

    cfg: PcfgMaskedLMConfig
    targets = ("self",)

    def __init__(self, cfg: PcfgMaskedLMConfig) -> None:
        super().__init__(cfg)
        if not cfg.grammar:
            raise ConfigError("--task pcfg_masked_lm needs --grammar, the file of the source")
        self.source = load_source(cfg.grammar)
        self.dictionary = dictionary_of(self.source.terminals)
        # with <mask> a multiple of eight, which GPUs multiply fastest
        while len(self.dictionary) % 8 != 7:
            self.dictionary.add_symbol(f"madeupword{len(self.dictionary):04d}", 0)
        self.mask_idx = self.dictionary.add_symbol(self.dictionary.mask_word)

    def load_dataset(self, split: str, combine: bool = False, *args: Any, **kwargs: Any) -> None:
        endless = split == self.train_split
        count = self.cfg.epoch_sentences if endless else self.cfg.valid_sentences
        self.datasets[split] = StreamDataset(
            self.source, self.dictionary, count, self.cfg, split, endless
        )

    def begin_epoch(self, epoch: int, model: Model) -> None:
        model.set_epoch(epoch)

    def max_positions(self) -> int:
        return self.cfg.tokens_per_sample
