"""Headless training: predict input embeddings among those of the batch, without a vocabulary head.

Shapes: N predicted positions, C channels, V rows of the table, M ids of the whole update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fairseq.config.schema import FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import FairseqCriterion
from fairseq.criterions.cross_entropy import perplexity_of, predicted_positions
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.ops.contrastive_weight_tying import contrastive_weight_tying
from fairseq.ops.linear_cross_entropy import linear_cross_entropy


@dataclass
class ContrastiveWeightTyingConfig(FairseqDataclass):
    """Settings of contrastive weight tying."""

    contrastive_temperature: float = option(1.0, "scores are divided by this", new=True)
    contrastive_normalize: bool = option(False, "compare directions only", new=True)
    contrastive_symmetric: bool = option(
        False, "also find the position for each token, among those of the micro-batch", new=True
    )
    duplicates: Literal["count", "once"] = option(
        "count", "negatives that occur several times count as often, or once", new=True
    )
    negatives: Literal["local", "global"] = option(
        "local", "those of the micro-batch, or of the whole update on all processes", new=True
    )
    extra_negatives: int = option(0, "so many more, drawn from the whole vocabulary", new=True)
    valid_vocabulary_loss: bool = option(
        True, "validation also reports the perplexity of the tied table as head", new=True,
        positive=True,
    )  # fmt: skip


@register_criterion("contrastive_weight_tying", dataclass=ContrastiveWeightTyingConfig)
class ContrastiveWeightTyingCriterion(FairseqCriterion):
    """Sum over predicted positions of the contrastive loss, in nats.

    Source: Godey et al. 2023 (Headless Language Models), section 3.
    """

    def __init__(self, cfg: ContrastiveWeightTyingConfig, task: Any) -> None:
        super().__init__(task)
        self.cfg = cfg
        self._ids_M: Tensor | None = None

    def prepare_update(self, samples: list[dict[str, Any]]) -> None:
        """Gather the ids that all micro-batches of all processes predict; never embeddings."""
        self._ids_M = None
        if self.cfg.negatives == "global":
            targets = [s["target"][s["target"] != self.padding_idx] for s in samples]
            device = targets[0].device if targets else torch.device("cpu")
            own_M = torch.cat(targets) if targets else torch.zeros(0, dtype=torch.int64)
            rows = own_M.double()[:, None] if len(own_M) else None
            self._ids_M = distributed_utils.concat_over_processes(rows, device)[:, 0].long()

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of a batch.

        Returns:
            ``(loss, sample_size, logging_output)``; ``sample_size`` is the number of predicted
            positions.

        Raises:
            ConfigError: if the model does not tell its table of input embeddings.
        """
        if not hasattr(model, "embedding_table"):
            raise ConfigError(
                f"--criterion contrastive_weight_tying cannot train {type(model).__name__}: it has "
                "no method embedding_table"
            )
        positions_N = predicted_positions(sample, self.padding_idx)
        target_N = sample["target"].reshape(-1)[positions_N]
        features_BTC, _ = model(**sample["net_input"], features_only=True)
        hidden_NC = features_BTC.flatten(0, 1).index_select(0, positions_N)
        table_VC = model.embedding_table()
        cfg = self.cfg
        result = contrastive_weight_tying(
            hidden_NC,
            table_VC,
            target_N,
            negatives_M=self._negatives(target_N, len(table_VC), model.training),
            temperature=cfg.contrastive_temperature,
            normalize=cfg.contrastive_normalize,
            duplicates=cfg.duplicates,
            symmetric=cfg.contrastive_symmetric,
        )
        loss = result.loss_N.sum()
        log = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": len(positions_N),
            "ncorrect": result.right_N.sum(),
            "negatives": result.negatives * len(positions_N),
        }
        if not model.training and cfg.valid_vocabulary_loss:
            scale = cfg.contrastive_temperature
            whole = linear_cross_entropy(hidden_NC.float() / scale, table_VC.float(), target_N)
            log["vocabulary_loss"] = whole.loss_N.sum()
        return loss if reduce else result.loss_N, len(positions_N), log

    def _negatives(self, target_N: Tensor, rows: int, training: bool) -> Tensor | None:
        """Return the ids to tell apart; None for those of the micro-batch alone."""
        ids_M = self._ids_M if training and self._ids_M is not None else target_N
        if self.cfg.extra_negatives:
            extra = torch.randint(rows, (self.cfg.extra_negatives,), device=target_N.device)
            ids_M = torch.cat([ids_M, extra])
        return None if ids_M is target_N else ids_M

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss in bits, the accuracy among the negatives, and how many there were."""
        total = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in {key: None for log in logging_outputs for key in log}
        }
        size = total.get("sample_size", 0)
        loss = total.get("loss", 0) / size / math.log(2) if size else 0.0
        metrics.log_scalar("loss", loss, size, round=3)
        if size:
            metrics.log_scalar("accuracy", 100.0 * total["ncorrect"] / size, size, round=1)
            metrics.log_scalar("negatives", total["negatives"] / size, size, round=1)
        if "vocabulary_loss" in total and size:
            bits = total["vocabulary_loss"] / size / math.log(2)
            metrics.log_scalar("vocabulary_loss", bits, size, round=3)
            metrics.log_derived("ppl", perplexity_of("vocabulary_loss"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: every figure is a sum."""
        return True
