"""Sums of numbers that may still be on an accelerator.

Sums are kept as Python numbers (double precision). A tensor on the CPU is read at once; a tensor on
an accelerator is copied there and read, many in one transfer, when a figure is asked for: logging
never makes the host wait for the device. Importing this module does not import torch; tensors are
recognised by their methods.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq.errors import FairseqError

if TYPE_CHECKING:
    from torch import Tensor


# After this many unread values a meter reads them, which bounds what it keeps alive on the device.
_MAX_WAITING = 512


def is_tensor(value: object) -> bool:
    """Tell whether ``value`` is a torch tensor, without importing torch."""
    return hasattr(value, "detach") and hasattr(value, "device")


def to_python(value: Any) -> Any:
    """Return tensors and numpy values as Python numbers (nested lists if they hold several).

    Anything else comes back unchanged.
    """
    if not hasattr(value, "tolist"):
        return value
    return value.item() if math.prod(getattr(value, "shape", ())) == 1 else value.tolist()


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _hold(value: Any) -> Any:
    """Return a Python number, or a private copy of a scalar tensor that is not on the host.

    The copy matters: the caller may overwrite its tensor (captured graphs do) before it is read.

    Raises:
        FairseqError: if ``value`` is a tensor or array of several numbers.
    """
    if hasattr(value, "shape") and math.prod(value.shape) != 1:
        shape = tuple(value.shape)
        raise FairseqError(f"a meter takes one number, not an array of shape {shape}: reduce it")
    if is_tensor(value) and not _is_on_host(value):
        return value.detach().reshape(()).clone()
    return to_python(value)


def _read(tensors: Sequence[Any]) -> list[Any]:
    """Return the numbers in scalar ``tensors`` with one device transfer per device and dtype."""
    numbers: list[Any] = [None] * len(tensors)
    # tensors of one stack must share device and dtype; one stack is one wait for the device
    groups: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    for indices in groups.values():
        stacked = sys.modules["torch"].stack([tensors[index] for index in indices])
        for index, number in zip(indices, stacked.tolist(), strict=True):
            numbers[index] = number
    return numbers


class WeightedSum:
    """The sums of ``value * weight`` and of ``weight``, and the last value seen.

    A weight of zero replaces the last value and leaves both sums alone.
    """

    def __init__(self, last: object = None, total: object = 0, weight: object = 0) -> None:
        self._last = to_python(last)
        self._total = to_python(total)
        self._weight = to_python(weight)
        self._waiting: list[tuple[Any, Any]] = []

    def add(self, value: object, weight: object = 1) -> None:
        """Take in one value; neither argument is read if it lives on an accelerator."""
        value, weight = _hold(value), _hold(weight)
        if not self._waiting and not is_tensor(value) and not is_tensor(weight):
            self._fold(value, weight)
            return
        self._waiting.append((value, weight))
        if len(self._waiting) >= _MAX_WAITING:
            self._settle()

    def _fold(self, value: Any, weight: Any) -> None:
        self._last = value
        if weight > 0:
            self._total += value * weight
            self._weight += weight

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        numbers = iter(_read([item for pair in waiting for item in pair if is_tensor(item)]))
        for pair in waiting:
            self._fold(*(next(numbers) if is_tensor(item) else item for item in pair))

    def figures(self) -> tuple[Any, Any, Any]:
        """Return ``(last value, sum of value * weight, sum of weight)``."""
        if self._waiting:
            self._settle()
        return self._last, self._total, self._weight
