"""The masked-LM loss beside what it could be at best: the sentences come from a known source.

Shapes: B rows, T time, N masked positions, W words of the source, V dictionary, S sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.config.schema import FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import (
    BITS_A_TOKEN,
    SummingCriterion,
    log_predicted,
    predicted_positions,
    table_predictions,
    totals,
)
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.pcfg.score import means
from fairseq.pcfg.source import load_source
from fairseq.pcfg.truth import Truth, entropies
from fairseq.protocols import LoggingOutput, Model, Sample, Task

LOWEST = -80.0
"""Log probabilities of possible words below this count as this; ``clamped`` says how many did."""

# columns of the table of sentences: means over its masked positions, but for the first
COLUMNS = ("words", "ce", "kl", "optimum", "nll", "off_grammar", "agree")


@dataclass
class MaskedLmTruthConfig(FairseqDataclass):
    """Settings of the masked-LM loss against the truth."""

    grammar: str | None = option(
        None, "file of the grammar or model that the text was drawn from", path=True
    )
    soft_targets: bool = option(
        False, "train on the true distribution of each masked word instead of the word itself"
    )


@register_criterion("masked_lm_truth", dataclass=MaskedLmTruthConfig)
class MaskedLmTruthCriterion(SummingCriterion):
    """The loss of ``masked_lm``; in validation also its distance from the best loss there is.

    Over the distribution q of a masked word given all shown ones: cross-entropy ``ce`` =
    -sum q log p, ``optimum`` = H(q), ``kl`` = ce - optimum, ``off_grammar`` = mass that p gives to
    entries that are no words of the grammar, ``agree`` = whether p and q have the same top word;
    ``nll`` is the loss on the words themselves. All in nats, as mean over sentences (``_macro``)
    and over positions (``_micro``: sentences count by their words), each with its standard error
    over sentences (``_se``).
    """

    def __init__(self, cfg: MaskedLmTruthConfig, task: Task) -> None:
        super().__init__(task)
        self.loss_unit = BITS_A_TOKEN
        if not cfg.grammar:
            raise ConfigError("--criterion masked_lm_truth needs --grammar, the file of the source")
        mask = getattr(task, "mask_idx", None)
        if mask is None:
            raise ConfigError("--criterion masked_lm_truth needs a task that masks words")
        self.mask, self.soft_targets = mask, cfg.soft_targets
        self.truth = Truth(load_source(cfg.grammar), task.source_dictionary, mask)

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of masked positions.

        Raises:
            ConfigError: if a predicted word is not hidden by the mask.
            DataError: if the batch does not hold sentences of the grammar, one a row.
        """
        positions_N = predicted_positions(sample, self.padding_idx)
        target_N = sample["target"].reshape(-1)[positions_N]
        log_p_NV = table_predictions(model, sample, positions_N, masked_tokens=True).log_probs()
        loss_N = -log_p_NV.gather(1, target_N[:, None])[:, 0]
        logging_output: LoggingOutput = {
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": len(positions_N),
        }
        if self.soft_targets or not model.training:
            q_NW, length_N = self._truth(sample, positions_N)
            ids_W = torch.from_numpy(self.truth.ids_W).to(log_p_NV.device)
            if self.soft_targets and model.training:
                q = torch.from_numpy(q_NW).to(log_p_NV)
                loss_N = -(q * log_p_NV[:, ids_W]).sum(dim=1)
            else:
                figures = self._figures(log_p_NV, loss_N, q_NW, length_N)
                rows_N = (positions_N // sample["target"].shape[1]).cpu().numpy()
                logging_output["_truth"] = _by_sentence(figures, rows_N).to(loss_N.device)
                lost_NW = (log_p_NV[:, ids_W] < LOWEST).cpu().numpy() & (q_NW > 0)
                logging_output["clamped"] = int(lost_NW.sum())
        loss = loss_N.sum()
        logging_output["loss"] = loss.detach()
        return loss if reduce else loss_N, len(positions_N), logging_output

    def _truth(self, sample: Sample, positions_N: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the true distributions q_NW, and the words of each position's sentence."""
        shown_BT = sample["net_input"]["src_tokens"].cpu().numpy()
        places_N = positions_N.cpu().numpy()
        if (shown_BT.reshape(-1)[places_N] != self.mask).any():
            raise ConfigError(
                "the truth is known for words that are hidden by <mask>: set "
                "--leave-unmasked-prob 0 --random-token-prob 0"
            )
        q_BTW, _, length_B = self.truth.conditionals(shown_BT)
        q_NW = q_BTW.reshape(-1, q_BTW.shape[2])[places_N]
        if not np.isfinite(q_NW).all():
            raise ConfigError(
                "a sentence has words that the grammar never puts together; was the text drawn "
                "from another one?"
            )
        return q_NW, length_B[places_N // shown_BT.shape[1]]

    def _figures(
        self, log_p_NV: Tensor, nll_N: Tensor, q_NW: np.ndarray, length_N: np.ndarray
    ) -> np.ndarray:
        """Return the figures of every position, float64 (N, COLUMNS)."""
        log_p = log_p_NV.detach().double().cpu().numpy()
        ids_W = self.truth.ids_W
        log_p_NW = log_p[:, ids_W]
        ce_N = -(q_NW * np.maximum(log_p_NW, LOWEST)).sum(axis=1)
        optimum_N = entropies(q_NW)
        off_N = 1 - np.exp(log_p_NW).sum(axis=1)
        agree_N = log_p.argmax(axis=1) == ids_W[q_NW.argmax(axis=1)]
        nll = nll_N.detach().double().cpu().numpy()
        return np.stack(
            [length_N, ce_N, ce_N - optimum_N, optimum_N, nll, off_N, agree_N], axis=1
        ).astype(np.float64)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the loss in bits, its perplexity, and the figures of the class in nats."""
        total = totals(logging_outputs, "_truth")
        log_predicted(total)
        tables = [log["_truth"] for log in logging_outputs if "_truth" in log]
        if not tables:
            return
        metrics.log_concat_tensor("_truth", torch.cat([table.cpu() for table in tables]))
        metrics.log_scalar_sum("clamped", total.get("clamped", 0))
        for column in range(1, len(COLUMNS)):
            for place, suffix in enumerate(("macro", "macro_se", "micro", "micro_se")):
                metrics.log_derived(f"{COLUMNS[column]}_{suffix}", _mean_of(column, place))


def _by_sentence(figures: np.ndarray, rows_N: np.ndarray) -> Tensor:
    """Return the means over the positions of every sentence, fp32 (S, COLUMNS)."""
    _, place_N, count_S = np.unique(rows_N, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count_S), figures.shape[1]))
    np.add.at(sums, place_N, figures)
    return torch.from_numpy(sums / count_S[:, None]).float()


def _mean_of(column: int, place: int) -> Any:
    def compute(meters: Mapping[str, Any]) -> float:
        table = meters["_truth"].tensor.double().numpy()
        return means(table[:, 0] * table[:, column], table[:, 0])[place]

    return compute
