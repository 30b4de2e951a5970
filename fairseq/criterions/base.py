"""What a criterion is: model and batch in; a summed loss, its denominator and figures out."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fairseq.config.references import settle_alone
from fairseq.logging import metrics


class FairseqCriterion(nn.Module):
    """Base of every criterion.

    Attributes:
        task: the task it serves.
        padding_idx: target that is not predicted.
    """

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task
        dictionary = getattr(task, "target_dictionary", None)
        self.padding_idx = dictionary.pad() if dictionary is not None else -100

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add flags to ``parser``; criterions with a configuration dataclass need not."""

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> FairseqCriterion:
        """Build an instance; constructor arguments are filled by name.

        ``task``, ``cfg`` and every attribute of ``cfg`` are available. References to other
        sections that nobody has settled become the defaults they refer to.

        Raises:
            NotImplementedError: if an argument without default cannot be filled.
        """
        settle_alone(cfg)
        values: dict[str, Any] = {}
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise NotImplementedError(f"{cls.__name__}: *args and **kwargs cannot be filled")
            if parameter.name in ("task", "cfg"):
                values[parameter.name] = {"task": task, "cfg": cfg}[parameter.name]
            elif hasattr(cfg, parameter.name):
                values[parameter.name] = getattr(cfg, parameter.name)
            elif parameter.default is parameter.empty:
                raise NotImplementedError(
                    f"{cls.__name__}: nothing known about the argument '{parameter.name}'"
                )
        return cls(**values)

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Compute the loss of a batch.

        Returns:
            ``(loss, sample_size, logging_output)``: the loss is a sum over the batch, and the
            gradient is divided by the ``sample_size`` of the whole update.
        """
        raise NotImplementedError

    def prepare_update(self, samples: list[dict[str, Any]]) -> None:
        """See all micro-batches of this process before the first one of an update runs."""

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the figures of all processes."""
        metrics.log_scalar("loss", 0.0, weight=0)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Tell whether logging outputs may be added up before :meth:`reduce_metrics`."""
        return False


class LegacyFairseqCriterion(FairseqCriterion):
    """A criterion built from the flat Namespace, for old plug-ins."""

    def __init__(self, args: Any, task: Any) -> None:
        super().__init__(task)
        self.args = args

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> FairseqCriterion:
        """Build an instance from the Namespace."""
        return cls(cfg, task)
