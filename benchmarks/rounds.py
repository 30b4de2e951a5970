"""What figures of several rounds come to: quartiles, ratios of the same round, intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def quartiles(values: Sequence[float], digits: int) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return [round(values[0], digits)] * 3
    return [round(x, digits) for x in statistics.quantiles(values, n=4, method="inclusive")]


def spread(values: Sequence[float], digits: int) -> dict[str, Any]:
    """Return the median and the quartiles as a record keeps them."""
    low, median, high = quartiles(values, digits)
    return {"median": median, "quartiles": [low, high]}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how many times longer they take, round by round."""
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def interval(values: Sequence[float], digits: int = 3) -> list[float] | None:
    """Return an interval for the median; None of fewer than six values.

    It reaches from the k-th smallest to the k-th largest, with the largest k that keeps at least
    95 % by the sign test.
    """
    n, k, outside = len(values), 0, 0.0
    while outside + math.comb(n, k) / 2 ** (n - 1) <= 0.05:
        outside += math.comb(n, k) / 2 ** (n - 1)
        k += 1
    ordered = sorted(values)
    return [round(ordered[k - 1], digits), round(ordered[n - k], digits)] if k else None
