"""Cross-entropy against targets that share a little of their probability with all other words.

Shapes: B batch, T time, N predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.config.schema import DECAY, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import (
    BITS_A_SENTENCE,
    BITS_A_TOKEN,
    SummingCriterion,
    log_bits,
    logged,
    perplexity_of,
    predicted_positions,
    table_predictions,
    totals,
)
from fairseq.criterions.cross_entropy import CrossEntropyConfig
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.logging.meters import safe_round
from fairseq.modules.predictions import Output
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.protocols import LoggingOutput, Model, Sample, Task


def label_smoothed_nll_loss(
    lprobs: Tensor,
    target: Tensor,
    epsilon: float,
    ignore_index: int | None = None,
    reduce: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the smoothed loss and the negative log-likelihood, in nats, for plug-ins.

    Args:
        lprobs: log-probabilities, (..., V).
        target: int64 (...) or (..., 1).
        epsilon: probability that is shared among all words.
        ignore_index: targets with this id do not count.
        reduce: return sums instead of one figure (...) for each target.
    """
    target = target.reshape(lprobs.shape[:-1])
    counted = torch.ones_like(target, dtype=torch.bool)
    if ignore_index is not None:
        counted = target.ne(ignore_index)
    index = target.masked_fill(~counted, 0)[..., None]
    nll = -lprobs.gather(-1, index)[..., 0]
    loss = smoothed(nll, -lprobs.sum(-1), epsilon, lprobs.shape[-1])
    loss, nll = loss.where(counted, 0.0), nll.where(counted, 0.0)
    return (loss.sum(), nll.sum()) if reduce else (loss, nll)


def smoothed(nll: Tensor, total: Tensor, eps: float, words: int) -> Tensor:
    """Return the loss from ``-log p(target)``, ``sum_v -log p(v)``, the smoothing and V."""
    eps_i = eps / (words - 1)
    return (1.0 - eps - eps_i) * nll + eps_i * total


@dataclass
class LabelSmoothedCrossEntropyCriterionConfig(CrossEntropyConfig):
    """Settings of the label-smoothed cross-entropy."""

    label_smoothing: float = option(0.0, "probability that is shared among all words", **DECAY)
    report_accuracy: bool = option(False, "also report the share of targets that were likeliest")
    ignore_prefix_size: int = option(0, "the first N targets of each row do not count", minimum=0)


@register_criterion(
    "label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig
)
class LabelSmoothedCrossEntropyCriterion(SummingCriterion):
    """Sum over targets of ``(1 - e - e_i) (-log p(target)) + e_i sum_v -log p(v)``, in nats.

    ``e`` is the smoothing and ``e_i = e / (V - 1)``, so that the target keeps ``1 - e`` and every
    other word gets ``e_i``.

    Source: Szegedy et al. 2016 (Rethinking the Inception Architecture), section 7.
    """

    fixed_targets = True

    def __init__(
        self,
        task: Task,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        loss_backend: str = "auto",
    ) -> None:
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"--label-smoothing must be in [0, 1), not {label_smoothing}")
        self.sentence_avg = sentence_avg
        self.loss_unit = BITS_A_SENTENCE if sentence_avg else BITS_A_TOKEN
        self.eps = label_smoothing
        self.ignore_prefix_size = ignore_prefix_size
        self.report_accuracy = report_accuracy
        self.backend = loss_backend

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of tokens, or of sentences."""
        positions_N = predicted_positions(sample, self.padding_idx)
        if self.ignore_prefix_size:
            length = sample["target"].shape[-1]
            positions_N = positions_N[positions_N % length >= self.ignore_prefix_size]
        target_N = sample["target"].reshape(-1)[positions_N]
        nll_N, smooth_N, best_N, words = self._scores(model, sample, positions_N, target_N)
        loss_N = smoothed(nll_N, smooth_N, self.eps, words)
        loss = loss_N.sum()
        size, logging_output = logged(sample, loss, sample["ntokens"], self.sentence_avg)
        logging_output["nll_loss"] = nll_N.detach().sum()
        if self.report_accuracy:
            logging_output["n_correct"] = best_N.eq(target_N).sum()
            logging_output["total"] = len(target_N)
        return loss if reduce else loss_N, size, logging_output

    def _scores(
        self, model: Model, sample: Sample, positions_N: Tensor, target_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return ``-log p(target)``, ``sum_v -log p(v)``, the likeliest word (N,) each, and V."""
        predictions = table_predictions(model, sample, positions_N)
        if isinstance(predictions, Output):
            log_p_NV = predictions.log_probs()
            nll_N = -log_p_NV.gather(1, target_N[:, None])[:, 0]
            return nll_N, -log_p_NV.sum(-1), log_p_NV.argmax(-1), log_p_NV.shape[-1]
        hidden_NC, weight_VC, bias_V = predictions
        result = linear_cross_entropy(
            hidden_NC,
            weight_VC,
            target_N,
            bias_V=bias_V,
            backend=self.backend,
            want_argmax=True,
            want_sum_logits=True,
        )
        assert result.sum_logits_N is not None and result.argmax_N is not None
        words = len(weight_VC)
        # -log p(v) is lse minus the logit of v: the sum over v needs the sum of logits, not each of
        # them
        smooth_N = words * result.lse_N - result.sum_logits_N
        return result.loss_N, smooth_N, result.argmax_N, words

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log both losses in bits, the perplexity without smoothing, and the accuracy."""
        total = totals(logging_outputs)
        log_bits("loss", total.get("loss", 0), total.get("sample_size", 0))
        log_bits("nll_loss", total.get("nll_loss", 0), total.get("ntokens", 0))
        metrics.log_derived("ppl", perplexity_of("nll_loss"))
        if total.get("total"):
            metrics.log_scalar("total", total["total"])
            metrics.log_scalar("n_correct", total["n_correct"])
            metrics.log_derived("accuracy", _accuracy)


def _accuracy(meters: Mapping[str, Any]) -> float:
    """Return the share of right targets in percent."""
    return safe_round(meters["n_correct"].sum * 100.0 / meters["total"].sum, 3)
