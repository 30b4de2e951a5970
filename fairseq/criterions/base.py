"""What a criterion is: model and batch in; a summed loss, its denominator and figures out."""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from fairseq.config.references import settled_alone
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.modules.adaptive_softmax import AdaptiveProjection
from fairseq.modules.heads import Projection
from fairseq.modules.predictions import Output, Predictions, predict
from fairseq.protocols import LoggingOutput, Model, Sample, Settings, Task
from fairseq.utils import get_perplexity

if TYPE_CHECKING:
    from fairseq.criterions.distillation import CacheLike, TeacherLike


logger = logging.getLogger(__name__)


# units of logged losses, see FairseqCriterion.loss_unit
BITS_A_TOKEN, BITS_A_SENTENCE = "bits per predicted token", "bits per sentence"
COUNTS = ("nsentences", "ntokens", "sample_size")


@functools.cache
def warn_once(message: str) -> None:
    """Warn, the first time only."""
    logger.warning(message)


def log_aggregated(figures: Mapping[str, Any]) -> None:
    """Log what an ``aggregate_logging_outputs`` of old plug-ins returned, without the counts."""
    for name, value in figures.items():
        if name not in COUNTS:
            metrics.log_scalar(name, value, round=3)


class FairseqCriterion(nn.Module):
    """Base of every criterion.

    Attributes:
        task: the task it serves.
        padding_idx: target that is not predicted.
        sums_over_rows: whether a batch in two parts has the same loss; without it, running out of
            memory cannot be mended by smaller batches.
        runs_once: whether a batch is one run of the model; if not, gradients are averaged over
            processes after the backward pass, since DDP prepares for the latest run alone.
        fixed_targets: whether the loss is a mean cross-entropy against distributions that know
            nothing of the model: then its curvature in the logits is that of the labels'.
        loss_unit: unit of the loss in logs, for people; empty if it has none.
        beside_likelihood: what the loss has, in evaluation, beside the likelihood of the targets,
            for people; empty if nothing.
    """

    sums_over_rows = True
    runs_once = True
    fixed_targets = False
    loss_unit = ""
    beside_likelihood = ""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        dictionary = getattr(task, "target_dictionary", None)
        self.padding_idx = dictionary.pad() if dictionary is not None else -100

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add flags to ``parser``; criterions with a configuration dataclass need not."""

    @classmethod
    def build_criterion(cls, cfg: Settings, task: Task) -> FairseqCriterion:
        """Build an instance; constructor arguments are filled by name.

        ``task``, ``cfg`` and every attribute of ``cfg`` are available. References to other
        sections that nobody has settled become the defaults they refer to.

        Raises:
            NotImplementedError: if an argument without default cannot be filled.
        """
        cfg = settled_alone(cfg)
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
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Compute the loss of a batch.

        Args:
            model: the model.
            sample: the batch.
            reduce: return the sum over the batch; otherwise the loss of every target.

        Returns:
            ``(loss, sample_size, logging_output)``; the gradient is divided by the ``sample_size``
            of the whole update.
        """
        raise NotImplementedError

    def wanted(self) -> set[str]:
        """Return what it needs besides the model: ``teacher``, ``cache``, both or nothing."""
        return set()

    def attach(self, model: Model, teacher: TeacherLike | None, cache: CacheLike | None) -> None:
        """Take over what :meth:`wanted` named; see :mod:`fairseq.teacher`."""

    def prepare_sample(self, sample: Sample) -> Sample:
        """See a batch while it is on the host, and return it, perhaps with more in it."""
        return sample

    def prepare_update(self, samples: list[Sample]) -> None:
        """See all micro-batches of this process before the first one of an update runs."""

    def extra_flops(self) -> int:
        """Return the operations of the latest forward that the model itself did not do.

        Those of its backward are included; matrix products only, see :mod:`fairseq.modules.flops`.
        """
        return 0

    def facts(self) -> dict[str, Any]:
        """Return plain values that checkpoints keep, such as the digest of a file it relies on."""
        return {}

    def check_facts(self, saved: dict[str, Any]) -> None:
        """Raise if a run cannot go on because ``saved``, its earlier :meth:`facts`, differ."""

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None:
        """Log the figures of all processes; old plug-ins return them instead.

        Their static method ``aggregate_logging_outputs(logging_outputs)`` makes one dict of them.
        """
        aggregate = getattr(cls, "aggregate_logging_outputs", None)
        if aggregate is None:
            warn_once(f"{cls.__name__} has no reduce_metrics: its loss is logged as 0")
            metrics.log_scalar("loss", 0.0, weight=0)
            return
        log_aggregated(aggregate(logging_outputs))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Tell whether logging outputs may be added up before :meth:`reduce_metrics`."""
        return False


class SummingCriterion(FairseqCriterion):
    """A criterion whose figures are all sums, or (``_names`` with two dimensions) joined rows."""

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


class LegacyFairseqCriterion(FairseqCriterion):
    """A criterion built from the flat Namespace, for old plug-ins."""

    def __init__(self, args: Settings, task: Task) -> None:
        super().__init__(task)
        self.args = args

    @classmethod
    def build_criterion(cls, cfg: Settings, task: Task) -> FairseqCriterion:
        return cls(cfg, task)


LossBackend = Literal["auto", "reference", "chunked", "triton", "torch", "cce", "liger"]


def predicted_positions(sample: Sample, padding_idx: int) -> Tensor:
    """Return the flat (B * T) indices of the positions with a target, int64 of shape (N,).

    The collater ships them, so that the step neither searches nor waits; batches of foreign
    collaters are searched.
    """
    shipped = sample.get("predicted_positions")
    if shipped is not None:
        return shipped
    return sample["target"].reshape(-1).ne(padding_idx).nonzero()[:, 0]


def table_predictions(
    model: Model, sample: Sample, positions_N: Tensor, masked_tokens: bool = False
) -> Projection | Output:
    """Return what :func:`fairseq.modules.predictions.predict` does.

    Raises:
        ConfigError: if the model has an adaptive softmax, which has a criterion of its own.
    """
    return refuse_adaptive(predict(model, sample, positions_N, masked_tokens))


def refuse_adaptive(predictions: Predictions) -> Projection | Output:
    """Return the predictions, unless they are those of an adaptive softmax.

    Raises:
        ConfigError: if they are.
    """
    if isinstance(predictions, AdaptiveProjection):
        raise ConfigError("a model with adaptive softmax is trained with --criterion adaptive_loss")
    return predictions


def logged(
    sample: Sample, loss: Tensor, tokens: int, by_sentence: bool
) -> tuple[int, dict[str, Any]]:
    """Return the ``sample_size`` of a loss over so many tokens, and its logging output.

    Args:
        sample: the batch.
        loss: its sum, or the losses of all targets.
        tokens: how many targets it has.
        by_sentence: the gradient is divided by the number of sentences, not of targets.
    """
    sentences = sample.get("nsentences", len(sample["target"]))
    size = sentences if by_sentence else tokens
    figures = {"ntokens": tokens, "nsentences": sentences, "sample_size": size}
    return size, {"loss": loss.detach().sum(), **figures}


def totals(logging_outputs: list[LoggingOutput], *without: str) -> dict[str, Any]:
    """Return the sums of the figures of all processes, but for those named."""
    names = {name: None for log in logging_outputs for name in log if name not in without}
    return {name: sum(log.get(name, 0) for log in logging_outputs) for name in names}


def log_bits(key: str, nats: Any, count: Any) -> None:
    """Log the mean, in bits, of a sum in nats; 0 if nothing was counted."""
    metrics.log_scalar(key, nats / count / math.log(2) if count else 0.0, count, round=3)


def log_predicted(total: Mapping[str, Any]) -> None:
    """Log the loss in bits per predicted position, and its perplexity."""
    log_bits("loss", total.get("loss", 0), total.get("sample_size", 0))
    metrics.log_derived("ppl", perplexity_of("loss"))


def perplexity_of(key: str) -> Callable[[Any], float]:
    """Return a function of meters: two to the power of the average of ``key`` (in bits)."""
    return lambda meters: get_perplexity(meters[key].avg)
