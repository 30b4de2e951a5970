"""Learning-rate schedules as pure functions of n, the number of updates already done.

The value at n is the rate of update n + 1, so a linear warm-up that starts at zero makes the very
first update one of rate zero.
"""

from __future__ import annotations

import math


def linear_warmup(n: int, warmup: int, start: float, peak: float) -> float:
    """Return the rate on the line from ``start`` at n = 0 to ``peak`` at n = ``warmup`` > 0."""
    return start + n * (peak - start) / warmup


def fixed(n: int, warmup: int, lr: float) -> float:
    """Return ``lr``, after a warm-up whose first update already has the rate ``lr / warmup``."""
    # n + 1: the original's fixed schedule starts at lr / warmup, its others at 0
    return lr * (n + 1) / warmup if n < warmup else lr


def polynomial_decay(
    n: int, warmup: int, total: float, lr: float, end: float = 0.0, power: float = 1.0
) -> float:
    """Return the rate that falls from ``lr`` at n = ``warmup`` to ``end`` at n = ``total``."""
    if warmup > 0 and n <= warmup:
        return lr * n / warmup
    if n >= total:
        return end
    return (lr - end) * (1 - (n - warmup) / (total - warmup)) ** power + end


def inverse_sqrt(n: int, warmup: int, lr: float, start: float = 0.0) -> float:
    """Return the rate that falls like ``1 / sqrt(n)`` from ``lr`` at n = ``warmup`` > 0.

    Source: Vaswani et al. 2017, section 5.3.
    """
    return linear_warmup(n, warmup, start, lr) if n < warmup else lr * math.sqrt(warmup / n)


def cosine(
    n: int,
    warmup: int,
    period: float,
    lr: float,
    min_lr: float = 0.0,
    start: float = 0.0,
    t_mult: float = 1.0,
    shrink: float = 1.0,
) -> float:
    """Return the rate of cosine annealing with warm restarts.

    Args:
        n: updates already done.
        warmup: updates of the linear warm-up from ``start`` to ``lr``.
        period: length of the first period.
        lr: highest rate.
        min_lr: lowest rate.
        start: rate of the first update if there is a warm-up.
        t_mult: every period is so many times as long as the one before, at least once.
        shrink: both bounds are multiplied by it at every restart.

    A period is half open: at n = warmup + period the next one begins, at its highest rate.
    Source: Loshchilov and Hutter 2017 (SGDR), equation 5.
    """
    if n < warmup:
        return linear_warmup(n, warmup, start, lr)
    t = n - warmup
    if t_mult == 1:
        index = math.floor(t / period)
        length, done = period, t - period * index
    else:
        # lengths grow geometrically: how many whole periods the sum of the series fits into t
        index = math.floor(math.log(1 - t / period * (1 - t_mult), t_mult))
        if _restart(index + 1, period, t_mult) <= t:  # the logarithm of a power was rounded down
            index += 1
        length, done = period * t_mult**index, t - _restart(index, period, t_mult)
    low, high = min_lr * shrink**index, lr * shrink**index
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * done / length))


def _restart(index: int, period: float, t_mult: float) -> float:
    """Return where period ``index`` begins, the sum of a geometric series."""
    return period * (1 - t_mult**index) / (1 - t_mult)


def tri_stage(
    n: int,
    warmup: int,
    hold: int,
    decay: int,
    lr: float,
    start_scale: float = 0.01,
    final_scale: float = 0.01,
) -> float:
    """Return the rate that rises linearly, stays at ``lr``, and decays exponentially.

    It starts at ``start_scale * lr`` and ends at ``final_scale * lr``.
    Source: Park et al. 2019 (SpecAugment), section 3.2.
    """
    if n < warmup:
        return linear_warmup(n, warmup, start_scale * lr, lr)
    if n < warmup + hold:
        return lr
    if decay > 0 and n <= warmup + hold + decay:
        return lr * math.exp(math.log(final_scale) * (n - warmup - hold) / decay)
    return final_scale * lr


def wsd(
    n: int,
    warmup: int,
    decay_from: float,
    total: float,
    lr: float,
    end: float = 0.0,
    start: float = 0.0,
    shape: str = "linear",
) -> float:
    """Return the rate of warm-up, stable part, decay.

    It rises linearly from ``start`` to ``lr``, stays there, and falls from n = ``decay_from`` to
    ``end`` at n = ``total``: with x the share of the decay that is over, ``end`` plus ``lr - end``
    times ``1 - x`` ("linear") or ``1 - sqrt(x)`` ("1-sqrt").
    Source: Haegele et al. 2024 ("Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations"), section 3; the name is that of Hu et al. 2024 (MiniCPM), section 4.
    """
    if n < warmup:
        return linear_warmup(n, warmup, start, lr)
    if n <= decay_from:
        return lr
    if n >= total:
        return end
    x = (n - decay_from) / (total - decay_from)
    return end + (lr - end) * (1 - (math.sqrt(x) if shape == "1-sqrt" else x))


def triangular(
    n: int,
    period: float,
    min_lr: float,
    max_lr: float,
    shrink: float = 1.0,
    shrink_min: bool = False,
) -> float:
    """Return the rate that goes up and down linearly once per ``period`` updates.

    The upper bound, with ``shrink_min`` also the lower one, is multiplied by ``shrink`` after
    every cycle. Source: Smith 2017, "Cyclical Learning Rates", section 3.2.
    """
    half = period // 2
    cycle = math.floor(n / (2 * half))
    max_lr *= shrink**cycle
    if shrink_min:
        min_lr *= shrink**cycle
    # from the peak in the middle of the cycle, in halves of it
    distance = abs(n / half - 2 * (cycle + 1) + 1)
    return min_lr + (max_lr - min_lr) * max(0.0, 1 - distance)


def step_decay(
    n: int, warmup: int, period: float, decay: float, lr: float, min_lr: float, start: float
) -> float:
    """Return the rate multiplied by ``decay`` after every ``period`` updates, at least ``min_lr``.

    The linear warm-up begins at ``start``.
    """
    if n < warmup:
        return linear_warmup(n, warmup, start, lr)
    return max(lr * decay ** ((n - warmup) // period), min_lr)
