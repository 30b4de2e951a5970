"""Cross-entropy over every target, and the step all vocabulary losses share.

Shapes: B batch, T time, C channels, N predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import (
    BITS_A_SENTENCE,
    BITS_A_TOKEN,
    LossBackend,
    SummingCriterion,
    log_bits,
    logged,
    perplexity_of,
    predicted_positions,
    table_predictions,
    totals,
)
from fairseq.logging import metrics
from fairseq.modules.predictions import tells_projection
from fairseq.protocols import LoggingOutput, Model, Sample, Task


@dataclass
class CrossEntropyConfig(FairseqDataclass):
    """Settings of the cross-entropy."""

    sentence_avg: bool = II("optimization.sentence_avg")
    loss_backend: LossBackend = option(
        "auto", "how the vocabulary projection is computed", new=True
    )


CrossEntropyCriterionConfig = CrossEntropyConfig  # the original's name


@register_criterion("cross_entropy", dataclass=CrossEntropyConfig)
class CrossEntropyCriterion(SummingCriterion):
    """Sum of ``-log p(target)`` over all targets that are not padding, in nats."""

    def __init__(self, task: Task, sentence_avg: bool = False, loss_backend: str = "auto") -> None:
        super().__init__(task)
        self.sentence_avg = sentence_avg
        self.loss_unit = BITS_A_SENTENCE if sentence_avg else BITS_A_TOKEN
        self.backend = loss_backend

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of tokens, or of sentences.

        A model of a plug-in may predict through ``get_normalized_probs``.
        """
        foreign = type(self).compute_loss is not CrossEntropyCriterion.compute_loss
        if tells_projection(model) and not foreign:
            positions_N = predicted_positions(sample, self.padding_idx)
            target_N = sample["target"].reshape(-1)[positions_N]
            predictions = table_predictions(model, sample, positions_N)
            loss_N = predictions.losses(target_N, self.backend)
            loss = loss_N.sum() if reduce else loss_N
        else:
            loss, _ = self.compute_loss(model, model(**sample["net_input"]), sample, reduce)
        return loss, *logged(sample, loss, sample["ntokens"], self.sentence_avg)

    def compute_loss(
        self,
        model: Model,
        net_output: Tensor | tuple[Tensor, Any],
        sample: Sample,
        reduce: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of what the model put out, twice; a plug-in may override this.

        Args:
            model: the model.
            net_output: what it returned for ``sample["net_input"]``.
            sample: the batch.
            reduce: return the sum, otherwise the loss of every target, (N,).
        """
        target_N = model.get_targets(sample, net_output).reshape(-1)
        log_p_NV = model.get_normalized_probs(net_output, log_probs=True).flatten(0, -2)
        kept_N = target_N != self.padding_idx
        reduction = "sum" if reduce else "none"
        loss = F.nll_loss(log_p_NV[kept_N], target_N[kept_N], reduction=reduction)
        return loss, loss

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the loss in bits, and per token too where that is something else."""
        total = totals(logging_outputs)
        loss, ntokens, size = (total.get(key, 0) for key in ("loss", "ntokens", "sample_size"))
        log_bits("loss", loss, size)
        if size != ntokens:
            log_bits("nll_loss", loss, ntokens)
        metrics.log_derived("ppl", perplexity_of("nll_loss" if size != ntokens else "loss"))
