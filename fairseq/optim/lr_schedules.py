"""Schedules that follow the number of updates: settings and state around ``lr_formulas``."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

from fairseq.config.schema import (
    II,
    SHARE,
    FairseqDataclass,
    option,
)
from fairseq.errors import ConfigError
from fairseq.optim import lr_formulas
from fairseq.optim.base import FairseqOptimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from fairseq.optim.read_settings import learning_rates, require_value, single_rate, unless_negative
from fairseq.protocols import StateDict

logger = logging.getLogger(__name__)


class PureSchedule(FairseqLRScheduler):
    """A schedule whose rate follows from the number of updates alone."""

    num_updates = 0

    def rate(self, num_updates: int) -> float:
        """Return the rate after ``num_updates`` updates."""
        raise NotImplementedError

    def step_update(self, num_updates: int) -> float:
        self.num_updates = num_updates
        self.optimizer.set_lr(self.rate(num_updates))
        return self.optimizer.get_lr()


@dataclass
class FixedLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler fixed``."""

    force_anneal: int | None = option(
        None, "shrink the rate every epoch from this one on", minimum=0
    )
    lr_shrink: float = option(0.1, "factor of that shrinking", above=0)
    warmup_updates: int = option(0, "updates of linear warm-up", minimum=0)
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("fixed", dataclass=FixedLRScheduleConfig)
class FixedLRSchedule(PureSchedule):
    """One rate per epoch: entry e of ``--lr``, the last one for all later epochs."""

    def __init__(self, cfg: FixedLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.rates = learning_rates(cfg)
        self.lr = self.rates[0]

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.lr = state_dict.get("lr", self.lr)

    def step_begin_epoch(self, epoch: int) -> float:
        anneal = self.cfg.force_anneal
        if anneal is None or epoch < anneal:
            self.lr = self.rates[min(epoch, len(self.rates)) - 1]
        else:
            self.lr = self.rates[-1] * self.cfg.lr_shrink ** (epoch + 1 - anneal)
        return self.step_update(self.num_updates)

    def rate(self, num_updates: int) -> float:
        return lr_formulas.fixed(num_updates, self.cfg.warmup_updates, self.lr)


@dataclass
class PolynomialDecayLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler polynomial_decay``."""

    warmup_updates: int = option(0, "updates of linear warm-up", minimum=0)
    force_anneal: int | None = option(
        None, "apply the decay once more at every epoch from this on", minimum=0
    )
    end_learning_rate: float = option(0.0, "rate from the last update on", minimum=0)
    power: float = option(1.0, "exponent of the decay", minimum=0)
    total_num_update: float = option(
        II("optimization.max_update"),
        "update at which the decay ends (default: --max-update)",
        minimum=0,
    )
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("polynomial_decay", dataclass=PolynomialDecayLRScheduleConfig)
class PolynomialDecayLRSchedule(PureSchedule):
    """Linear warm-up, then polynomial decay to the end rate.

    From epoch ``force_anneal`` on, every epoch starts its decay from the rate in force, so the
    factor of the decay is applied again and again.
    """

    def __init__(self, cfg: PolynomialDecayLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.total = float(require_value(cfg.total_num_update, "--total-num-update"))
        if self.total <= 0:
            raise ConfigError(
                "polynomial_decay needs the update at which it ends: set --max-update or "
                "--total-num-update"
            )
        self.rates = learning_rates(cfg)
        self.lr = self.rates[0]
        self.annealed_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss; with ``--force-anneal`` also the rate the decay starts from."""
        state = super().state_dict()
        if self.cfg.force_anneal is not None:
            state.update(lr=self.lr, annealed_epoch=self.annealed_epoch)
        return state

    def load_state_dict(self, state_dict: StateDict) -> None:
        super().load_state_dict(state_dict)
        self.lr = state_dict.get("lr", self.lr)
        self.annealed_epoch = state_dict.get("annealed_epoch", 0)

    def step_begin_epoch(self, epoch: int) -> float:
        """Choose the rate that the decay of ``epoch`` starts from (entry e + 1 of ``--lr``)."""
        anneal = self.cfg.force_anneal
        if anneal is None or epoch < anneal:
            # entry e + 1, not e: the original's counting, kept for its recipes
            self.lr = self.rates[min(epoch, len(self.rates) - 1)]
        elif epoch > self.annealed_epoch:  # once, also when a resumed run begins the epoch again
            self.lr = self.optimizer.get_lr()
            self.annealed_epoch = epoch
        return self.step_update(self.num_updates)

    def rate(self, num_updates: int) -> float:
        return lr_formulas.polynomial_decay(
            num_updates,
            self.cfg.warmup_updates,
            self.total,
            self.lr,
            self.cfg.end_learning_rate,
            self.cfg.power,
        )


@dataclass
class InverseSquareRootLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler inverse_sqrt``."""

    warmup_updates: int = option(4000, "updates of linear warm-up", minimum=1)
    warmup_init_lr: float = option(-1.0, "rate of the first update (-1: 0)", minimum=0)
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("inverse_sqrt", dataclass=InverseSquareRootLRScheduleConfig)
class InverseSquareRootSchedule(PureSchedule):
    """Linear warm-up, then decay by the inverse square root of the updates."""

    def __init__(self, cfg: InverseSquareRootLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "inverse_sqrt")

    def rate(self, num_updates: int) -> float:
        start = unless_negative(self.cfg.warmup_init_lr, 0.0)
        return lr_formulas.inverse_sqrt(num_updates, self.cfg.warmup_updates, self.lr, start)


@dataclass
class CosineLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler cosine``."""

    warmup_updates: int = option(0, "updates of linear warm-up", minimum=0)
    warmup_init_lr: float = option(-1.0, "rate of the first update (-1: --min-lr)", minimum=0)
    min_lr: float = option(0.0, "lowest rate", minimum=0)
    t_mult: float = option(1.0, "every period is X times as long as the one before", minimum=1)
    lr_period_updates: float = option(-1.0, "updates of the first period (-1: all)", above=0)
    lr_shrink: float = option(0.1, "factor of the rates at every restart", above=0)
    lr: list[float] = II("optimization.lr")
    max_update: int = II("optimization.max_update")


@register_lr_scheduler("cosine", dataclass=CosineLRScheduleConfig)
class CosineLRSchedule(PureSchedule):
    """Linear warm-up to ``--lr``, then cosine annealing with restarts."""

    def __init__(self, cfg: CosineLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "cosine")
        if self.lr <= cfg.min_lr:
            raise ConfigError(
                f"cosine: --lr {self.lr:g} is the highest rate, --min-lr {cfg.min_lr:g} the "
                "lowest; the former must be greater"
            )
        self.period = cfg.lr_period_updates
        if self.period <= 0:
            self.period = require_value(cfg.max_update, "--max-update") - cfg.warmup_updates
        if self.period <= 0:
            raise ConfigError(
                "cosine needs its period: set --lr-period-updates, or a --max-update greater "
                "than --warmup-updates"
            )

    def rate(self, num_updates: int) -> float:
        cfg = self.cfg
        start = unless_negative(cfg.warmup_init_lr, cfg.min_lr)
        return lr_formulas.cosine(
            num_updates,
            cfg.warmup_updates,
            self.period,
            self.lr,
            cfg.min_lr,
            start,
            cfg.t_mult,
            cfg.lr_shrink,
        )


@dataclass
class TriStageLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler tri_stage``."""

    warmup_steps: int = option(0, "updates of linear warm-up", minimum=0)
    hold_steps: int = option(0, "updates at --lr", minimum=0)
    decay_steps: int = option(0, "updates of exponential decay", minimum=0)
    phase_ratio: tuple[float, float, float] | None = option(
        None, "the three lengths as shares of --max-update, such as '(0.1, 0.4, 0.5)'", **SHARE
    )
    init_lr_scale: float = option(0.01, "first rate as a share of --lr", minimum=0)
    # above 0: the decay is exponential
    final_lr_scale: float = option(0.01, "last rate as a share of --lr", above=0)
    max_update: int = II("optimization.max_update")
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("tri_stage", dataclass=TriStageLRScheduleConfig)
class TriStageLRSchedule(PureSchedule):
    """Linear warm-up, plateau, exponential decay."""

    def __init__(self, cfg: TriStageLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "tri_stage")
        self.steps = [cfg.warmup_steps, cfg.hold_steps, cfg.decay_steps]
        if cfg.phase_ratio is not None:
            shares = list(cfg.phase_ratio)
            if len(shares) != 3 or not math.isclose(sum(shares), 1.0):
                raise ConfigError(
                    f"--phase-ratio takes three shares that sum up to 1, got {shares}"
                )
            max_update = require_value(cfg.max_update, "--max-update")
            self.steps = [int(max_update * share) for share in shares]
        if sum(self.steps) <= 0:
            raise ConfigError(
                "tri_stage has no length: give --warmup-steps, --hold-steps and --decay-steps, "
                "or --phase-ratio and --max-update"
            )

    def rate(self, num_updates: int) -> float:
        warmup, hold, decay = self.steps
        scales = self.cfg.init_lr_scale, self.cfg.final_lr_scale
        return lr_formulas.tri_stage(num_updates, warmup, hold, decay, self.lr, *scales)


@dataclass
class TriangularLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler triangular``."""

    max_lr: float | None = option(None, "highest rate (required); --lr is the lowest", above=0)
    lr_period_updates: float = option(5000.0, "updates of one cycle, up and down", minimum=2)
    lr_shrink: float = option(0.1, "factor of the highest rate after every cycle", above=0)
    shrink_min: bool = option(False, "shrink the lowest rate, too")
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("triangular", dataclass=TriangularLRScheduleConfig)
class TriangularLRSchedule(PureSchedule):
    """Up and down between ``--lr`` and ``--max-lr``."""

    def __init__(self, cfg: TriangularLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "triangular")
        self.max_lr = float(require_value(cfg.max_lr, "--max-lr (of --lr-scheduler triangular)"))
        if self.max_lr <= self.lr:
            raise ConfigError(
                f"triangular: --max-lr {self.max_lr:g} must be greater than --lr {self.lr:g}"
            )

    def rate(self, num_updates: int) -> float:
        cfg = self.cfg
        return lr_formulas.triangular(
            num_updates, cfg.lr_period_updates, self.lr, self.max_lr, cfg.lr_shrink, cfg.shrink_min
        )


@dataclass
class StepLRScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler step``."""

    warmup_updates: int = option(0, "updates of linear warm-up", minimum=0)
    warmup_init_lr: float = option(-1.0, "rate of the first update (-1: --min-lr)", minimum=0)
    # the original spells it so; the alias is for everybody else
    lr_deacy_period: int = option(
        25000, "updates between two decays", argparse_alias="--lr-decay-period", minimum=1
    )
    lr_decay: float = option(0.5, "factor of the rate at every decay", above=0)
    min_lr: float = option(0.0, "lowest rate", minimum=0)
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("step", dataclass=StepLRScheduleConfig)
class StepLRSchedule(PureSchedule):
    """Linear warm-up, then a staircase."""

    def __init__(self, cfg: StepLRScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "step")

    def rate(self, num_updates: int) -> float:
        cfg = self.cfg
        start = unless_negative(cfg.warmup_init_lr, cfg.min_lr)
        period, decay = cfg.lr_deacy_period, cfg.lr_decay
        return lr_formulas.step_decay(
            num_updates, cfg.warmup_updates, period, decay, self.lr, cfg.min_lr, start
        )


@dataclass
class WSDScheduleConfig(FairseqDataclass):
    """Settings of ``--lr-scheduler wsd``."""

    warmup_updates: int = option(0, "updates of linear warm-up", minimum=0)
    warmup_init_lr: float = option(-1.0, "rate of the first update (-1: 0)", minimum=0)
    decay_updates: float = option(
        0.1, "updates of the decay, below 1 their share of all (0: no decay)", new=True, minimum=0
    )
    decay_shape: Literal["linear", "1-sqrt"] = option("linear", "how the rate falls", new=True)
    end_learning_rate: float = option(0.0, "rate from the last update on", minimum=0)
    total_num_update: float = option(
        II("optimization.max_update"), "update at which the decay ends (default: --max-update)"
    )
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("wsd", dataclass=WSDScheduleConfig)
class WSDSchedule(PureSchedule):
    """Linear warm-up, a stable part, decay at the end.

    The stable part knows nothing of the end: a run that starts from any checkpoint of it with
    another end equals one that had this end from its beginning.
    """

    def __init__(self, cfg: WSDScheduleConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        self.lr = single_rate(cfg, "wsd")
        self.total, self.decay_from = math.inf, math.inf
        if cfg.decay_updates:
            self._set_end(float(require_value(cfg.total_num_update, "--total-num-update")))

    def _set_end(self, total: float) -> None:
        length, warmup = self.cfg.decay_updates, self.cfg.warmup_updates
        length = round(total * length) if length < 1 else length
        if total <= 0 or total - length < warmup:
            raise ConfigError(
                f"wsd: {warmup} updates of warm-up and {length:g} of decay do not fit into "
                f"{total:g}: set --max-update or --total-num-update, or --decay-updates 0"
            )
        self.total, self.decay_from = total, total - length

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss, the updates done and the one at which the decay begins."""
        return {
            **super().state_dict(),
            "num_updates": self.num_updates,
            "decay_from": self.decay_from if math.isfinite(self.decay_from) else None,
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore the best loss; warn if the rate jumps because the decay begins elsewhere."""
        super().load_state_dict(state_dict)
        self.num_updates = done = state_dict.get("num_updates", 0)
        saved = state_dict.get("decay_from")
        saved = math.inf if saved is None else saved
        if saved != self.decay_from and done > min(saved, self.decay_from):
            logger.warning(
                "the rate jumps: after %d updates the checkpoint's decay had begun at %g, here it "
                "begins at %g; a decay joins the stable part if it begins at %d or later",
                *(done, saved, self.decay_from, done),
            )

    def rate(self, num_updates: int) -> float:
        cfg = self.cfg
        start = unless_negative(cfg.warmup_init_lr, 0.0)
        ends = self.decay_from, self.total
        return lr_formulas.wsd(
            *(num_updates, cfg.warmup_updates, *ends, self.lr, cfg.end_learning_rate, start),
            shape=cfg.decay_shape,
        )
