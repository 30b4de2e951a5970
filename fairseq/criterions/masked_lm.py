"""The masked-LM loss: cross-entropy at the positions that were hidden, and nowhere else.

Shapes: N predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq.config.schema import FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import (
    BITS_A_TOKEN,
    LossBackend,
    SummingCriterion,
    log_predicted,
    predicted_positions,
    table_predictions,
    totals,
)
from fairseq.protocols import LoggingOutput, Model, Sample, Task


@dataclass
class MaskedLmConfig(FairseqDataclass):
    """Settings of the masked-LM loss."""

    loss_backend: LossBackend = option(
        "auto", "how the vocabulary projection is computed", new=True
    )


@register_criterion("masked_lm", dataclass=MaskedLmConfig)
class MaskedLmLoss(SummingCriterion):
    """Sum of ``-log p(target)`` over the predicted positions, in nats.

    Source: Devlin et al. 2019, section 3.1.
    """

    def __init__(self, cfg: MaskedLmConfig, task: Task) -> None:
        super().__init__(task)
        self.loss_unit = BITS_A_TOKEN
        self.backend = getattr(cfg, "loss_backend", "auto")

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of predicted positions.

        A model of a plug-in is asked for its logits at ``masked_tokens``.
        """
        positions_N = predicted_positions(sample, self.padding_idx)
        target_N = sample["target"].reshape(-1)[positions_N]
        predictions = table_predictions(model, sample, positions_N, masked_tokens=True)
        loss_N = predictions.losses(target_N, self.backend)
        loss = loss_N.sum()
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": len(positions_N),
        }
        return loss if reduce else loss_N, len(positions_N), logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the loss in bits per predicted position, and the perplexity."""
        log_predicted(totals(logging_outputs))
