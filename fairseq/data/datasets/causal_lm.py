"""``MonolingualDataset``: blocks of text for causal language models.

Shape suffixes: B items, T tokens of the longest item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fairseq.data.collate import collate_tokens
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.documents import number_documents
from fairseq.data.datasets.wrappers import BaseWrapperDataset, OwnSizes
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError

TARGETS = ("self", "future", "past")


def collate(
    samples: list[dict[str, Any]],
    pad_idx: int,
    eos_idx: int,
    fixed_pad_length: int | None = None,
    pad_to_bsz: int | None = None,
) -> dict[str, Any]:
    """Merge items of a ``MonolingualDataset`` into a batch.

    Args:
        samples: items with ``id``, ``source`` (T,) and ``target`` (T,), a list of such, or None.
        pad_idx: padding id.
        eos_idx: end-of-sentence id.
        fixed_pad_length: smallest T.
        pad_to_bsz: smallest B.

    Returns:
        An empty dict for no samples, else ``id`` int64 (B,); ``nsentences``; ``ntokens``, without
        padding; ``net_input`` with ``src_tokens`` int64 (B, T) and ``src_lengths`` int64 (B,);
        ``target`` int64 (B, T), a list of such, or the sources if there are no targets; for one
        target ``predicted_positions``, flat indices int64 (N,) of those that are no padding.
    """
    if not samples:
        return {}

    def merged(values: Sequence[torch.Tensor]) -> torch.Tensor:
        return collate_tokens(
            values, pad_idx, eos_idx, pad_to_length=fixed_pad_length, pad_to_bsz=pad_to_bsz
        )

    sources = [sample["source"] for sample in samples]
    targets = [sample["target"] for sample in samples]
    src_tokens = merged(sources)
    if isinstance(targets[0], list):
        target: Any = [merged(values) for values in zip(*targets, strict=True)]
    else:
        target = src_tokens if targets[0] is None else merged(targets)
    lengths = [len(source) for source in sources]
    batch = {
        "id": torch.tensor([sample["id"] for sample in samples]),
        "nsentences": len(samples),
        "ntokens": sum(lengths),
        "net_input": {"src_tokens": src_tokens, "src_lengths": torch.tensor(lengths)},
        "target": target,
    }
    if not isinstance(target, list):
        batch["predicted_positions"] = target.flatten().ne(pad_idx).nonzero()[:, 0]
    return batch


class MonolingualDataset(OwnSizes, BaseWrapperDataset):
    """Items ``{"id", "source", "target"}`` of a causal language model."""

    def __init__(
        self,
        dataset: FairseqDataset,
        sizes: np.ndarray | Sequence[int],
        src_vocab: Dictionary,
        tgt_vocab: Dictionary | None = None,
        add_eos_for_other_targets: bool = False,
        shuffle: bool = False,
        targets: Sequence[str] | None = None,
        add_bos_token: bool = False,
        fixed_pad_length: int | None = None,
        pad_to_bsz: int | None = None,
        document_mask: bool = False,
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: tensors (T,); triples (source, block, past) if there are ``targets``.
            sizes: int (len(dataset),), lengths of the items, without the token that
                ``add_bos_token`` adds.
            src_vocab: dictionary of the sources.
            tgt_vocab: dictionary of the targets, a first part of the other; ids beyond it become
                unknown. None for the same.
            add_eos_for_other_targets: end sources with end-of-sentence if ``self`` or ``past`` is
                among the targets.
            shuffle: order items of equal length at random, with numpy's global generator.
            targets: which of ``self``, ``future`` and ``past`` to predict; None for no targets.
            add_bos_token: begin sources and targets with beginning-of-sentence.
            fixed_pad_length: smallest T of a batch.
            pad_to_bsz: smallest B of a batch.
            document_mask: put the number of each token's document into ``net_input`` as
                ``documents``, int64 (B, T).

        Raises:
            ConfigError: if a target is unknown.
        """
        super().__init__(dataset)
        unknown = set(targets or ()) - set(TARGETS)
        if unknown:
            raise ConfigError(f"invalid targets {sorted(unknown)}; choose from {TARGETS}")
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self.vocab = src_vocab
        self.tgt_vocab = src_vocab if tgt_vocab is None else tgt_vocab
        self.add_eos_for_other_targets = add_eos_for_other_targets
        self.shuffle = shuffle
        self.targets = targets
        self.add_bos_token = add_bos_token
        self.fixed_pad_length = fixed_pad_length
        self.pad_to_bsz = pad_to_bsz
        self.document_mask = document_mask

    def __getitem__(self, index: int) -> dict[str, Any]:
        source_T, target = self.dataset[index], None
        if self.targets is not None:
            by_name = self._by_name(*source_T)
            source_T = by_name["self"]
            chosen = [self._in_target_vocab(by_name[name]) for name in self.targets]
            target = chosen[0] if len(chosen) == 1 else chosen
        if self.add_bos_token:
            bos = source_T.new_tensor([self.vocab.bos()])
            source_T = torch.cat([bos, source_T])
            if isinstance(target, list):
                target = [torch.cat([bos, one_T]) for one_T in target]
            elif target is not None:
                target = torch.cat([bos, target])
        return {"id": index, "source": source_T, "target": target}

    def _by_name(
        self, source_T: torch.Tensor, future_T: torch.Tensor, past_T: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the target of each name; that of ``self`` is the source, maybe with its end."""
        assert self.targets is not None
        ends = bool(len(source_T)) and int(source_T[-1]) == self.vocab.eos()
        others = {"self", "past"} & set(self.targets)
        if self.add_eos_for_other_targets and others and not ends:
            last = source_T[-1:]
            pad = source_T.new_tensor([self.vocab.pad()])
            source_T = torch.cat([source_T, source_T.new_tensor([self.vocab.eos()])])
            future_T = torch.cat([future_T, pad])
            # Its first token lies before the sentence, which only continuous text has.
            past_T = torch.cat([pad, past_T[1:], last])
        return {"self": source_T, "future": future_T, "past": past_T}

    def _in_target_vocab(self, target_T: torch.Tensor) -> torch.Tensor:
        """Return the target with ids outside of its dictionary made unknown."""
        if len(self.tgt_vocab) == len(self.vocab):
            return target_T
        return target_T.masked_fill(target_T >= len(self.tgt_vocab), self.tgt_vocab.unk())

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Merge items into a batch, see :func:`collate`."""
        pad, eos = self.vocab.pad(), self.vocab.eos()
        batch = collate(samples, pad, eos, self.fixed_pad_length, self.pad_to_bsz)
        return self.with_documents(batch) if batch else batch

    def with_documents(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with the documents of its sources, if the model is to be told of them."""
        if not self.document_mask:
            return batch
        pad, eos, net_input = self.vocab.pad(), self.vocab.eos(), batch["net_input"]
        documents = number_documents(net_input["src_tokens"], eos=eos, pad=pad, shifted=True)
        return dict(batch, net_input=dict(net_input, documents=documents))

    def ordered_indices(self) -> np.ndarray:
        """Return all indices by length, items of equal length at random or in order."""
        ties = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return np.lexsort([ties, self._sizes])
