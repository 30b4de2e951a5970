"""The loss whose curvature is measured, in a form that can be differentiated twice.

Shapes: N targets, C channels, V classes, R targets of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.base import FairseqCriterion, predicted_positions
from fairseq.criterions.distillation import DistillationCriterion
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.heads import Projection
from fairseq.modules.predictions import predict
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.protocols import Sample

# Elements of the logits of one chunk: 64 MB in fp32.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Prediction:
    """Logits of N targets: ``hidden @ weight^T + bias``, or ``hidden`` itself without a weight."""

    target_N: Tensor
    hidden_NC: Tensor
    weight_VC: Tensor | None = None
    bias_V: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return what the logits are computed from."""
        parts = (self.hidden_NC, self.weight_VC, self.bias_V)
        return [part for part in parts if part is not None]

    def losses(self, target_N: Tensor) -> Tensor:
        """Return ``-log p(target)`` in nats, (N,), twice differentiable; keeps the logits."""
        if self.weight_VC is None:
            return F.cross_entropy(self.hidden_NC, target_N, reduction="none")
        return linear_cross_entropy(
            self.hidden_NC, self.weight_VC, target_N, bias_V=self.bias_V, backend="reference"
        ).loss_N

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, their logits_RV), a bounded number of elements at a time."""
        classes = (self.hidden_NC if self.weight_VC is None else self.weight_VC.t()).shape[1]
        step = max(1, CHUNK_ELEMENTS // classes)
        for start in range(0, len(self.hidden_NC), step):
            rows = slice(start, start + step)
            hidden_RC = self.hidden_NC[rows]
            if self.weight_VC is not None:
                hidden_RC = F.linear(hidden_RC, self.weight_VC, self.bias_V)
            yield rows, hidden_RC

    @torch.no_grad()
    def mean_loss(self) -> Tensor:
        """Return the mean of ``-log p(target)`` in nats, without keeping the logits."""
        total = self.hidden_NC.new_zeros(())
        for rows, logits_RV in self.chunks():
            total += F.cross_entropy(logits_RV, self.target_N[rows], reduction="sum")
        return total / max(1, len(self.target_N))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> Tensor:
        """Return labels drawn from the model's own distribution, int64 (N,)."""
        parts = [
            logits_RV.softmax(-1).multinomial(1, generator=generator)[:, 0]
            for _, logits_RV in self.chunks()
        ]
        return torch.cat(parts) if parts else self.target_N

    @torch.no_grad()
    def curvature_product(self, tangents: list[Tensor]) -> list[Tensor]:
        """Return ``J_z^T (H_z / N) J_z t`` for the logits z and one tangent of each tensor.

        ``H_z = diag(p) - p p^T`` is the Hessian of the cross-entropy in the logits: it knows no
        labels. Neither it nor all logits are ever kept.

        Source: Schraudolph 2002, section 3; Martens 2020, section 8.
        """
        count = max(1, len(self.hidden_NC))
        results = [torch.zeros_like(part) for part in self.tensors()]
        for rows, logits_RV in self.chunks():
            tangent_RV = tangents[0][rows]
            if self.weight_VC is not None:
                tangent_RV = F.linear(tangent_RV, self.weight_VC)
                tangent_RV += F.linear(self.hidden_NC[rows], tangents[1])
            if self.bias_V is not None:
                tangent_RV += tangents[2]
            p_RV = logits_RV.softmax(-1)
            change_RV = p_RV * tangent_RV
            change_RV -= p_RV * change_RV.sum(-1, keepdim=True)
            change_RV /= count
            if self.weight_VC is None:
                results[0][rows] = change_RV
                continue
            results[0][rows] = change_RV @ self.weight_VC
            results[1].addmm_(change_RV.t(), self.hidden_NC[rows])
            if self.bias_V is not None:
                results[2] += change_RV.sum(0)
        return results


class Objective:
    """A model and its loss, made fit for second derivatives.

    Attention becomes explicit (the fused kernels have no second derivative), the loss keeps its
    logits (the chunked one has none either), dropout is off.

    Args:
        model: the model, changed in place.
        criterion: its loss, changed in place.

    Attributes:
        name: of the loss.
    """

    def __init__(self, model: BaseFairseqModel, criterion: FairseqCriterion) -> None:
        self.model, self.criterion = model.eval(), criterion.eval()
        # an operator of growth keeps what computes apart from its children
        hidden: list[nn.Module] = getattr(model, "hidden_modules", list)()
        for module in (*model.modules(), *hidden, *criterion.modules()):
            if isinstance(getattr(module, "backend", None), str):
                name = "reference" if module is criterion else "explicit"
                setattr(module, "backend", name)  # noqa: B010
        criterion.requires_grad_(False)
        distilled = isinstance(criterion, DistillationCriterion)
        self.name = "the student's own" if distilled else type(criterion).__name__

    def loss(self, sample: Sample) -> tuple[Tensor, int]:
        """Return the criterion's mean loss per target in nats, and the number of targets.

        Raises:
            ConfigError: if something is in training mode: dropout would make the loss random.
        """
        if any(module.training for module in self.model.modules()):
            raise ConfigError("the model is in training mode, with dropout; call model.eval()")
        total, count, _ = self.criterion(self.model, sample)
        return total / max(1, count), int(count)

    @torch.no_grad()
    def compare(self, sample: Sample) -> tuple[bool, bool]:
        """Hold the criterion against the labels' cross-entropy: (same loss, same curvature).

        The curvature in the logits is the same where the targets are distributions that know
        nothing of the model: then the loss is linear in its log-probabilities.
        """
        prediction = self.prediction(sample)
        loss, count = self.loss(sample)
        if count != len(prediction.target_N):
            return False, False
        same = math.isclose(float(loss), float(prediction.mean_loss()), rel_tol=1e-4, abs_tol=1e-6)
        return same, same or self.criterion.fixed_targets

    def prediction(self, sample: Sample) -> Prediction:
        """Return the logits of a batch, as what they are computed from, and the targets.

        Raises:
            UnsupportedError: for a regression, which has no classes, and for losses with terms
                beside the likelihood of the targets.
            ConfigError: if the model has no head.
        """
        if getattr(self.criterion, "regression_target", False):
            raise UnsupportedError(
                "a regression has no distribution of labels: use --matrix hessian --labels data"
            )
        if term := getattr(self.criterion, "beside_likelihood", ""):
            raise UnsupportedError(
                f"the loss is {term}: the Gauss-Newton and the Fisher matrix and drawn labels are "
                "those of the likelihood of the targets. Measure the Hessian, or the likelihood by "
                "--model-overrides \"{'criterion': 'masked_lm'}\" (cross_entropy for causal models)"
            )
        head = getattr(self.criterion, "head", None)
        target = sample["target"].reshape(-1)
        if isinstance(head, str):
            head_only = {"features_only": True, "classification_head_name": head}
            # a ranking has a score for each of several inputs, a classification one input
            options = range(1, getattr(self.criterion, "options", 0) + 1)
            named: Mapping[str, Any] = sample
            inputs = [named[f"net_input{n}"] for n in options] or [sample["net_input"]]
            parts = [self.model(**net_input, **head_only)[0] for net_input in inputs]
            return Prediction(target, torch.cat(parts, 1))
        positions_N = predicted_positions(sample, self.criterion.padding_idx)
        target_N = target[positions_N]
        predictions = predict(self.model, sample, positions_N)
        if isinstance(predictions, Projection):
            return Prediction(target_N, *predictions)
        return Prediction(target_N, predictions.logits())
