"""The sentence-prediction loss: cross-entropy over classes, or squared error of numbers.

Figures that are no sums over sentences (Matthews' and the rank correlations, F1) are computed from
counts, or from all predictions, gathered over batches and processes; never averaged over batches.

Shapes: B sentences, K classes or numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.config.schema import FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import BITS_A_SENTENCE, SummingCriterion, totals
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.logging.meters import safe_round
from fairseq.modules.flops import TRAINING, matrix_entries
from fairseq.protocols import LoggingOutput, Model, Sample, Task


@dataclass
class SentencePredictionConfig(FairseqDataclass):
    """Settings of the sentence-prediction loss."""

    classification_head_name: str = option(
        "sentence_classification_head", "name of the classification head"
    )
    regression_target: bool = option(False, "predict numbers, with squared error")
    report_mcc: bool = option(False, "validation also reports Matthews' correlation")
    report_acc_and_f1: bool = option(False, "validation also reports F1 of class 1")
    report_pearson_and_spearman: bool = option(
        False, "validation also reports the correlations of a regression"
    )


@register_criterion("sentence_prediction", dataclass=SentencePredictionConfig)
class SentencePredictionCriterion(SummingCriterion):
    """Sum over sentences of ``-log p(class)``, or of squared errors, in nats.

    Args:
        cfg: the settings.
        task: whose ``cfg.num_classes`` says how many classes there are.

    Raises:
        ConfigError: if F1 is to be reported of more or fewer than two classes.
    """

    def __init__(self, cfg: SentencePredictionConfig, task: Task) -> None:
        super().__init__(task)
        self._classes = getattr(task.cfg, "num_classes", 2)
        if cfg.report_acc_and_f1 and not cfg.regression_target and self._classes != 2:
            raise ConfigError(
                f"--report-acc-and-f1 is about two classes, but --num-classes is {self._classes}"
            )
        self.cfg = cfg
        self.head = cfg.classification_head_name
        self._extra_flops = 0
        self.regression_target = cfg.regression_target
        self.loss_unit = "" if cfg.regression_target else BITS_A_SENTENCE

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of targets.

        Raises:
            ConfigError: if the model has no such classification head, or the data no labels.
        """
        heads = getattr(model, "classification_heads", {})
        if self.head not in heads:
            raise ConfigError(
                f"--criterion sentence_prediction needs the classification head '{self.head}', "
                "which the model does not have; use --task sentence_prediction"
            )
        if "target" not in sample:
            kind = "label/SPLIT.label" if self.regression_target else "label/SPLIT.bin"
            raise ConfigError(f"the data have no labels: there is no {kind} beside 'input0'")
        logits_BK, _ = model(
            **sample["net_input"], features_only=True, classification_head_name=self.head
        )
        if logits_BK.dtype != torch.float64:
            logits_BK = logits_BK.float()
        entries = matrix_entries([heads[self.head]])
        self._extra_flops = TRAINING * 2 * len(logits_BK) * entries
        targets = sample["target"].view(-1)
        sample_size = targets.numel()
        if self.regression_target:
            predicted = logits_BK.view(-1)
            targets = targets.to(logits_BK.dtype)
            loss = F.mse_loss(predicted, targets, reduction="sum" if reduce else "none")
        else:
            predicted = logits_BK.argmax(dim=1)
            loss = F.cross_entropy(logits_BK, targets, reduction="sum" if reduce else "none")
        log = {
            "loss": loss.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample_size,
            "sample_size": sample_size,
        }
        if not self.regression_target:
            log["ncorrect"] = (predicted == targets).sum()
        if not model.training:
            log.update(self._counts(predicted.detach(), targets))
        return loss, sample_size, log

    def extra_flops(self) -> int:
        """Return those of the classification head."""
        return self._extra_flops

    def _counts(self, predicted: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return what the reports are computed from, as sums."""
        if self.regression_target:
            if not self.cfg.report_pearson_and_spearman:
                return {}
            return {"_pairs": torch.stack([predicted, targets], dim=1)}
        if not (self.cfg.report_mcc or self.cfg.report_acc_and_f1):
            return {}
        cells = targets * self._classes + predicted
        confusion = torch.bincount(cells, minlength=self._classes**2)
        reports = {"_mcc": self.cfg.report_mcc, "_acc_and_f1": self.cfg.report_acc_and_f1}
        named = {f"_confusion_{i}": count for i, count in enumerate(confusion)}
        return {**named, **{name: 1 for name, wanted in reports.items() if wanted}}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the loss in bits and what was asked for, in percent."""
        total = totals(logging_outputs, "_pairs")
        log_sentences(total)
        _log_counts(total)
        pairs = [log["_pairs"] for log in logging_outputs if "_pairs" in log]
        if pairs:
            metrics.log_concat_tensor("_pairs", torch.cat(pairs))
            for name in ("pearson_and_spearman", "pearson", "spearman"):
                metrics.log_derived(name, _correlation(name))


def log_sentences(total: Mapping[str, Any]) -> None:
    """Log the loss in bits, per token too where that is something else, and the accuracy."""
    size, tokens = total.get("sample_size", 0), total.get("ntokens", 0)
    bits = total.get("loss", 0) / math.log(2)
    metrics.log_scalar("loss", bits / size if size else 0.0, size, round=3)
    if size != tokens:
        metrics.log_scalar("nll_loss", bits / tokens if tokens else 0.0, tokens, round=3)
    sentences = total.get("nsentences", 0)
    if "ncorrect" in total and sentences:
        metrics.log_scalar("accuracy", 100.0 * total["ncorrect"] / sentences, sentences, round=1)


def _log_counts(total: dict[str, Any]) -> None:
    """Log the figures that follow from the confusion matrix of all batches."""
    cells = [key for key in total if key.startswith("_confusion_")]
    for key in cells:
        metrics.log_scalar_sum(key, total[key])
    if "_mcc" in total:
        metrics.log_derived("mcc", lambda meters: safe_round(100 * mcc(_matrix(meters)), 1))
    if "_acc_and_f1" in total:
        metrics.log_derived("f1", lambda meters: safe_round(100 * f1(_matrix(meters)), 1))
        metrics.log_derived(
            "acc_and_f1",
            lambda meters: safe_round(50 * (accuracy(_matrix(meters)) + f1(_matrix(meters))), 1),
        )


def _matrix(meters: Mapping[str, Any]) -> np.ndarray:
    """Return the confusion matrix (K, K), rows are targets."""
    count = sum(key.startswith("_confusion_") for key in meters)
    cells = [float(meters[f"_confusion_{i}"].sum) for i in range(count)]
    classes = math.isqrt(count)
    return np.array(cells).reshape(classes, classes)


def accuracy(confusion_KK: np.ndarray) -> float:
    """Return the share of the diagonal."""
    return float(np.trace(confusion_KK) / max(confusion_KK.sum(), 1))


def mcc(confusion_KK: np.ndarray) -> float:
    """Return Matthews' correlation coefficient; 0 where one side is constant.

    Source: Gorodkin 2004, equation 8 (R_K), which is Matthews 1975 for two classes.
    """
    total, right = confusion_KK.sum(), np.trace(confusion_KK)
    targets_K, predicted_K = confusion_KK.sum(1), confusion_KK.sum(0)
    spread = (total**2 - predicted_K @ predicted_K) * (total**2 - targets_K @ targets_K)
    return float((right * total - targets_K @ predicted_K) / math.sqrt(spread)) if spread else 0.0


def f1(confusion_KK: np.ndarray) -> float:
    """Return F1 of class 1: the harmonic mean of precision and recall; 0 without any hit."""
    hits = confusion_KK[1, 1]
    shown = confusion_KK[1].sum() + confusion_KK[:, 1].sum()
    return float(2 * hits / shown) if shown else 0.0


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Return Pearson's correlation of two rows; 0 where one is constant."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    spread = math.sqrt(float(x_N @ x_N) * float(y_N @ y_N))
    return float(x_N @ y_N) / spread if spread else 0.0


def ranks(x_N: np.ndarray) -> np.ndarray:
    """Return the ranks of numbers from 0; equal ones share the mean of theirs."""
    _, place_N, count = np.unique(x_N, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + last - 1) / 2)[place_N]


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Return Spearman's correlation: Pearson's of the ranks."""
    return pearson(ranks(x_N), ranks(y_N))


def _correlation(name: str) -> Any:
    def compute(meters: Mapping[str, Any]) -> float:
        predicted_N, targets_N = meters["_pairs"].tensor.cpu().double().numpy().T
        both = {"pearson": pearson, "spearman": spearman}
        wanted = [both[name]] if name in both else list(both.values())
        return safe_round(100 * sum(f(predicted_N, targets_N) for f in wanted) / len(wanted), 1)

    return compute
