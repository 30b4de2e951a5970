"""Distillation: a student learns from the data and from a teacher.

The gradient is that of ``sum_k alpha_k sum_i L_ki / n_k``: every term is averaged over its own
positions in the whole update, however it is split over micro-batches and processes.

Shapes: B batch, T time, C channels, N positions, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fairseq.criterions import register_criterion
from fairseq.criterions.base import (
    BITS_A_TOKEN,
    SummingCriterion,
    perplexity_of,
    predicted_positions,
    totals,
)
from fairseq.criterions.distillation_settings import (
    DistillationConfig,
    Stack,
    read_layer_map,
    weights_of_terms,
)
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import ConfigError, DataError, UnsupportedError
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from fairseq.modules.flops import TRAINING
from fairseq.modules.heads import Projection
from fairseq.modules.layer_choice import choose_layers
from fairseq.ops.hidden_distillation import (
    Relation,
    cosine_distance,
    direction_distance,
    relation_divergence,
)
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.ops.linear_distillation import SparseTeacher, linear_distillation
from fairseq.protocols import LoggingOutput, Model, Sample, Task

# Term -> which count it is divided by. The selected positions are those the divergence looks at.
_COUNTS = {
    "nll": "predicted",
    "ce": "selected",
    "mse": "selected",
    **dict.fromkeys(("cos", "pkd", "attention", "value"), "real"),
}
# What a run has of a teacher -> which of its facts is the digest of that teacher.
_TEACHER_DIGEST = {"teacher": "sha256", "teacher_cache": "teacher_sha256"}
_IN_BITS = ("nll", "ce", "attention", "value")


class TeacherLike(Protocol):
    """What a teacher does; see :class:`fairseq.teacher.Teacher`."""

    facts: dict[str, str]
    model: Any

    def outputs(
        self, net_input: Mapping[str, Any], positions_N: Tensor | None, **wanted: Any
    ) -> tuple[Any, Any]:
        """Return the operands of the projection, and further outputs."""


class CacheLike(Protocol):
    """What stored outputs do; see :class:`fairseq.teacher.cache.TeacherCache`."""

    facts: dict[str, str]

    def lookup(
        self, net_input: Mapping[str, Any], positions_N: Tensor, pad: int, temperature: float
    ) -> SparseTeacher | None:
        """Return what is stored of these positions, None if it is not."""


@register_criterion("distillation", dataclass=DistillationConfig)
class DistillationCriterion(SummingCriterion):
    """A weighted sum of the student's own loss and of its distances from a teacher.

    Without a teacher (it is attached when a run is set up) only the student's loss is computed.

    Attributes:
        projections: learned maps from the student's width to the teacher's, where they differ.

    Raises:
        ConfigError: for settings that contradict each other.

    Sources: Hinton et al. 2015; Sanh et al. 2019 (DistilBERT), section 3; Sun et al. 2019 (PKD);
    Wang et al. 2020 (MiniLM).
    """

    def __init__(self, cfg: DistillationConfig, task: Task) -> None:
        super().__init__(task)
        self.loss_unit = BITS_A_TOKEN
        self.cfg = cfg
        self.masked = hasattr(task, "mask_idx")
        self.alphas = weights_of_terms(cfg, self.masked)
        self.layers = read_layer_map(cfg.layer_map)
        self.projections = nn.ModuleDict()
        self._teacher: TeacherLike | None = None
        self._cache: CacheLike | None = None
        self._totals: dict[str, float] | None = None
        self._extra_flops = 0

    # -- the teacher -----------------------------------------------------------------------------

    def wanted(self) -> set[str]:
        """Return what the terms need: ``teacher``, ``cache``, both or nothing.

        Raises:
            ConfigError: if they need a teacher and none is named.
        """
        needs = {name for name, alpha in self.alphas.items() if alpha and name != "nll"}
        stored = {"cache"} if self.cfg.teacher_cache and "ce" in needs else set()
        live = needs - {"ce"} if stored else needs
        if live and not self.cfg.teacher_path:
            raise ConfigError(
                f"--criterion distillation needs --teacher-path for the terms {sorted(live)}; put "
                "their weights to 0 to train without a teacher"
            )
        return stored | ({"teacher"} if live else set())

    def attach(self, model: Model, teacher: TeacherLike | None, cache: CacheLike | None) -> None:
        """Take over teacher and cache, and make the projections that unequal widths need.

        Raises:
            ConfigError: if a term cannot compare this student with this teacher.
        """
        # both are plain objects, so that nothing that walks over modules finds them
        self._teacher, self._cache = teacher, cache
        if teacher is None or not any(self.alphas[k] for k in ("cos", "pkd", "attention", "value")):
            return
        student, teacher_stack = Stack(model), Stack(teacher.model)
        if self.alphas["cos"]:
            self._project("features", student.features, teacher_stack.features)
        if self.alphas["pkd"]:
            self.layers = self.layers or dict(
                enumerate(choose_layers("spread", teacher_stack.layers, student.layers))
            )
            for student_layer, other in self.layers.items():
                if student_layer >= student.layers or other >= teacher_stack.layers:
                    raise ConfigError(
                        f"--layer-map {other}:{student_layer}: the teacher has "
                        f"{teacher_stack.layers} layers, the student {student.layers}, counted "
                        "from 0"
                    )
                self._project(f"layer{student_layer}", *(side.width_of(n) for side, n in (
                    (student, student_layer), (teacher_stack, other))))  # fmt: skip
        if self.alphas["attention"] or self.alphas["value"]:
            student.check_relations(teacher_stack, self.cfg.minilm_relation_heads)
        if student.drops_layers:
            raise ConfigError("terms of hidden layers need a student without layer drop")
        # MiniLM compares the relations of the last layers alone, which leaves the student free in
        # how many layers it has (section 3.1)
        self._last = student.layers - 1, teacher_stack.layers - 1

    def _project(self, name: str, student_width: int, teacher_width: int) -> None:
        if student_width != teacher_width:
            self.projections[name] = nn.Linear(student_width, teacher_width, bias=False)

    def _as_teacher(self, name: str, hidden_BTC: Tensor) -> Tensor:
        """Return hidden states in the width of the teacher's."""
        if name not in self.projections:
            return hidden_BTC
        linear: Any = self.projections[name]
        return linear(hidden_BTC.to(linear.weight.dtype))

    def facts(self) -> dict[str, Any]:
        """Return whose student this is."""
        parts = {"teacher": self._teacher, "teacher_cache": self._cache}
        return {name: dict(part.facts) for name, part in parts.items() if part is not None}

    def check_facts(self, saved: dict[str, Any]) -> None:
        """Refuse to go on with another teacher than the run began with, live or stored."""
        for name, now in self.facts().items():
            same = name in saved
            # what the run did not have yet must come from the teacher that it had
            for began in [name] if same else [other for other in _TEACHER_DIGEST if other in saved]:
                keys = _TEACHER_DIGEST[name], _TEACHER_DIGEST[began]
                key, old_key = ("sha256", "sha256") if same else keys
                before = saved[began].get(old_key)
                # caches of old checkpoints do not tell their teacher
                if before not in (None, now[key]):
                    raise ConfigError(
                        f"this run began with the {began.replace('_', ' ')} "
                        f"{saved[began].get('path')} (SHA-256 {before}), {now['path']} has "
                        f"{now[key]}: name the same one, or begin anew with --reset-optimizer"
                    )

    # -- one batch -------------------------------------------------------------------------------

    def prepare_update(self, samples: list[Sample]) -> None:
        """Count the positions of the whole update, on all processes."""
        counts = [
            sum(len(predicted_positions(s, self.padding_idx)) for s in samples),
            sum(s["ntokens"] for s in samples),
        ]
        if distributed_utils.get_world_size() > 1:
            device = distributed_utils.device_of_messages()
            # float64 holds whole numbers exactly, far beyond any count of tokens
            total_2 = torch.tensor(counts, dtype=torch.float64, device=device)
            counts = distributed_utils.all_reduce(total_2).tolist()
        self._totals = {"predicted": counts[0], "real": counts[1]}

    def forward(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """See the base class; ``reduce`` must be True, as the terms have different positions.

        ``sample_size`` is the number of predicted positions, by which the trainer divides; the loss
        is scaled so that each term is then divided by its own number.
        """
        if not reduce:
            raise UnsupportedError(
                "the terms of distillation have different positions: no reduce=False"
            )
        net_input, pad = sample["net_input"], self.padding_idx
        predicted_N = predicted_positions(sample, pad)
        stored = self._stored(sample, predicted_N, model.training)
        teacher = self._teacher
        at_logits = stored is not None or (
            teacher is not None and bool(self.alphas["ce"] or self.alphas["mse"])
        )
        positions_N, counted = predicted_N, "predicted"
        if self.masked and at_logits and not self.cfg.restrict_ce_to_mask:
            positions_N = net_input["src_tokens"].ne(pad).flatten().nonzero()[:, 0]
            counted = "real"
        counts = {"predicted": len(predicted_N), "real": sample["ntokens"]}
        counts["selected"] = counts[counted]
        scale = self._scales(counts, counted, model.training)
        operands, extra = model(
            **net_input, predicted_positions=positions_N, **self._requests(teacher, 0)
        )
        if not isinstance(operands, Projection):
            raise ConfigError("--criterion distillation needs a student with a table of all logits")
        teacher_operands, teacher_extra = None, dict[str, Any]()
        if teacher is not None:
            live = at_logits and stored is None
            teacher_operands, teacher_extra = teacher.outputs(
                net_input, positions_N if live else None, **self._requests(teacher, 1)
            )
        more = len(positions_N) - len(predicted_N)
        asked = len(positions_N) if teacher_operands is not None else 0
        self._count(model, net_input["src_tokens"], more, asked)
        target_N = sample["target"].reshape(-1)[positions_N]
        source = teacher_operands if stored is None else stored
        loss, sums = self._logit_terms(
            operands, source if at_logits else None, target_N, scale, model.training
        )
        if teacher is not None:
            for name, value_BT in self._hidden_terms(net_input, extra, teacher_extra):
                sums[name] = value_BT.sum()
                loss = loss + self.alphas[name] * scale["real"] * sums[name]
        log: LoggingOutput = {"ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
        log |= {"loss": loss.detach(), "sample_size": len(predicted_N)}
        for name, value in sums.items():
            log[f"{name}_sum"] = value.detach()
            # sums, not means: every term has a count of its own, by which they are divided in the
            # end
            log[f"{name}_weighted"] = self.alphas[name] * value.detach()
            log[f"{name}_count"] = counts[_COUNTS[name]]
        return loss, len(predicted_N), log

    def _count(self, model: Model, tokens_BT: Tensor, more: int, teacher_positions: int) -> None:
        """Note what was computed beyond the student's forward at the predicted positions.

        Args:
            model: the student.
            tokens_BT: the batch.
            more: positions projected beside the predicted ones.
            teacher_positions: positions that the teacher projected.
        """
        shape = model.flop_shape() if more and hasattr(model, "flop_shape") else None
        student_flops = 0 if shape is None else TRAINING * 2 * more * shape.predicted_weights
        # a teacher of another library does not tell
        tell = getattr(getattr(self._teacher, "model", None), "flops", None)
        self._extra_flops = student_flops + (
            0 if tell is None else tell(*tokens_BT.shape, teacher_positions) or 0
        )

    def extra_flops(self) -> int:
        """Return those of the teacher's forward, and of positions beside the predicted ones."""
        return self._extra_flops

    def _stored(self, sample: Sample, predicted_N: Tensor, training: bool) -> SparseTeacher | None:
        """Return what the cache holds of a batch; only validation may do without."""
        if self._cache is None:
            return None
        temperature = self.cfg.distillation_temperature
        stored = self._cache.lookup(sample["net_input"], predicted_N, self.padding_idx, temperature)
        if stored is None and training:
            raise DataError(
                f"--teacher-cache {self.cfg.teacher_cache} does not hold this batch: it was made "
                "of other data, blocks or masks (a cache of masked inputs holds the masks of the "
                "epochs it was made for)"
            )
        return stored

    def _scales(self, counts: dict[str, int], selected: str, training: bool) -> dict[str, float]:
        """Return what turns a mean over predicted positions into one over others."""
        # validation adds no gradients up, so that the counts of the batch itself will do
        totals = self._totals if training and self._totals else counts
        scale = {name: totals["predicted"] / max(1, totals[name]) for name in ("predicted", "real")}
        return {**scale, "selected": scale[selected]}

    def _requests(self, teacher: TeacherLike | None, side: int) -> dict[str, Any]:
        """Return what the student (0) or the teacher (1) is asked for beside logits."""
        asked: dict[str, Any] = {}
        if teacher is None:
            return asked
        if self.alphas["pkd"]:
            asked["return_all_hiddens"] = True
        if self.alphas["attention"] or self.alphas["value"]:
            asked["qkv_layers"] = (self._last[side],)
        return asked

    def _logit_terms(
        self,
        student: Projection,
        teacher: Projection | SparseTeacher | None,
        target_N: Tensor,
        scale: dict[str, float],
        training: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss at the logits, and the sums of its terms."""
        cfg, alphas = self.cfg, self.alphas
        if teacher is None:
            if training and not alphas["nll"]:
                # every parameter is used, as wrappers for several processes want
                return 0.0 * torch.stack([x.sum() for x in student if x is not None]).sum(), {}
            nll_N = linear_cross_entropy(
                student.hidden_NC, student.weight_VC, target_N, bias_V=student.bias_V,
                ignore_index=self.padding_idx, backend=cfg.loss_backend,
            ).loss_N  # fmt: skip
            nll = nll_N.sum()
            return alphas["nll"] * nll, {"nll": nll}
        result = linear_distillation(
            student, teacher, target_N,
            temperature=cfg.distillation_temperature,
            alpha_ce=alphas["ce"] * scale["selected"],
            alpha_lm=alphas["nll"],
            alpha_mse=alphas["mse"] * scale["selected"],
            divergence=cfg.divergence, jsd_beta=cfg.jsd_beta,
            ignore_index=self.padding_idx, backend=cfg.loss_backend,
        )  # fmt: skip
        sums = {"nll": result.nll_N.sum()}
        if alphas["ce"]:
            sums["ce"] = result.divergence_N.sum()
        if alphas["mse"]:
            sums["mse"] = result.mse_N.sum()
        return result.loss, sums

    def _hidden_terms(
        self, net_input: Any, student_extra: dict[str, Any], teacher_extra: dict[str, Any]
    ) -> list[tuple[str, Tensor]]:
        """Return the terms of hidden states as (name, values_BT), zero at pads."""
        pad_BT, alphas = net_input["src_tokens"].eq(self.padding_idx), self.alphas
        terms: list[tuple[str, Tensor]] = []
        if alphas["cos"]:
            mapped_BTC = self._as_teacher("features", student_extra["features"])
            terms.append(("cos", cosine_distance(mapped_BTC, teacher_extra["features"])))
        if alphas["pkd"]:
            layers = [
                direction_distance(
                    self._as_teacher(f"layer{mine}", _state(student_extra, mine)),
                    _state(teacher_extra, other),
                )
                for mine, other in self.layers.items()
            ]
            terms.append(("pkd", torch.stack(layers).sum(0)))
        if alphas["attention"] or alphas["value"]:
            qkv = student_extra["qkv"][self._last[0]], teacher_extra["qkv"][self._last[1]]
            # of (queries, keys, values): queries are related to keys, values to each other
            for name, left, right in (("attention", 0, 1), ("value", 2, 2)):
                if alphas[name]:
                    student, teacher = (Relation(side[left], side[right]) for side in qkv)
                    heads = self.cfg.minilm_relation_heads
                    value_BT = relation_divergence(
                        student, teacher, pad_BT, not self.masked, heads, net_input.get("documents")
                    )
                    terms.append((name, value_BT))
        return [(name, value_BT.masked_fill(pad_BT, 0.0)) for name, value_BT in terms]

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the objective, the student's own loss and every term, each by its own count.

        The objective, likelihoods and divergences are in bits, distances as they are.
        """
        total = totals(logging_outputs)
        names = [name for name in _COUNTS if total.get(f"{name}_count")]
        # the mean of a term is over its own count, so that batches weigh otherwise in each of them
        metrics.log_derived("loss", _objective, priority=10, round=3)
        for name in names:
            unit = math.log(2) if name in _IN_BITS else 1.0
            count = total[f"{name}_count"]
            metrics.log_scalar(f"_{name}", total[f"{name}_weighted"] / count / math.log(2), count)
            key = "nll_loss" if name == "nll" else f"loss_{name}"
            metrics.log_scalar(key, total[f"{name}_sum"] / count / unit, count, round=3)
        if "nll" in names:
            metrics.log_derived("ppl", perplexity_of("nll_loss"))


def _objective(meters: MetersDict) -> float:
    """Return the sum of the weighted means of all terms, in bits."""
    terms = [f"_{name}" for name in _COUNTS if f"_{name}" in meters]
    return float(sum(meters[term].smoothed_value for term in terms))


def _state(extra: dict[str, Any], layer: int) -> Tensor:
    """Return the output of a layer, (B, T, C); that of the last one after the final norm."""
    # the states begin with the embeddings, so layer n is state n + 1; they end before the final
    # norm, which the features have behind them
    states = extra["inner_states"]
    return extra["features"] if layer == len(states) - 2 else states[layer + 1].transpose(0, 1)
