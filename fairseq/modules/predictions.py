"""What a model predicts at some positions, whoever wrote the model.

Models of the house tell their last projection (``model.projection``), so that losses need not keep
logits; those of plug-ins may only put out logits, which their ``get_normalized_probs`` explains.

Shapes: B batch, T time, N positions, R some of them, C channels, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fairseq.modules.adaptive_softmax import AdaptiveProjection
from fairseq.modules.heads import Projection
from fairseq.protocols import Model, Sample


@dataclasses.dataclass(frozen=True)
class Output:
    """What a model that hides its projection put out.

    Attributes:
        output_NC: the first thing it returned: logits, or what it takes for them.
        model: explains the output by ``get_normalized_probs``; None if they are logits.
        rest: what else it returned.
        sample: the batch, if the model may look at it.
    """

    output_NC: Tensor
    model: Model | None = None
    rest: tuple[Any, ...] = (None,)
    sample: Sample | None = None

    def logits(self) -> Tensor:
        """Return what the model takes for logits, (N, V)."""
        return self.output_NC

    def log_probs(self, target_N: Tensor | None = None) -> Tensor:
        """Return ``log p`` of every word in nats, fp32 of shape (N, V).

        Some models of plug-ins want to see the targets, as an adaptive softmax may.
        """
        if self.model is None:
            return self.output_NC.float().log_softmax(-1)
        known: dict[str, Any] = {}
        if self.sample is not None and target_N is not None:
            known["sample"] = {**self.sample, "target": target_N[None]}
        net_output = (self.output_NC[None], *self.rest)
        return self.model.get_normalized_probs(net_output, log_probs=True, **known)[0]

    def losses(self, target_N: Tensor, backend: str = "auto") -> Tensor:
        """Return ``-log p(target)`` in nats, (N,); there is no choice of backend."""
        return -self.log_probs(target_N).gather(1, target_N[:, None])[:, 0]

    def rows(self, some: slice) -> Output:
        """Return the same for some of the positions."""
        return dataclasses.replace(self, output_NC=self.output_NC[some])


# each has logits(), log_probs(), losses(target_N, backend) and rows(slice)
Predictions: TypeAlias = "Projection | AdaptiveProjection | Output"


def tells_projection(model: Model) -> bool:
    """Tell whether a model can be asked for the operands of its last projection."""
    return hasattr(model, "projection")


def asks_hidden(model: Model) -> dict[str, Any]:
    """Return the keywords by which a model puts out what :func:`from_output` takes."""
    return {"features_only": True} if tells_projection(model) else {}


def from_output(model: Model, output_NC: Tensor, rest: tuple[Any, ...] = (None,)) -> Predictions:
    """Return what a model predicts, from what it put out when asked for :func:`asks_hidden`.

    Args:
        model: the model.
        output_NC: its output at the positions in question.
        rest: what else it returned.
    """
    if tells_projection(model):
        return _operands(model.projection(output_NC))
    return Output(output_NC, model, rest)


def predict(
    model: Model, sample: Sample, positions_N: Tensor, masked_tokens: bool = False
) -> Predictions:
    """Run a model and return what it predicts.

    Only these positions are projected on the vocabulary. All parameters are used inside the
    model's forward pass, as wrappers for several processes want.

    Args:
        model: the model, possibly wrapped.
        sample: a batch with ``net_input``.
        positions_N: flat (B * T) indices, int64, ascending.
        masked_tokens: ask models that hide their projection for the logits of these positions, as
            the masked-LM criterion of the original does; they may ignore it.
    """
    net_input = sample["net_input"]
    if tells_projection(model):
        return _operands(model(**net_input, predicted_positions=positions_N)[0])
    if not masked_tokens:
        output, *rest = _tuple(model(**net_input))
        return Output(output.flatten(0, 1)[positions_N], model, tuple(rest), sample)
    masked_BT = torch.zeros_like(sample["target"], dtype=torch.bool)
    masked_BT.view(-1)[positions_N] = True
    logits = _tuple(model(**net_input, masked_tokens=masked_BT))[0]
    return Output(logits.flatten(0, 1)[positions_N] if logits.dim() == 3 else logits)


def _operands(told: Any) -> Predictions:
    """Return what a projection gave; plug-ins may give three plain operands."""
    if isinstance(told, (Projection, AdaptiveProjection)):
        return told
    return Projection(*told)


def _tuple(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)
