"""What may be said of a difference between seeds: its interval, and the claim it allows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201,
    2.179, 2.160, 2.145,
)  # fmt: skip


class Interval(NamedTuple):
    """Mean of paired differences and the 95 % interval of that mean."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def shown(self, digits: int = 1, unit: str = "") -> str:
        """Return ``mean [low, high]`` of figures that are no differences."""
        return f"{self.mean:.{digits}f}{unit} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return ``first - second``, seed by seed, as a mean with its interval."""
    return interval([one - other for one, other in zip(first, second, strict=True)])


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of the seeds' values with its interval (Student's t).

    With few seeds resampled means are too narrow: of three numbers they never leave their range.

    Raises:
        ValueError: for fewer than two values, which have no spread, or more than the table has.
    """
    freedom = len(values) - 1
    if not 1 <= freedom <= len(STUDENT_95):
        raise ValueError(f"2 to {len(STUDENT_95) + 1} pairs are needed, not {len(values)}")
    mean = statistics.mean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = STUDENT_95[freedom - 1] * error
    return Interval(mean, mean - reach, mean + reach)


CLAIM = ("holds", "does not hold", "cannot be told")


def verdict(of: Interval, below: float = 0.0, words: tuple[str, str, str] = CLAIM) -> str:
    """Tell whether the claim "the difference is below ``below``" stands, by the interval alone.

    Args:
        of: the difference.
        below: what it is held against.
        words: to say that it is below, above, or neither.
    """
    if of.high < below:
        return words[0]
    return words[1] if of.low > below else words[2]
