"""Headless training: predict input embeddings among those of the batch, without a vocabulary head.

Shapes: N predicted positions, C channels, V rows of the table, M ids of the whole update, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.config.schema import FairseqDataclass, option
from fairseq.criterions import register_criterion
from fairseq.criterions.base import (
    BITS_A_TOKEN,
    SummingCriterion,
    log_bits,
    perplexity_of,
    predicted_positions,
    refuse_adaptive,
    totals,
)
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.modules.flops import TRAINING
from fairseq.modules.predictions import from_output
from fairseq.ops.anisotropy import mean_cosine
from fairseq.ops.contrastive_weight_tying import (
    Distinct,
    contrastive_weight_tying,
    distinct_ids,
)
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.protocols import LoggingOutput, Model, Sample, Task


@dataclass
class ContrastiveWeightTyingConfig(FairseqDataclass):
    """Settings of contrastive weight tying."""

    contrastive_weight: float = option(1.0, "weight of the contrastive loss", new=True, minimum=0)
    vocabulary_weight: float = option(
        0.0,
        "weight of the usual loss; above 0 the model keeps its vocabulary head",
        new=True,
        minimum=0,
    )
    contrastive_temperature: float = option(1.0, "scores are divided by this", new=True, above=0)
    contrastive_normalize: bool = option(False, "compare directions only", new=True)
    contrastive_symmetric: bool = option(
        False, "also find the position for each token, among those of the micro-batch", new=True
    )
    contrastive_projection: bool = option(
        False, "learn a linear map of the hidden states, the identity at first", new=True
    )
    contrastive_width: int = option(
        0, "channels of that map; set from the width of the model", new=True, minimum=0
    )
    duplicates: Literal["count", "once"] = option(
        "count", "negatives that occur several times count as often, or once", new=True
    )
    negatives: Literal["local", "global"] = option(
        "local", "those of the micro-batch, or of the whole update on all processes", new=True
    )
    extra_negatives: int = option(
        0,
        "in training, N more in each micro-batch, drawn from all words",
        new=True,
        minimum=0,
    )
    valid_vocabulary_loss: bool = option(
        True,
        "validation also reports the perplexity of the embedding table as a head",
        new=True,
        positive=True,
    )
    valid_anisotropy: bool = option(
        True,
        "validation also reports how alike the hidden states of each layer are (mean cosine)",
        new=True,
        positive=True,
    )


@register_criterion("contrastive_weight_tying", dataclass=ContrastiveWeightTyingConfig)
class ContrastiveWeightTyingCriterion(SummingCriterion):
    """Sum over predicted positions of the contrastive loss, in nats; with the usual loss if asked.

    Every id but padding is predicted and told apart, also end-of-sentence.

    Attributes:
        projection: the learned map, None without one.

    Source: Godey et al. 2023 (Headless Language Models), section 3.
    """

    sums_over_rows = False  # rows are each other's negatives

    def __init__(self, cfg: ContrastiveWeightTyingConfig, task: Task) -> None:
        super().__init__(task)
        self.loss_unit = BITS_A_TOKEN
        if cfg.contrastive_weight < 0 or cfg.vocabulary_weight < 0:
            raise ConfigError("--contrastive-weight and --vocabulary-weight must not be negative")
        if cfg.contrastive_weight == cfg.vocabulary_weight == 0:
            raise ConfigError("--contrastive-weight and --vocabulary-weight are both 0: no loss")
        if cfg.extra_negatives < 0:
            raise ConfigError(f"--extra-negatives must not be negative, not {cfg.extra_negatives}")
        if cfg.contrastive_temperature <= 0:
            raise ConfigError(
                f"--contrastive-temperature must be positive, not {cfg.contrastive_temperature}"
            )
        self.beside_likelihood = "contrastive weight tying" if cfg.contrastive_weight else ""
        self.runs_once = not cfg.vocabulary_weight  # the head is asked after the run
        self.cfg = cfg
        self.backend = "auto"  # reference where second derivatives are taken
        self.projection: nn.Linear | None = None
        if cfg.contrastive_projection:
            self.projection = nn.Linear(cfg.contrastive_width, cfg.contrastive_width, bias=False)
            # the identity: training starts where it would without the map
            nn.init.eye_(self.projection.weight)
        self._ids_M: Tensor | None = None
        self._extra_flops = 0

    def prepare_sample(self, sample: Sample) -> Sample:
        """Look for the distinct targets on the host: a GPU would have to be waited for."""
        others = self.cfg.negatives == "global" or self.cfg.extra_negatives
        if others or "predicted_positions" not in sample:
            return sample
        target_N = sample["target"].reshape(-1)[sample["predicted_positions"]]
        return {**sample, "distinct_targets": distinct_ids(target_N)}

    def prepare_update(self, samples: list[Sample]) -> None:
        """Gather the ids that all micro-batches of all processes predict; never embeddings."""
        self._ids_M = None
        if self.cfg.negatives == "global":
            targets = [s["target"][s["target"] != self.padding_idx] for s in samples]
            device = targets[0].device if targets else distributed_utils.device_of_messages()
            # a process that has run out of batches has no ids, but must take part in the exchange
            own_M = torch.cat(targets) if targets else torch.zeros(0, dtype=torch.int64)
            # ids travel as float64, as all figures do between processes, and are exact in it
            rows = own_M.double()[:, None] if len(own_M) else None
            self._ids_M = distributed_utils.concat_over_processes(rows, device).flatten().long()

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``sample_size`` is the number of predicted positions.

        Raises:
            ConfigError: if the model does not tell its table of input embeddings.
        """
        if not hasattr(model, "embedding_table"):
            raise ConfigError(
                f"--criterion contrastive_weight_tying cannot train {type(model).__name__}: it has "
                "no method embedding_table"
            )
        cfg = self.cfg
        positions_N = predicted_positions(sample, self.padding_idx)
        target_N = sample["target"].reshape(-1)[positions_N]
        probes = cfg.valid_anisotropy and not model.training
        features_BTC, extra = model(
            **sample["net_input"],
            features_only=True,
            **({"return_all_hiddens": True} if probes else {}),
        )
        hidden_NC = features_BTC.flatten(0, 1).index_select(0, positions_N)
        mapped_NC = hidden_NC if self.projection is None else self.projection(hidden_NC)
        table_VC = model.embedding_table()
        negatives_M = self._negatives(target_N, len(table_VC), model.training)
        told = sample.get("distinct_targets")
        result = contrastive_weight_tying(
            mapped_NC,
            table_VC,
            target_N,
            negatives_M=negatives_M,
            distinct=Distinct(*told) if told and negatives_M is None else None,
            temperature=cfg.contrastive_temperature,
            normalize=cfg.contrastive_normalize,
            duplicates=cfg.duplicates,
            symmetric=cfg.contrastive_symmetric,
            loss_backend=self.backend,
        )
        entries = result.negatives * table_VC.shape[1] * (2 if cfg.contrastive_symmetric else 1)
        entries += 0 if self.projection is None else self.projection.weight.numel()
        self._extra_flops = TRAINING * 2 * len(positions_N) * entries
        loss_N = cfg.contrastive_weight * result.loss_N
        log = {
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": len(positions_N),
            "ncorrect": result.right_N.sum(),
            "negatives": result.negatives * len(positions_N),
        }
        if cfg.vocabulary_weight:
            # from the states before the map, which serves the contrast alone
            predictions = refuse_adaptive(from_output(model, hidden_NC))
            whole_N = predictions.losses(target_N, self.backend)
            loss_N = loss_N + cfg.vocabulary_weight * whole_N
            log["contrastive_loss"] = result.loss_N.detach().sum()
            log["vocabulary_loss"] = whole_N.detach().sum()
        elif not model.training and cfg.valid_vocabulary_loss:
            log["vocabulary_loss"] = self._table_loss(mapped_NC, table_VC, target_N).sum()
        if probes:
            log |= _anisotropy(extra["inner_states"], sample, self.padding_idx)
        loss = loss_N.sum()
        log["loss"] = loss.detach()
        return loss if reduce else loss_N, len(positions_N), log

    def extra_flops(self) -> int:
        """Return those of the scores of all distinct negatives, and of the learned map."""
        return self._extra_flops

    def _table_loss(self, hidden_NC: Tensor, table_VC: Tensor, target_N: Tensor) -> Tensor:
        """Return the cross-entropy of the table as a head, in nats, (N,)."""
        hidden_NC, table_VC = hidden_NC.float(), table_VC.float()
        if self.cfg.contrastive_normalize:
            hidden_NC, table_VC = F.normalize(hidden_NC, dim=-1), F.normalize(table_VC, dim=-1)
        scale = self.cfg.contrastive_temperature
        return linear_cross_entropy(hidden_NC / scale, table_VC, target_N).loss_N

    def _negatives(self, target_N: Tensor, rows: int, training: bool) -> Tensor | None:
        """Return the ids to tell apart; None for those of the micro-batch alone."""
        ids_M = target_N
        if training and self._ids_M is not None:
            # the filler of a process that has run out of batches is not among them
            filler = target_N[~torch.isin(target_N, self._ids_M)]
            ids_M = torch.cat([self._ids_M, filler])
        if training and self.cfg.extra_negatives:  # validation must not depend on a draw
            extra = torch.randint(rows, (self.cfg.extra_negatives,), device=target_N.device)
            ids_M = torch.cat([ids_M, extra])
        return None if ids_M is target_N else ids_M

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the loss in bits, the accuracy among the negatives, and how many there were."""
        total = totals(logging_outputs)
        size = total.get("sample_size", 0)
        log_bits("loss", total.get("loss", 0), size)
        if not size:
            return
        metrics.log_scalar("accuracy", 100.0 * total["ncorrect"] / size, size, round=1)
        metrics.log_scalar("negatives", total["negatives"] / size, size, round=1)
        for key in ("contrastive_loss", "vocabulary_loss"):
            if key in total:
                log_bits(key, total[key], size)
        if "vocabulary_loss" in total:
            metrics.log_derived("ppl", perplexity_of("vocabulary_loss"))
        places = total.get("cosine_places", 0)
        if places:
            for key in [key for key in total if key.startswith("cosine_l")]:
                metrics.log_scalar(f"avg_{key}", total[key] / places, places, round=3)


def _anisotropy(states_LTBC: list[Tensor], sample: Sample, pad: int) -> dict[str, Any]:
    """Return the mean cosine of each layer's states in this batch, times its number of tokens."""
    kept_BT = sample["net_input"]["src_tokens"] != pad
    places = int(kept_BT.sum())
    places = places if places > 1 else 0  # one alone has no pair
    cosines = {
        f"cosine_l{number}": (
            mean_cosine(state_TBC.transpose(0, 1)[kept_BT]) * places if places else 0.0
        )
        for number, state_TBC in enumerate(states_LTBC)
    }
    return {"cosine_places": places, **cosines}
