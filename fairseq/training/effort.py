"""What a run has cost so far: tokens and floating-point operations, counted on the host.

Nothing is asked of the device: sizes of batches are known before they run. The totals live in
``progress``, which checkpoints keep, so that they go on after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.criterions.base import FairseqCriterion
from fairseq.logging import metrics
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.flops import ELECTRA_TRAINING, TRAINING, FlopShape
from fairseq.protocols import Sample

TOTALS = ("tokens", "flops", "flops_electra")
MARK = "_effort_"  # begins their names among what a criterion logs
# (m, k, n) of the products that the peak is measured with, the fastest of which counts: on a CPU a
# product as flat as those of training can be half as fast again as a square one.
GEMMS = {"cuda": ((8192, 8192, 8192),)}
GEMMS_ELSEWHERE = ((512, 512, 512), (2048, 256, 1024))
SLOW = 0.01  # seconds for a sixteenth of such a product


class Effort:
    """Counts what training costs.

    Args:
        model: the model, not wrapped.
        criterion: the criterion.
        peak: operations a second that all devices together can do.

    Attributes:
        latest: what the latest batches cost, by name; plain ints.
        window: the tokens before and after the latest update that changed the model.
    """

    def __init__(self, model: BaseFairseqModel, criterion: FairseqCriterion, peak: float) -> None:
        tell = getattr(model, "flop_shape", None)  # a plug-in's model may be any module
        self.shape: FlopShape | None = None if tell is None else tell()
        self.criterion, self.peak = criterion, peak
        self.latest: dict[str, int] = {}
        self.window: tuple[int, int] | None = None

    def of_batch(self, sample: Sample, log: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a batch has just cost, to be added to its logging output ``log``."""
        cost = {"tokens": log.get("ntokens", 0), **self.cost_of(sample)}
        return {MARK + name: amount for name, amount in cost.items()}

    def cost_of(self, sample: Sample) -> dict[str, int]:
        """Return the operations of a batch; those of the criterion are of its latest batch."""
        cost = {}
        tokens_BT = sample["net_input"].get("src_tokens") if "net_input" in sample else None
        if self.shape is not None and tokens_BT is not None:
            rows, length = tokens_BT.shape
            size = rows, length, _predicted(sample)
            tell = getattr(self.criterion, "extra_flops", None)
            extra = 0 if tell is None else tell()
            cost["flops"] = TRAINING * self.shape.forward(*size) + extra
            cost["flops_electra"] = ELECTRA_TRAINING * self.shape.electra(*size)
        return cost

    def add(self, logs: Sequence[dict[str, Any]], progress: dict[str, Any]) -> None:
        """Take what :meth:`of_batch` returned out of logging outputs and add it to the totals."""
        self.latest = {}
        if self.window is None:
            before = progress.get("tokens", 0)
            # a run that goes on has tokens of before, which no update of this process saw
            self.window = before, before
        for name in TOTALS:
            # taken out: criterions of plug-ins need not know how to add them up
            amounts = [log.pop(MARK + name) for log in logs if MARK + name in log]
            if amounts:
                self.latest[name] = int(sum(amounts))
                progress[name] = progress.get(name, 0) + self.latest[name]

    def count(self, progress: Mapping[str, Any]) -> None:
        """Take note that an update has changed the model; ``progress`` has the totals."""
        if self.window is not None:
            self.window = self.window[1], progress.get("tokens", 0)

    def take_back(self) -> None:
        """Take note that the latest update that changed the model was undone; its cost stays."""
        if self.window is not None:
            self.window = self.window[1], self.window[1]

    def report(
        self,
        progress: Mapping[str, Any],
        lineage: Sequence[Mapping[str, Any]],
        cost: Mapping[str, int],
    ) -> None:
        """Log the totals after an update, and the share of the peak made use of, in per cent.

        Args:
            progress: the totals of this run.
            lineage: the runs that its weights come from; their operations are added.
            cost: of this update, what :attr:`latest` was.
        """
        for priority, name in enumerate(TOTALS, 191):
            if name in progress:
                # the weights of a grown model cost what their source was trained for, too; tokens
                # are counted by run
                earlier = sum(step.get(name, 0) for step in lineage) if name == "flops" else 0
                total = float(progress[name] + earlier)
                metrics.log_scalar(name, total, weight=0, priority=priority)
        if "flops" in cost:
            # log_speed divides by the seconds that passed: what is left is a share of the peak
            used = 100.0 * cost["flops"] / self.peak
            metrics.log_speed("mfu", used, priority=95, round=2)


def _predicted(sample: Sample) -> int:
    """Return how many tokens of a batch are projected on the vocabulary."""
    shipped = sample.get("predicted_positions")
    if shipped is not None:
        return len(shipped)
    target = sample.get("target")  # of a foreign collater: all, unless these are classes
    same = getattr(target, "shape", None) == sample["net_input"]["src_tokens"].shape
    return target.numel() if same and target is not None else 0


def peak_of(
    stated: float | None, device: torch.device, dtype: torch.dtype, devices: int = 1
) -> float:
    """Return the operations a second that devices can do.

    Args:
        stated: those of one device in units of 1e12; None to measure products of matrices, the
            best of three each; on a CPU those of one thread, times the threads.
        device: one of them.
        dtype: what training multiplies in.
        devices: their number.
    """
    if stated is not None:
        return stated * 1e12 * devices
    if device.type != "cpu":
        return _measured(device, dtype) * devices
    # The threads of one product wait for each other: while other processes hold a core, it takes
    # far longer, and training would seem to do many times what is possible.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(device, dtype) * threads * devices
    finally:
        torch.set_num_threads(threads)


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of the fastest product."""
    best = 0.0
    for m, k, n in GEMMS.get(device.type, GEMMS_ELSEWHERE):
        # ones draw no random number; laid out as in x W^T: fp16 on a CPU is far slower else
        a, b = (torch.ones(*size, device=device, dtype=dtype) for size in ((m, k), (n, k)))
        rows = m // 16
        # the first one warms up; a type without units, as fp16 on a CPU, stays with these rows
        if min(_seconds(a[:rows], b) for _ in range(3)) < SLOW:
            rows = m
        seconds = min(_seconds(a[:rows], b) for _ in range(3))
        best = max(best, 2 * rows * k * n / seconds)
    return best


def _seconds(a: Tensor, b: Tensor) -> float:
    started = time.perf_counter()
    float((a @ b.T)[0, 0])  # reading a number waits for the device
    return time.perf_counter() - started
