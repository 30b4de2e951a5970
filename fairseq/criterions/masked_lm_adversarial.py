"""The masked-LM loss against a downstream task: as good a language model, as bad features.

It asks whether a low pre-training loss alone makes good features. Source: Liu et al. 2023, "Same
Pre-training Loss, Better Downstream", section 3.2: the loss minus ``lambda`` times the error, on
sentences it was not fitted to, of the best linear head on the features.

Shapes: B sentences, T time, C channels, K classes, F sentences to fit, H held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.config.schema import option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import totals
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.files.io import require_text
from fairseq.logging import metrics
from fairseq.modules.flops import TRAINING
from fairseq.modules.heads import pool
from fairseq.protocols import Model, Sample, Task


@dataclass
class MaskedLmAdversarialConfig(MaskedLmConfig):
    """Settings of the loss against a task."""

    adv_task_data: str | None = option(
        None, "folder with train.input0 and train.label, as fairseq-pcfg downstream writes it",
        path=True,
    )  # fmt: skip
    adv_lambda: float = option(1.0, "weight of the error of the task's head", minimum=0)
    adv_ridge: float = option(1e-3, "ridge of the head", above=0)
    adv_batch: int = option(128, "sentences of the task per batch, half to fit on", minimum=2)


def head_error(
    features_FC: Tensor, target_FK: Tensor, held_HC: Tensor, held_target_HK: Tensor, ridge: float
) -> Tensor:
    """Return the mean squared error on held-out sentences of the ridge regression on the others.

    ``W = (X^T X + ridge I)^-1 X^T Y`` over rows of length one; it can be differentiated in both
    sets of features. Source: Hoerl and Kennard 1970.
    """
    # in half precision the sums of products would be off by more than the ridge
    with torch.autocast(features_FC.device.type, enabled=False):
        x_FC, held = F.normalize(features_FC, dim=1), F.normalize(held_HC, dim=1)
        ridge_CC = ridge * torch.eye(x_FC.shape[1], dtype=x_FC.dtype, device=x_FC.device)
        weight_CK = torch.linalg.solve(x_FC.T @ x_FC + ridge_CC, x_FC.T @ target_FK)
        return (held @ weight_CK - held_target_HK).square().mean()


@register_criterion("masked_lm_adversarial", dataclass=MaskedLmAdversarialConfig)
class MaskedLmAdversarial(MaskedLmLoss):
    """The loss of ``masked_lm``, in training minus that of a head which is fitted at every batch.

    The head is never a parameter: it is the solution for half of a random batch of the task, and
    its error is that on the other half. Features are means over the words of a sentence.
    """

    sums_over_rows = False
    runs_once = False
    _extra_flops = 0

    def __init__(self, cfg: MaskedLmAdversarialConfig, task: Task) -> None:
        super().__init__(cfg, task)
        if not cfg.adv_task_data:
            raise ConfigError("--criterion masked_lm_adversarial needs --adv-task-data, a folder")
        self.weight, self.ridge, self.size = cfg.adv_lambda, cfg.adv_ridge, cfg.adv_batch
        self.rows, classes = _read(Path(cfg.adv_task_data), task.source_dictionary)
        one_hot_SK = F.one_hot(torch.tensor(classes)).float()
        self.target_SK = one_hot_SK - 1 / one_hot_SK.shape[1]

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        loss, size, log = super().forward(model, sample, reduce)
        self._extra_flops = 0
        if model.training:
            error = self._error(model, sample["target"].device)
            loss = loss - self.weight * error * (size if reduce else 1)
            log["adversarial"] = error.detach() * size
            log["adversarial_size"] = size
        return loss, size, log

    def _error(self, model: Model, device: torch.device) -> Tensor:
        """Return the error of the head on a random batch, which torch's generator draws."""
        chosen_B = torch.randperm(len(self.rows))[: self.size]
        rows = [self.rows[place] for place in chosen_B.tolist()]
        tokens_BT = torch.full((len(rows), max(map(len, rows))), self.padding_idx)
        for own_T, row in zip(tokens_BT, rows, strict=True):
            own_T[: len(row)] = row
        tokens_BT = tokens_BT.to(device)
        states_BTC, _ = model(tokens_BT, features_only=True)
        # neither <s> nor </s> are words
        last_B = (tokens_BT != self.padding_idx).sum(1, keepdim=True) - 1
        place_T = torch.arange(tokens_BT.shape[1], device=device)
        outside_BT = (place_T == 0) | (place_T >= last_B)
        features_BC = pool(states_BTC.float(), "mean", outside_BT)
        target_BK = self.target_SK[chosen_B].to(features_BC)
        half = len(rows) // 2
        self._extra_flops = TRAINING * self._forward_flops(model, tokens_BT, *features_BC.shape)
        return head_error(
            features_BC[:half], target_BK[:half], features_BC[half:], target_BK[half:], self.ridge
        )

    def extra_flops(self) -> int:
        """Return those of the model on the sentences of the task, and of the head."""
        return self._extra_flops

    def _forward_flops(self, model: Model, tokens_BT: Tensor, rows: int, channels: int) -> int:
        """Return the operations of a forward pass over the task's batch, with its head.

        The products of the head are ``X^T X`` (C, C) and ``X^T Y`` (C, K) over half of the rows,
        and ``X W`` of the other half.
        """
        tell = getattr(model, "flops", None)  # a plug-in's model may be any module
        of_model = None if tell is None else tell(*tokens_BT.shape, 0)
        of_head = 2 * channels * (rows // 2 * channels + rows * self.target_SK.shape[1])
        return (of_model or 0) + of_head

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss of the language model in bits and, in training, the error of the head."""
        super().reduce_metrics(logging_outputs)
        total = totals(logging_outputs)
        if size := total.get("adversarial_size"):
            metrics.log_scalar("adversarial", total["adversarial"] / size, size, round=4)


def _read(folder: Path, dictionary: Dictionary) -> tuple[list[Tensor], list[int]]:
    """Return the ids of every sentence, framed by ``<s>`` and ``</s>``, and its class.

    Raises:
        DataError: if the files do not fit each other, or the dictionary.
    """
    advice = "fairseq-pcfg downstream writes it."
    texts, labels = (
        require_text(folder / f"train.{end}", "task", advice).splitlines()
        for end in ("input0", "label")
    )
    if len(texts) != len(labels) or len(texts) < 2 or len(set(labels)) < 2:
        raise DataError(
            f"{folder}: {len(texts)} sentences, {len(labels)} labels of {len(set(labels))} kinds; "
            "the task needs a label for each, and two kinds at least"
        )
    rows = []
    for number, text in enumerate(texts, 1):
        ids = [dictionary.index(word) for word in text.split()]
        if dictionary.unk() in ids or not ids:
            raise DataError(
                f"{folder}/train.input0, line {number}: a word is not in the dictionary; draw the "
                "sentences from the grammar of the training data"
            )
        rows.append(torch.tensor([dictionary.bos(), *ids, dictionary.eos()]))
    number_of = {label: place for place, label in enumerate(sorted(set(labels)))}
    return rows, [number_of[label] for label in labels]
