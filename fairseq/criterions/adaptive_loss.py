"""The loss of models with an adaptive softmax.

Shapes: N predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq.config.schema import II
from fairseq.criterions import register_criterion
from fairseq.criterions.base import logged, predicted_positions
from fairseq.criterions.cross_entropy import CrossEntropyConfig, CrossEntropyCriterion
from fairseq.errors import ConfigError
from fairseq.modules.adaptive_softmax import AdaptiveProjection
from fairseq.protocols import Model, Sample


@dataclass
class AdaptiveLossConfig(CrossEntropyConfig):
    """Settings of the adaptive loss; any way to synchronise gradients will do."""

    ddp_backend: str = II("distributed_training.ddp_backend")


@register_criterion("adaptive_loss", dataclass=AdaptiveLossConfig)
class AdaptiveLoss(CrossEntropyCriterion):
    """Sum of ``-log p(target)`` over all targets that are not padding, in nats.

    Source: Grave et al. 2017, section 3.
    """

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of targets, or of sentences.

        Raises:
            ConfigError: if the model has no adaptive softmax.
        """
        positions_N = predicted_positions(sample, self.padding_idx)
        target_N = sample["target"].reshape(-1)[positions_N]
        operands, _ = model(**sample["net_input"], predicted_positions=positions_N)
        if not isinstance(operands, AdaptiveProjection):
            raise ConfigError(
                "--criterion adaptive_loss needs a model with --adaptive-softmax-cutoff; train "
                "this one with --criterion cross_entropy"
            )
        loss_N = operands.losses(target_N, self.backend)
        loss = loss_N.sum()
        return loss if reduce else loss_N, *logged(sample, loss, len(target_N), self.sentence_avg)
