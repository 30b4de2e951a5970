"""A schedule in one file: ``--lr-scheduler saw`` falls from ``--lr`` to 0, again and again."""

from dataclasses import dataclass

from fairseq.dataclass import II, FairseqDataclass, option
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler


@dataclass
class SawConfig(FairseqDataclass):
    lr: list[float] = II("optimization.lr")  # the value of another section: no flag of its own
    teeth: int = option(100, "updates from one rise to the next", minimum=1)


@register_lr_scheduler("saw", dataclass=SawConfig)
class Saw(FairseqLRScheduler):
    def step_update(self, num_updates):  # num_updates are done; the rate is for the next one
        share = num_updates % self.cfg.teeth / self.cfg.teeth
        self.optimizer.set_lr(self.cfg.lr[0] * (1 - share))
        return self.optimizer.get_lr()
