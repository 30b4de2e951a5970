"""What an update reports, at once or when somebody looks.

Reading a number of an accelerator waits until all its work is done, and meanwhile it gets no new
work. So its gradients are judged there, the norms of updates are kept, and all of them are read
together when a record is due. Until then nobody knows which updates are to be reported.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fairseq.logging import metrics

if TYPE_CHECKING:
    from fairseq.training.trainer import Trainer

logger = logging.getLogger("fairseq.trainer")

MOST_UNREAD = 512  # what an update has logged stays on the device as long


class Report(NamedTuple):
    """What there is to tell about an update.

    Attributes:
        update: its number, from 1.
        norm: of its gradient, before clipping; 0-dim.
        logs: what the criterion logged, by micro-batch, or added up.
        cost: what it cost, by name.
    """

    update: int
    norm: Tensor
    logs: list[Any]
    cost: dict[str, int]


class UpdateLog:
    """Logs updates, the unread ones later.

    Attributes:
        began: whether an update was logged; the first one is at once, since clocks start with it.
        skipped: the first of some updates that were found to have changed nothing, and why; to be
            taken from here.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.unread: list[Report] = []
        self.began = False
        self.skipped: list[tuple[int, str]] = []

    def can_wait(self) -> bool:
        """Tell whether the device can judge this update: on a CPU it costs nothing to look.

        After one that is not finite the host looks, so that its cause is found and the run ends.
        """
        trainer = self.trainer
        alone = trainer.world == 1 and trainer.spikes.kind == "none"
        well = self.began and trainer.bad_updates == 0
        return alone and well and trainer.device.type != "cpu" and trainer.optimizer.skips_on_device

    def keep(self, report: Report) -> None:
        """Log an update that the device has judged, later; all of them if it is time to."""
        self.unread.append(report)
        due = report.update % self.trainer.cfg.common.log_interval == 0
        if due or len(self.unread) >= MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Log what was kept, but updates without effect: of those the numbers and norms are told.

        If the latest was one of them, the trainer looks at every norm again.
        """
        if not self.unread:
            return
        reports, self.unread = self.unread, []
        norms = torch.stack([report.norm for report in reports]).tolist()
        bad = []
        for report, norm in zip(reports, norms, strict=True):
            if math.isfinite(norm):
                self.write(report)
            else:
                bad.append((report.update, norm))
        if not bad:
            return
        told = ", ".join(f"{update} ({norm})" for update, norm in bad[:5])
        more = f" and {len(bad) - 5} more" if bad[5:] else ""
        reason = (
            f"the gradient norm was not finite in updates {told}{more} of the latest "
            f"{len(reports)}; they left the weights as they were"
        )
        logger.warning(reason)
        self.skipped.append((bad[0][0], reason))
        self.trainer.bad_updates = int(bad[-1][0] == reports[-1].update)

    def write(self, report: Report) -> dict[str, Any]:
        """Log an update; return the meters of this one alone."""
        trainer, self.began = self.trainer, True
        metrics.log_speed("ups", 1.0, priority=100, round=2)
        metrics.log_scalar("gnorm", report.norm, priority=400, round=3)
        clip = trainer.cfg.optimization.clip_norm
        if clip > 0:
            clipped = (torch.as_tensor(report.norm) > clip) * 100.0
            metrics.log_scalar("clip", clipped, priority=500, round=1)
        with metrics.aggregate() as aggregated:
            if report.logs:
                trainer.task.reduce_metrics(report.logs, trainer.criterion)
        trainer.effort.report(trainer.progress, trainer.lineage, report.cost)
        scaler = getattr(trainer.optimizer, "scaler", None)
        if scaler is not None:
            scale = scaler.loss_scale if hasattr(scaler, "loss_scale") else scaler.get_scale()
            metrics.log_scalar("loss_scale", scale, priority=700, round=4, weight=0)
        if trainer.ema is not None:
            metrics.log_scalar("ema_decay", trainer.ema.get_decay(), priority=10000, weight=0)
        if trainer.device.type == "cuda":
            free = torch.cuda.mem_get_info(trainer.device)[0] / 1024**3
            metrics.log_scalar("gb_free", free, priority=1500, round=1, weight=0)
        return dict(aggregated)
