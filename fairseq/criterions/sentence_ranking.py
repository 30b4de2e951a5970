"""The sentence-ranking loss: cross-entropy over the scores of a sentence's options.

Shapes: B sentences, K options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.config.schema import FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import BITS_A_SENTENCE, SummingCriterion, totals
from fairseq.criterions.sentence_prediction import log_sentences
from fairseq.errors import ConfigError
from fairseq.protocols import LoggingOutput, Model, Task


@dataclass
class SentenceRankingConfig(FairseqDataclass):
    """Settings of the sentence-ranking loss."""

    ranking_head_name: str = option(
        "sentence_classification_head", "name of the head that scores an option"
    )
    save_predictions: str | None = option(
        None, "file that every validation appends 'sample, option, right option' lines to"
    )


@register_criterion("sentence_ranking", dataclass=SentenceRankingConfig)
class SentenceRankingCriterion(SummingCriterion):
    """Sum over sentences of ``-log p(right option)``, in nats.

    Args:
        cfg: the settings.
        task: whose ``cfg.num_classes`` says how many options a sentence has.

    Raises:
        ConfigError: if the task does not say it.
    """

    runs_once = False  # but for every option

    def __init__(self, cfg: SentenceRankingConfig, task: Task) -> None:
        super().__init__(task)
        self.loss_unit = BITS_A_SENTENCE
        self.head, self.predictions = cfg.ranking_head_name, cfg.save_predictions
        options = getattr(task.cfg, "num_classes", None)
        if options is None:
            raise ConfigError("--criterion sentence_ranking needs a task with --num-classes")
        self.options: int = options

    def forward(
        self, model: Model, sample: Mapping[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; batches hold ``net_input1`` to ``net_inputK``.

        Raises:
            ConfigError: if the model has no such head, or the data no labels.
        """
        if self.head not in getattr(model, "classification_heads", {}):
            raise ConfigError(
                f"--criterion sentence_ranking needs the classification head '{self.head}', "
                "which the model does not have; use --task sentence_ranking"
            )
        if "target" not in sample:
            raise ConfigError("the data have no labels: there is no label/SPLIT.label")
        scores = [
            model(**sample[f"net_input{number}"], classification_head_name=self.head)[0]
            for number in range(1, self.options + 1)
        ]
        logits_BK = torch.cat(scores, dim=1).float()
        target_B = sample["target"].view(-1)
        loss = F.cross_entropy(logits_BK, target_B, reduction="sum" if reduce else "none")
        best_B = logits_BK.argmax(dim=1)
        written = not model.training and "is_filler" not in sample
        if self.predictions is not None and written:
            self._append(sample["id"], best_B, target_B)
        log = {
            "loss": loss.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": len(target_B),
            "sample_size": len(target_B),
            "ncorrect": (best_B == target_B).sum(),
        }
        return loss, len(target_B), log

    def _append(self, ids_B: Tensor, best_B: Tensor, target_B: Tensor) -> None:
        rows = zip(ids_B.tolist(), best_B.tolist(), target_B.tolist(), strict=True)
        with open(str(self.predictions), "a", encoding="utf-8") as file:
            file.writelines(f"{number}\t{best}\t{right}\n" for number, best, right in rows)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the loss in bits and the accuracy in percent."""
        log_sentences(totals(logging_outputs))
