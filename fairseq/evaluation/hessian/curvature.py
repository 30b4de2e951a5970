"""Products of the Hessian, or of the Gauss-Newton matrix, with vectors; gradients of every target.

Shapes: P parameters, K vectors, N targets, R of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.evaluation.hessian.objective import Objective, Sample
from fairseq.evaluation.hessian.parameters import ParameterSet
from fairseq.rng import derive_seed

# Numbers in the gradients of the targets that are computed at once.
GRADIENT_ELEMENTS = 1 << 25


def gradient(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    again: bool = False,
    batched: bool = False,
) -> list[Tensor]:
    """Return gradients, zero where nothing depends on an input; keep the graph.

    Args:
        outputs: what is differentiated.
        inputs: the variables.
        grad_outputs: weight of each output, one if None.
        again: the gradients can be differentiated.
        batched: the weights have one more dimension in front, and so have the gradients.
    """
    if batched and grad_outputs is not None and len(grad_outputs[0]) == 1:  # vmap costs memory
        alone = gradient(outputs, inputs, [weight[0] for weight in grad_outputs], again)
        return [part[None] for part in alone]
    rows = (len(grad_outputs[0]),) if batched and grad_outputs is not None else ()
    kept = [number for number, output in enumerate(outputs) if output.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(inputs)
    if kept:
        gradients = torch.autograd.grad(
            [outputs[number] for number in kept],
            inputs,
            None if grad_outputs is None else [grad_outputs[number] for number in kept],
            retain_graph=True,
            create_graph=again,
            is_grads_batched=batched,
            allow_unused=True,
        )
    return [
        part.new_zeros(rows + part.shape) if computed is None else computed
        for part, computed in zip(inputs, gradients, strict=True)
    ]


class Curvature:
    """A matrix of second derivatives of the mean loss over fixed batches: vectors in, products out.

    Batches count by their number of targets. With labels of the model, those of a batch are drawn
    once and for all: the matrix does not change from product to product.

    Args:
        objective: the loss.
        parameters: the variables.
        samples: batches, on the device of the model.
        matrix: ``hessian``, or ``ggn``, the (generalised) Gauss-Newton matrix, which is the Fisher
            matrix and needs no labels.
        labels: of the ``hessian``: of the ``data``, or drawn from the ``model``.
        seed: of the draws.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: ParameterSet,
        samples: Sequence[Sample],
        matrix: str = "hessian",
        labels: str = "data",
        seed: int = 1,
    ) -> None:
        self.objective, self.parameters, self.samples = objective, parameters, samples
        self.matrix, self.labels, self.seed = matrix, labels, seed
        self.loss = float("nan")

    def products(self, vectors_KP: Tensor) -> Tensor:
        """Return the products with K vectors, shape (K, P); each batch runs forward once.

        Also sets ``loss``, the mean loss in nats per target of the labels.
        """
        compute = self._hessian if self.matrix == "hessian" else self._gauss_newton
        return self._mean(lambda number, sample: compute(number, sample, vectors_KP))

    def squared_gradients(self) -> Tensor:
        """Return the diagonal of ``mean_i g_i g_i^T`` over the gradients of all targets, (P,).

        With labels of the model its expectation is the diagonal of the Gauss-Newton matrix; with
        those of the data it is the empirical Fisher. Also sets ``loss``.
        """
        return self._mean(self._squares)

    def _mean(self, compute: Callable[[int, Sample], tuple[Tensor, float, int]]) -> Tensor:
        """Return the mean over batches by their targets of what ``compute`` gives; set ``loss``."""
        total: Tensor | None = None
        loss_sum, targets = 0.0, 0
        for number, sample in enumerate(self.samples):
            part, loss, count = compute(number, sample)
            total = count * part if total is None else total.add_(part, alpha=count)
            loss_sum, targets = loss_sum + count * loss, targets + count
        assert total is not None, "no batches"
        self.loss = loss_sum / max(1, targets)
        return total / max(1, targets)

    def product(self, vector_P: Tensor) -> Tensor:
        """Return the product with one vector."""
        return self.products(vector_P[None])[0]

    def _hessian(
        self, number: int, sample: Sample, vectors_KP: Tensor
    ) -> tuple[Tensor, float, int]:
        """Return the products of one batch, its loss and its number of targets.

        Source: Pearlmutter 1994: ``H v`` is the gradient of ``gradient . v``.
        """
        if self.labels == "data":
            loss, count = self.objective.loss(sample)
        else:
            losses_N = self._losses(number, sample)
            count = len(losses_N)
            loss = losses_N.sum() / max(1, count)
        tensors, flatten = self.parameters.tensors, self.parameters.flatten
        slope_P = flatten(gradient([loss], tensors, again=True))
        rows = gradient([slope_P], tensors, [vectors_KP], batched=True)
        return self.parameters.flatten_rows(rows), float(loss.detach()), count

    def _gauss_newton(
        self, number: int, sample: Sample, vectors_KP: Tensor
    ) -> tuple[Tensor, float, int]:
        """Return the products ``J^T H_z J v`` of one batch, its loss and number of targets.

        ``J v`` is the derivative in u of ``(J^T u) . v``, which is linear in u: two backward passes
        do what forward mode would, through any model that can be differentiated twice.
        """
        prediction = self.objective.prediction(sample)
        tensors, flatten = self.parameters.tensors, self.parameters.flatten
        outputs = prediction.tensors()
        duals = [torch.zeros_like(part, requires_grad=True) for part in outputs]
        pulled_P = flatten(gradient(outputs, tensors, duals, again=True))
        tangents = gradient([pulled_P], duals, [vectors_KP], batched=True)
        pushed = [
            prediction.curvature_product([part[row] for part in tangents])
            for row in range(len(vectors_KP))
        ]
        weights = [torch.stack(parts) for parts in zip(*pushed, strict=True)]
        rows = gradient(outputs, tensors, weights, batched=True)
        loss = float(prediction.mean_loss())
        return self.parameters.flatten_rows(rows), loss, len(prediction.target_N)

    def _losses(self, number: int, sample: Sample) -> Tensor:
        """Return the losses of the targets of a batch, those of the data or drawn, (N,)."""
        prediction = self.objective.prediction(sample)
        if self.labels == "data":
            return prediction.losses(prediction.target_N)
        generator = torch.Generator(prediction.target_N.device)
        generator.manual_seed(derive_seed(self.seed, "hessian labels", number))
        return prediction.losses(prediction.draw(generator))

    def _squares(self, number: int, sample: Sample) -> tuple[Tensor, float, int]:
        """Return the mean squared gradient of the targets of a batch, its loss, their number."""
        losses_N, tensors = self._losses(number, sample), self.parameters.tensors
        step = max(1, min(64, GRADIENT_ELEMENTS // self.parameters.size))
        total_P = tensors[0].new_zeros(self.parameters.size)
        count = len(losses_N)
        for start in range(0, count, step):
            rows = torch.arange(start, min(start + step, count), device=losses_N.device)
            # one row of weights for each target: its gradient apart from those of the others
            units_RN = F.one_hot(rows, count).to(losses_N.dtype)
            parts = gradient([losses_N], tensors, [units_RN], batched=True)
            total_P += self.parameters.flatten_rows(parts).square().sum(0)
        return total_P / max(1, count), float(losses_N.detach().sum()) / max(1, count), count
