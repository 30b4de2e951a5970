"""Measuring a checkpoint: what fairseq-hessian does.

Shapes: P parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.catalog import HESSIAN_LABELS, HESSIAN_MATRICES, HESSIAN_METHODS, HESSIAN_VECTORS
from fairseq.errors import ConfigError, DataError, did_you_mean
from fairseq.evaluation.hessian.batches import Batches, open_checkpoint
from fairseq.evaluation.hessian.curvature import Curvature
from fairseq.evaluation.hessian.estimators import (
    Mean,
    draws,
    hutch_plus_plus,
    lanczos,
    whole_matrix,
)
from fairseq.evaluation.hessian.objective import Objective, Sample
from fairseq.evaluation.hessian.parameters import ParameterSet
from fairseq.logging.progress_bar import BaseProgressBar, progress_bar
from fairseq.rng import derive_seed

# A matrix of 200 MB in fp64.
EXACT_LIMIT = 5000
# A standard error of fewer values is too rough to stop on.
FEWEST = 10
FIXED = ("hutch++", "exact", "lanczos")
# They share a forward pass, and each needs the memory of a backward pass.
VECTORS_AT_ONCE = 16
Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured and how.

    Attributes:
        method: one of ``HESSIAN_METHODS``; ``ggn`` is ``hutchinson`` of the Gauss-Newton matrix.
        matrix: ``hessian`` or ``ggn``.
        labels: ``data``, or ``model``: drawn from the model's distribution; None for the method's
            own: ``model`` for ``fisher``, else ``data``.
        vector: ``rademacher`` or ``gaussian`` probes.
        params: ``all``, ``paper`` or a regular expression.
        probes: how many at most; None for the method's own number.
        rel_se: stop when the standard error is below this share of the trace; None for never.
        batch_size: samples of a batch.
        sentences: measure on so many samples, the same for every probe, instead of a new batch for
            each; None for new ones (methods that need a fixed matrix: 16 batches).
        subset: of the data.
        steps: of Lanczos.
        top: eigenvalues to print, from either end.
        double: compute in fp64.
        residual: also estimate the Gauss-Newton trace, and the rest ``Tr H - Tr G``.
        seed: of batches, probes and labels.
    """

    method: str = "hutchinson"
    matrix: str = "hessian"
    labels: str | None = None
    vector: str = "rademacher"
    params: str = "all"
    probes: int | None = None
    rel_se: float | None = None
    batch_size: int = 16
    sentences: int | None = None
    subset: str = "valid"
    steps: int = 40
    top: int = 5
    double: bool = False
    residual: bool = False
    seed: int = 1

    def settled(self) -> Settings:
        """Return the settings with what follows from them.

        Raises:
            ConfigError: for an unknown name or a number out of range.
        """
        values = dict(vars(self))
        values["labels"] = self.labels or ("model" if self.method == "fisher" else "data")
        for name, known in (
            ("method", HESSIAN_METHODS), ("matrix", HESSIAN_MATRICES),
            ("labels", HESSIAN_LABELS), ("vector", HESSIAN_VECTORS),
        ):  # fmt: skip
            if values[name] not in known:
                meant = did_you_mean(values[name], known)
                raise ConfigError(f"--{name} {values[name]}{meant}: choose {', '.join(known)}")
        if self.method == "ggn":
            values |= {"method": "hutchinson", "matrix": "ggn"}
        if self.probes is None:
            values["probes"] = HESSIAN_METHODS[self.method]
        if self.method in FIXED and self.sentences is None:
            values["sentences"] = 16 * self.batch_size
        for name, least in (
            ("probes", 0), ("batch_size", 1), ("sentences", 1), ("steps", 1), ("top", 1),
            ("seed", 0),
        ):  # fmt: skip
            if values[name] is not None and values[name] < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}")
        # each third of hutch++ needs two products, as a standard error needs two values
        least = {"exact": 0, "hutch++": 6}.get(self.method, 2)
        if values["probes"] < least:
            raise ConfigError(f"--method {self.method} needs --probes of at least {least}")
        if self.rel_se is not None and not self.rel_se > 0:
            raise ConfigError("--rel-se must be positive")
        if self.rel_se is not None and self.method in FIXED:
            raise ConfigError(f"--rel-se: --method {self.method} does not stop early")
        if self.method == "fisher" and self.matrix == "ggn":
            raise ConfigError("--method fisher has a matrix of its own; leave --matrix out")
        if self.residual and (values["method"], values["matrix"]) != ("hutchinson", "hessian"):
            raise ConfigError("--residual belongs to --method hutchinson of the Hessian")
        return Settings(**values)


def measure(flat: Mapping[str, Any], settings: Settings, log_format: str | None = None) -> Result:
    """Measure a checkpoint.

    Args:
        flat: flat settings as for :func:`fairseq.hub.load.load_by_settings`: ``path``, ``data``,
            and what should differ from the checkpoint.
        settings: what is measured and how.
        log_format: of the progress; see :func:`fairseq.logging.progress_bar.progress_bar`.

    Returns:
        ``trace``, its ``se`` and 95 % ``interval`` (NaN where nothing is estimated), ``blocks``,
        ``convention`` (what the numbers are the trace of), ``loss`` in nats per target; with
        ``eigenvalues`` and ``spectrum`` where the method knows them; ``interrupted`` if Ctrl-C
        ended it after fewer probes; ``values``, every probe's own
        estimate, to be pooled with those of other runs.

    Raises:
        ConfigError: for settings that contradict each other or the model.
        DataError: if there are no data, or numbers are not finite.
    """
    settings = settings.settled()
    objective, task, config, device = open_checkpoint(flat, settings.double)
    parameters = ParameterSet(objective.model, settings.params)
    batches = Batches(task, config, objective.model, settings.subset, settings.seed, device)
    return Measurement(objective, parameters, batches, settings, log_format).run()


class Measurement:
    """One measurement of a loss over batches; see :func:`measure`."""

    def __init__(
        self,
        objective: Objective,
        parameters: ParameterSet,
        batches: Batches,
        settings: Settings,
        log_format: str | None = "none",
    ) -> None:
        self.objective, self.parameters, self.batches = objective, parameters, batches
        self.settings, self.log_format = settings, log_format
        self.fixed: list[Sample] = []
        if settings.sentences is not None:
            self.fixed = batches.fixed(settings.sentences, settings.batch_size)
        self.plain = True
        if settings.residual or self._of_labels():
            sample = self.fixed[0] if self.fixed else batches.draw(0, settings.batch_size)
            self.plain, same_curvature = objective.compare(sample)
            if settings.residual and settings.labels == "data" and not same_curvature:
                raise ConfigError(
                    f"--residual takes the Gauss-Newton matrix of the labels' cross-entropy from "
                    f"the Hessian of another loss ({type(objective.criterion).__name__}): the "
                    "rest says nothing. Use --labels model, or leave --residual out"
                )
        self.draw = draws(
            settings.vector,
            parameters.size,
            parameters.tensors[0],
            lambda number: derive_seed(settings.seed, "hessian probe", number),
        )

    def run(self) -> Result:
        """Measure; return what :func:`measure` returns."""
        started = time.perf_counter()
        run = {"exact": self._exact, "hutch++": self._hutch_plus_plus, "lanczos": self._lanczos}
        result = run.get(self.settings.method, self._sampled)()
        settings, parameters = self.settings, self.parameters
        if not math.isfinite(result["trace"]):
            raise DataError("the trace is not finite: look at the loss, and try --dtype fp64")
        return {
            "convention": self.convention(),
            "method": settings.method,
            **result,
            "parameters": parameters.size,
            "block_sizes": parameters.by_block(torch.ones(parameters.size)),
            "settings": dict(vars(settings)),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _of_labels(self) -> bool:
        """Tell whether figures are of the distribution over labels, not of the criterion's loss."""
        settings = self.settings
        plain = (settings.matrix, settings.labels) == ("hessian", "data")
        return not plain or settings.method == "fisher"

    def convention(self) -> str:
        """Say what the numbers are the trace of."""
        settings, parameters = self.settings, self.parameters
        labels = f"labels: {settings.labels}"
        name = "Hessian"
        if settings.method == "fisher":
            name = "Fisher matrix" if settings.labels == "model" else "empirical Fisher matrix"
        elif settings.matrix == "ggn":
            name, labels = "Gauss-Newton matrix", "labels: none needed"
        loss, target = self.objective.name, "target"
        if self._of_labels() and not self.plain:
            loss = f"cross-entropy of the labels, not {loss}"
        elif getattr(self.objective.criterion, "sentence_avg", False):
            target = "sentence"
        data = (
            f"a new batch of {settings.batch_size} samples for every probe, batches weighted alike"
        )
        if self.fixed:
            samples = sum(int(sample["nsentences"]) for sample in self.fixed)
            data = f"the same {samples} samples for every probe, {target}s weighted alike"
        return (
            f"{name} of the mean loss per {target} in nats ({loss}, {labels}) over {data} "
            f"({settings.subset}); params: {settings.params} ({parameters.size:,} numbers), tied "
            "tensors once, scaled as the checkpoint stores them; no dropout; "
            f"{'fp64' if settings.double else 'fp32'}"
        )

    # -- methods ---------------------------------------------------------------------------------

    def _curvature(self, matrix: str, number: int | None = None) -> Curvature:
        """Return the matrix over the fixed batches or, of a probe's number, over its own batch."""
        settings, samples, seed = self.settings, self.fixed, self.settings.seed
        if number is not None and (settings.method == "fisher" or not samples):
            seed = derive_seed(seed, "hessian batch", number)  # so that labels are drawn anew
        if number is not None and not samples:
            samples = [self.batches.draw(number, settings.batch_size)]
        return Curvature(
            self.objective, self.parameters, samples, matrix, settings.labels or "data", seed
        )

    def _products(self, curvature: Curvature, total: int) -> Callable[[Tensor], Tensor]:
        """Return the products of a fixed matrix, watched."""
        bar, started = self._progress(total), time.perf_counter()
        steps = iter(bar)

        def products(vectors_KP: Tensor) -> Tensor:
            rows = []
            for part_KP in vectors_KP.split(VECTORS_AT_ONCE):
                rows.append(curvature.products(part_KP))
                for _ in part_KP:
                    done = next(steps, total - 1) + 1
                    bar.log(_eta(started, done, total), step=done)
            return torch.cat(rows)

        return products

    def _sampled(self) -> Result:
        """Average over probes (Hutchinson) or batches (Fisher) until there are enough."""
        settings, names = self.settings, ["trace"]
        if settings.residual:
            names += ["trace_ggn", "residual"]
        tally = {name: _Tally(self.parameters) for name in names}
        most, wanted = settings.probes or 0, settings.rel_se or 0.0
        losses, total, started = Mean(), tally["trace"].total, time.perf_counter()
        interrupted = False
        with self._progress(most) as bar:
            try:
                for number in bar:
                    diagonals, loss = self._one(number)
                    for name, diagonal_P in zip(names, diagonals, strict=True):
                        tally[name].add(diagonal_P)
                    losses.values.append(loss)
                    figures = {"trace": total.mean, "se": total.se, "loss": losses.mean}
                    bar.log(figures | _eta(started, number + 1, most), step=number + 1)
                    if number + 1 >= FEWEST and total.se <= wanted * abs(total.mean):
                        break
            except KeyboardInterrupt:  # every probe is an estimate: so many tell as much
                if len(losses.values) < 2:
                    raise
                interrupted = True
        result: Result = {**tally["trace"].report(), "loss": losses.mean, "loss_se": losses.se}
        result |= {"interrupted": True} if interrupted else {}
        for name in names[1:]:
            estimate = tally[name].report()
            result |= {name: estimate["trace"], f"{name}_se": estimate["se"]}
            result |= {f"{name}_blocks": estimate["blocks"]}
        return result

    def _one(self, number: int) -> tuple[list[Tensor], float]:
        """Return one probe's estimates of the diagonal, of H or G, then also of G and H - G."""
        settings = self.settings
        curvature = self._curvature(settings.matrix, number)
        if settings.method == "fisher":
            return [curvature.squared_gradients()], curvature.loss
        probe_P = self.draw(number)
        diagonals = [probe_P * curvature.product(probe_P)]
        if settings.residual:
            gauss_newton = self._curvature("ggn", number)
            diagonals.append(probe_P * gauss_newton.product(probe_P))
            diagonals.append(diagonals[0] - diagonals[1])
        return diagonals, curvature.loss

    def _hutch_plus_plus(self) -> Result:
        settings, tally = self.settings, _Tally(self.parameters)
        curvature = self._curvature(settings.matrix)
        budget = settings.probes or 0
        products = self._products(curvature, budget)
        exact_P, rest = hutch_plus_plus(products, self.draw, budget)
        for diagonal_P in rest:
            tally.add(exact_P + diagonal_P)
        return {**tally.report(), "loss": curvature.loss}

    def _exact(self) -> Result:
        settings, size = self.settings, self.parameters.size
        if size > EXACT_LIMIT:
            raise ConfigError(
                f"--method exact keeps all of the matrix: at most {EXACT_LIMIT:,} parameters, not "
                f"{size:,}; choose fewer with --params, or --method hutchinson"
            )
        curvature = self._curvature(settings.matrix)
        like_P = self.parameters.flatten(self.parameters.tensors).detach()
        matrix_PP = whole_matrix(self._products(curvature, size), like_P)
        values_P = torch.linalg.eigvalsh(matrix_PP.double())
        diagonal_P = matrix_PP.diagonal()
        return {
            "trace": float(diagonal_P.double().sum()),
            "se": 0.0,
            "blocks": {
                name: {"trace": value, "se": 0.0}
                for name, value in self.parameters.by_block(diagonal_P).items()
            },
            "frobenius": float(matrix_PP.double().norm()),
            "eigenvalues": _ends(values_P, torch.zeros_like(values_P), settings.top),
            "spectrum": {"values": values_P.tolist(), "weights": [1 / size] * size},
            "loss": curvature.loss,
        }

    def _lanczos(self) -> Result:
        """Estimate the spectrum by stochastic Lanczos quadrature.

        Source: Ghorbani, Krishnan and Xiao 2019, section 3; Ubaru, Chen and Saad 2017.
        """
        settings, total = self.settings, Mean()
        starts = settings.probes or 1
        curvature = self._curvature(settings.matrix)
        products = self._products(curvature, starts * min(settings.steps, self.parameters.size))
        runs = []
        for number in range(starts):
            start_P = self.draw(number)
            runs.append(lanczos(products, start_P, settings.steps))
            mean = float(runs[-1].weights_S @ runs[-1].values_S)
            # of a unit vector it is a mean eigenvalue: times the squared length, an estimate of the
            # trace
            total.values.append(mean * float(start_P @ start_P))
        best = max(runs, key=lambda run: float(run.values_S[-1]))
        return {
            **_summary(total),
            "eigenvalues": _ends(best.values_S, best.errors_S, settings.top),
            "spectrum": {
                "values": torch.cat([run.values_S for run in runs]).tolist(),
                "weights": torch.cat([run.weights_S / starts for run in runs]).tolist(),
            },
            "loss": curvature.loss,
        }

    def _progress(self, total: int) -> BaseProgressBar:
        return progress_bar(
            range(total),
            log_format=self.log_format,
            log_interval=max(1, total // 20),
            prefix=f"trace of the {self.convention().split(' of the mean')[0]}",
        )


def _eta(started: float, done: int, total: int) -> dict[str, float]:
    """Return the seconds left, as a figure to show, if all steps are as long as those done."""
    return {"eta": round((time.perf_counter() - started) / done * (total - done))}


class _Tally:
    """Means of a trace and of its blocks."""

    def __init__(self, parameters: ParameterSet) -> None:
        self.parameters, self.total = parameters, Mean()
        self.blocks: dict[str, Mean] = {}

    def add(self, diagonal_P: Tensor) -> None:
        """Add one estimate of the diagonal."""
        sums = self.parameters.by_block(diagonal_P.double())
        self.total.values.append(math.fsum(sums.values()))
        for block, value in sums.items():
            self.blocks.setdefault(block, Mean()).values.append(value)

    def report(self) -> Result:
        """Return the means as plain numbers."""
        blocks = {
            name: {"trace": block.mean, "se": block.se} for name, block in self.blocks.items()
        }
        return {**_summary(self.total), "blocks": blocks}


def _summary(total: Mean) -> Result:
    return {
        "trace": total.mean,
        "se": total.se,
        "interval": list(total.interval()),
        "probes": len(total.values),
        "values": total.values,
    }


def _ends(values_S: Tensor, errors_S: Tensor, count: int) -> Result:
    """Return the largest eigenvalues, falling, and the smallest, rising, with error bounds."""
    count = min(count, len(values_S))
    pairs = list(zip(values_S.tolist(), errors_S.tolist(), strict=True))
    return {
        side: [{"value": value, "error": error} for value, error in chosen[:count]]
        for side, chosen in (("largest", pairs[::-1]), ("smallest", pairs))
    }
