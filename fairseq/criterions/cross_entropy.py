"""Cross-entropy over every target, and the step all vocabulary losses share.

Shapes: B batch, T time, C channels, N predicted positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import FairseqCriterion
from fairseq.logging import metrics
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.utils import get_perplexity

LossBackend = Literal["auto", "reference", "chunked"]


@dataclass
class CrossEntropyConfig(FairseqDataclass):
    """Settings of the cross-entropy."""

    sentence_avg: bool = II("optimization.sentence_avg")
    loss_backend: LossBackend = option(
        "auto", "how the vocabulary projection is computed", new=True
    )


def predicted_positions(sample: dict[str, Any], padding_idx: int) -> Tensor:
    """Return the flat (B * T) indices of the positions with a target, int64 of shape (N,).

    The collater ships them, so that the step neither searches nor waits; batches of foreign
    collaters are searched.
    """
    shipped = sample.get("predicted_positions")
    if shipped is not None:
        return shipped
    return sample["target"].reshape(-1).ne(padding_idx).nonzero()[:, 0]


def vocabulary_loss(
    model: Any, sample: dict[str, Any], positions_N: Tensor, target_N: Tensor, backend: str
) -> Tensor:
    """Return the cross-entropy at the given positions in nats, fp32 of shape (N,).

    Only these positions are projected on the vocabulary, and their logits are never kept. All
    parameters are used inside the model's forward pass, as wrappers for several processes want.

    Args:
        model: a model with a ``projection``, possibly wrapped.
        sample: the batch.
        positions_N: flat indices of the predicted positions.
        target_N: their targets.
        backend: see :func:`fairseq.ops.linear_cross_entropy.linear_cross_entropy`.
    """
    operands, _ = model(**sample["net_input"], predicted_positions=positions_N)
    hidden_NC, weight_VC, bias_V = operands
    return linear_cross_entropy(
        hidden_NC, weight_VC, target_N, bias_V=bias_V, backend=backend
    ).loss_N


def perplexity_of(key: str) -> Callable[[Any], float]:
    """Return a function of meters: two to the power of the average of ``key`` (in bits)."""
    return lambda meters: get_perplexity(meters[key].avg)


@register_criterion("cross_entropy", dataclass=CrossEntropyConfig)
class CrossEntropyCriterion(FairseqCriterion):
    """Sum of ``-log p(target)`` over all targets that are not padding, in nats."""

    def __init__(self, task: Any, sentence_avg: bool = False, loss_backend: str = "auto") -> None:
        super().__init__(task)
        self.sentence_avg = sentence_avg
        self.backend = loss_backend

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of a batch.

        Args:
            model: the model; one of a plug-in may predict through ``get_normalized_probs``.
            sample: the batch.
            reduce: return the sum; otherwise the loss of every target.

        Returns:
            ``(loss, sample_size, logging_output)``; ``sample_size`` is ``ntokens``, or the
            sentences if ``sentence_avg`` is set.
        """
        if hasattr(model, "projection"):
            positions_N = predicted_positions(sample, self.padding_idx)
            target_N = sample["target"].reshape(-1)[positions_N]
            loss_N = vocabulary_loss(model, sample, positions_N, target_N, self.backend)
        else:
            net_output = model(**sample["net_input"])
            target_N = model.get_targets(sample, net_output).reshape(-1)
            log_p_NV = model.get_normalized_probs(net_output, log_probs=True).flatten(0, -2)
            kept_N = target_N != self.padding_idx
            loss_N = F.nll_loss(log_p_NV[kept_N], target_N[kept_N], reduction="none")
        loss = loss_N.sum()
        sentences = sample.get("nsentences", len(sample["target"]))
        sample_size = sentences if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sentences,
            "sample_size": sample_size,
        }
        return loss if reduce else loss_N, sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss in bits, and per token too where that is something else."""
        loss_sum, ntokens, sample_size = (
            sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "ntokens", "sample_size")
        )
        loss = loss_sum / sample_size / math.log(2) if sample_size else 0.0
        metrics.log_scalar("loss", loss, sample_size, round=3)
        if sample_size != ntokens:
            nll_loss = loss_sum / ntokens / math.log(2)
            metrics.log_scalar("nll_loss", nll_loss, ntokens, round=3)
            metrics.log_derived("ppl", perplexity_of("nll_loss"))
        else:
            metrics.log_derived("ppl", perplexity_of("loss"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: every figure is a sum."""
        return True
