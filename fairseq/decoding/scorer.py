"""Scoring given text: the log-probability of every target token.

Shapes: B batch, T time, N targets that are not padding, M models, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.modules.predictions import Output, predict
from fairseq.protocols import Model, Sample
from fairseq.utils import strip_pad

NEVER_SPLIT = 2**63 - 1


class SequenceScorer:
    """Gives the targets of a batch in the form in which a generator gives hypotheses.

    Args:
        tgt_dict: dictionary of the targets.
        softmax_batch: most rows of probabilities computed at once; no limit if None. Models that
            tell their last projection (``model.projection``) never keep a batch of them anyway.
        compute_alignment: refused if True.
        eos: id that ends a sentence; the dictionary's if None.
        symbols_to_strip_from_output: further ids that are left out when hypotheses are printed.

    Raises:
        UnsupportedError: if alignments are asked for.
        ConfigError: if ``softmax_batch`` is not positive.
    """

    def __init__(
        self,
        tgt_dict: Dictionary,
        softmax_batch: int | None = None,
        compute_alignment: bool = False,
        eos: int | None = None,
        symbols_to_strip_from_output: Collection[int] | None = None,
    ) -> None:
        if compute_alignment:
            raise UnsupportedError(
                "alignments belong to translation, which is out of scope; the original has them"
            )
        self.pad: int = tgt_dict.pad()
        self.eos: int = tgt_dict.eos() if eos is None else eos
        self.softmax_batch = NEVER_SPLIT if softmax_batch is None else softmax_batch
        if self.softmax_batch < 1:
            raise ConfigError(f"--softmax-batch must be positive, not {softmax_batch}")
        self.symbols_to_strip_from_output = {self.eos, *(symbols_to_strip_from_output or ())}

    @torch.no_grad()
    def generate(
        self, models: Sequence[Any], sample: Sample, **kwargs: Any
    ) -> list[list[dict[str, Any]]]:
        """Score the targets of a batch.

        Args:
            models: several are averaged in probability space.
            sample: the batch. ``target`` int64 (B, T), padded on the right;
                ``start_indices``, if there, holds for each row the place of its first target.
            **kwargs: ignored.

        Returns:
            for each row a list of one hypothesis: ``tokens`` int64 (N,); ``positional_scores``
            fp32 (N,), natural log-probabilities; ``score``, their mean (not a number for no token);
            ``attention`` (N, sources) if the model gives one; ``alignment`` None.
        """
        scores_M, attentions = [], []
        for model in models:
            model.eval()
            scores_BT, attention_BTS = self._score(model, sample)
            scores_M.append(scores_BT)
            if attention_BTS is not None:
                attentions.append(attention_BTS)
        scores_BT = average_log_probs(scores_M)
        attention_BTS = torch.stack(attentions).mean(0) if attentions else None
        starts = sample.get("start_indices") or [0] * len(scores_BT)
        hypotheses = []
        for row, start in enumerate(starts):
            tokens_N = strip_pad(sample["target"][row, start:], self.pad)
            place = slice(start, start + len(tokens_N))
            scores_N = scores_BT[row, place]
            attention_NS = None if attention_BTS is None else attention_BTS[row, place]
            hypotheses.append(
                [
                    {
                        "tokens": tokens_N,
                        "score": scores_N.sum() / len(tokens_N),
                        "attention": attention_NS,
                        "alignment": None,
                        "positional_scores": scores_N,
                    }
                ]
            )
        return hypotheses

    def _score(self, model: Model, sample: Sample) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities of the targets, fp32 (B, T), 0 at pads, and the attention."""
        target_BT = sample["target"]
        target_N, places_N = target_BT.flatten(), target_BT.flatten().ne(self.pad).nonzero()[:, 0]
        target_N = target_N[places_N]
        scores_BT = torch.zeros(target_BT.shape, device=target_BT.device)
        predictions = predict(model, sample, places_N)
        if not isinstance(predictions, Output):
            scores_BT.view(-1)[places_N] = -predictions.losses(target_N)
            return scores_BT, None
        for first in range(0, len(target_N), self.softmax_batch):
            some = slice(first, first + self.softmax_batch)
            scores_BT.view(-1)[places_N[some]] = -predictions.rows(some).losses(target_N[some])
        return scores_BT, _attention(predictions.rest)


def average_log_probs(log_p_M: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean probability of M models; any shape."""
    if len(log_p_M) == 1:
        return log_p_M[0]
    return torch.stack(list(log_p_M)).logsumexp(0) - math.log(len(log_p_M))


def _attention(rest: tuple[Any, ...]) -> Tensor | None:
    """Return the attention (B, T, sources) that a model of a plug-in gives, or None."""
    attention = rest[0] if rest else None
    if isinstance(attention, dict):
        attention = attention.get("attn")
    if isinstance(attention, list):
        attention = attention[0] if attention else None
    return attention
