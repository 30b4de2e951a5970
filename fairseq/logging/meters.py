"""Running figures: averages, sums, speeds and stopwatches, and a dictionary that orders them.

Values may be tensors on any device; :mod:`fairseq.logging.deferred` says when they are read.
State dictionaries have the layout found in fairseq checkpoints (``extra_state["metrics"]``) and
hold only plain numbers, so that they are the same on every device.
"""

from __future__ import annotations

import bisect
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fairseq.errors import CheckpointError
from fairseq.logging.deferred import WeightedSum, to_python

if TYPE_CHECKING:
    from torch import Tensor


MeterState = dict[str, Any]


def safe_round(number: Any, ndigits: int) -> Any:
    """Round a number, a one-element tensor or a numpy value; what cannot be rounded is unchanged.

    Args:
        number: the value; may be on any device.
        ndigits: decimals to keep, as for the built-in ``round``.
    """
    number = to_python(number)
    if not hasattr(number, "__round__"):
        return number
    rounded = round(number, ndigits)
    return Rounded(rounded, number) if isinstance(rounded, float) else rounded


class Rounded(float):
    """A figure as a console shows it, which knows what it was: files keep ``exact``."""

    exact: float

    def __new__(cls, value: float, exact: float) -> Rounded:
        """Return ``value`` with ``exact`` beside it; arithmetic with it gives plain numbers."""
        rounded = super().__new__(cls, value)
        rounded.exact = float(exact)
        return rounded

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy, and go into files, as the plain number."""
        return float, (float(self),)


def exact(figure: object) -> Any:
    """Return what a figure was before it was rounded for display."""
    return getattr(figure, "exact", figure)


class Meter:
    """A running figure. Subclasses can be saved and loaded by the name of their class.

    Attributes:
        round: decimals of the shown value; None shows all.
    """

    round: int | None = None
    kinds: ClassVar[dict[str, type[Meter]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Make the class loadable by name; the first class of a name keeps it."""
        super().__init_subclass__(**kwargs)
        # a plug-in's class of the same name must not change how our checkpoints are read
        Meter.kinds.setdefault(cls.__name__, cls)

    def reset(self) -> None:
        """Forget everything seen so far."""
        raise NotImplementedError

    def state_dict(self) -> MeterState:
        """Return the figures as plain numbers."""
        return {}

    def load_state_dict(self, state_dict: MeterState) -> None:
        """Continue from the figures that ``state_dict`` returned, numbers or tensors."""

    @property
    def smoothed_value(self) -> Any:
        """The figure to show, rounded as the meter was told."""
        raise NotImplementedError

    def _rounded(self, value: object) -> Any:
        return value if self.round is None or value is None else safe_round(value, self.round)


class _Weighted:
    """What meters over a sum have in common; no Meter, so that no checkpoint can name it."""

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.reset()

    def reset(self) -> None:
        self._figures = WeightedSum()


class AverageMeter(_Weighted, Meter):
    """A weighted mean; with only zero weights, the latest value."""

    def update(self, val: object, n: object = 1) -> None:
        """Take in ``val`` with weight ``n``; None is ignored."""
        if val is not None:
            self._figures.add(val, n)

    @property
    def val(self) -> Any:
        """The latest value, None before the first."""
        return self._figures.figures()[0]

    @property
    def sum(self) -> Any:
        """The sum of value times weight."""
        return self._figures.figures()[1]

    @property
    def count(self) -> Any:
        """The sum of the weights."""
        return self._figures.figures()[2]

    @property
    def avg(self) -> Any:
        """The weighted mean, or the latest value if there is no weight yet."""
        last, total, weight = self._figures.figures()
        # a figure logged with weight 0 is a state, such as the learning rate, and has no mean
        return total / weight if weight > 0 else last

    @property
    def smoothed_value(self) -> Any:
        return self._rounded(self.avg)

    def state_dict(self) -> MeterState:
        last, total, weight = self._figures.figures()
        return {"val": last, "sum": total, "count": weight, "round": self.round}

    def load_state_dict(self, state_dict: MeterState) -> None:
        figures = (state_dict[key] for key in ("val", "sum", "count"))
        self._figures = WeightedSum(*figures)
        self.round = state_dict.get("round")


class SumMeter(_Weighted, Meter):
    """A sum."""

    def update(self, val: object) -> None:
        """Add ``val``; None is ignored."""
        if val is not None:
            self._figures.add(val)

    @property
    def sum(self) -> Any:
        """The sum so far."""
        return self._figures.figures()[1]

    @property
    def smoothed_value(self) -> Any:
        return self._rounded(self.sum)

    def state_dict(self) -> MeterState:
        return {"sum": self.sum, "round": self.round}

    def load_state_dict(self, state_dict: MeterState) -> None:
        self._figures = WeightedSum(total=state_dict["sum"])
        self.round = state_dict.get("round")


class TimeMeter(Meter):
    """A speed: what was counted, divided by the seconds since the start.

    Args:
        init: seconds that had already passed.
        n: what had already been counted.
        round: decimals of the shown value; None shows all.
    """

    def __init__(self, init: float = 0, n: float = 0, round: int | None = None) -> None:
        self.round = round
        self.reset(init, n)

    def reset(self, init: float = 0, n: float = 0) -> None:
        """Start the clock again, ``init`` seconds and ``n`` counts ahead."""
        self.init = init
        self.start = time.perf_counter()
        self._counted = WeightedSum(total=n)

    def update(self, val: object = 1) -> None:
        """Count ``val`` more."""
        self._counted.add(val)

    @property
    def n(self) -> Any:
        """What was counted."""
        return self._counted.figures()[1]

    @property
    def elapsed_time(self) -> float:
        """Seconds since the start, those of before a restart included."""
        return self.init + (time.perf_counter() - self.start)

    @property
    def avg(self) -> float:
        """Counts per second; 0 before the clock has moved."""
        elapsed = self.elapsed_time
        # clocks of some systems are coarse: right after the start none of it has passed
        return self.n / elapsed if elapsed > 0 else 0.0

    @property
    def smoothed_value(self) -> float:
        return self._rounded(self.avg)

    def state_dict(self) -> MeterState:
        return {"init": self.elapsed_time, "n": self.n, "round": self.round}

    def load_state_dict(self, state_dict: MeterState) -> None:
        self.reset(init=to_python(state_dict["init"]), n=state_dict["n"])
        self.round = state_dict.get("round")


class StopwatchMeter(Meter):
    """The seconds between starts and stops, per unit of weight if stops carry weights."""

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.sum: float = 0
        self.n: float = 0
        self.start_time: float | None = None

    def start(self) -> None:
        """Start a lap."""
        self.start_time = time.perf_counter()

    def stop(self, n: object = 1, prehook: Callable[[], None] | None = None) -> None:
        """End the lap with weight ``n``; nothing happens if none was started.

        Args:
            n: weight of the lap.
            prehook: called before the clock is read, for instance to wait for a device.
        """
        if self.start_time is None:
            return
        if prehook is not None:
            prehook()
        self.sum += time.perf_counter() - self.start_time
        self.n += to_python(n)

    def reset(self) -> None:
        self.sum = 0
        self.n = 0
        self.start()

    @property
    def avg(self) -> float:
        """Seconds per unit of weight; all seconds if there is no weight."""
        return self.sum / self.n if self.n > 0 else self.sum

    @property
    def elapsed_time(self) -> float:
        """Seconds of the lap that is running, 0 if there is none."""
        return 0.0 if self.start_time is None else time.perf_counter() - self.start_time

    @property
    def smoothed_value(self) -> float:
        """The rounded average lap, or the running lap while none has ended."""
        return self._rounded(self.avg if self.sum > 0 else self.elapsed_time)

    def state_dict(self) -> MeterState:
        return {"sum": self.sum, "n": self.n, "round": self.round}

    def load_state_dict(self, state_dict: MeterState) -> None:
        """Continue from saved laps; no lap is running afterwards."""
        self.sum = to_python(state_dict["sum"])
        self.n = to_python(state_dict["n"])
        self.start_time = None
        self.round = state_dict.get("round")


class ConcatTensorMeter(Meter):
    """Tensors joined along one dimension, for metrics that need every prediction at once."""

    def __init__(self, dim: int = 0) -> None:
        self.dim = dim
        self.reset()

    def reset(self) -> None:
        self._parts: list[Any] = []

    def update(self, val: Tensor | None) -> None:
        """Append the tensor ``val``, detached from its graph; None is ignored."""
        if val is not None:
            self._parts.append(val.detach())

    @property
    def tensor(self) -> Any:
        """All parts joined; an empty tensor before the first."""
        import torch

        if not self._parts:
            return torch.empty(0)
        # joined once: the next call has only what came since to add
        self._parts = [torch.cat(self._parts, dim=self.dim)]
        return self._parts[0]

    @property
    def smoothed_value(self) -> list[Any]:
        """An empty list: the parts feed derived figures and are not shown themselves."""
        return []

    def state_dict(self) -> MeterState:
        return {"tensor": self.tensor.cpu()}

    def load_state_dict(self, state_dict: MeterState) -> None:
        tensor = state_dict["tensor"]
        self._parts = [tensor] if tensor.numel() else []


class MetersDict(OrderedDict[str, Meter]):
    """Meters by name, in the order of their priorities (small first), then of their arrival.

    ``meters[key] = (priority, meter)`` adds a meter; a key is never assigned twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.priorities: list[tuple[int, int, str]] = []

    def __setitem__(self, key: str, value: Any) -> None:
        assert key not in self, f"meter {key!r} exists already; reset it instead of replacing it"
        priority, meter = value
        # the count breaks ties by arrival; without it equal priorities would sort by name
        row = (priority, len(self.priorities), key)
        position = bisect.bisect(self.priorities, row)
        self.priorities.insert(position, row)
        super().__setitem__(key, meter)
        # an OrderedDict cannot insert: all that come after are moved behind, one by one
        for _, _, name in self.priorities[position + 1 :]:
            self.move_to_end(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy through ``add_meter``: the inherited way would lose the priorities."""
        rows = [(key, self[key], priority) for priority, _, key in self.priorities]
        return _rebuild, (rows,)

    def add_meter(self, key: str, meter: Meter, priority: int) -> None:
        """Add ``meter`` under the new name ``key``."""
        self[key] = (priority, meter)

    def clear(self) -> None:
        """Remove all meters."""
        super().clear()
        self.priorities.clear()

    def reset(self) -> None:
        """Reset every meter; names and priorities stay."""
        for meter in self.values():
            meter.reset()

    def get_smoothed_value(self, key: str) -> Any:
        """Return the figure to show for ``key``."""
        meter = self[key]
        # a derived figure needs its neighbours, which a meter by itself does not know
        if isinstance(meter, DerivedMeter):
            return meter._rounded(meter.fn(self))
        return meter.smoothed_value

    def get_smoothed_values(self) -> OrderedDict[str, Any]:
        """Return all figures to show, in order; names that start with ``_`` are left out."""
        shown = (key for key in self if not key.startswith("_"))
        return OrderedDict((key, self.get_smoothed_value(key)) for key in shown)

    def state_dict(self) -> list[tuple[int, str, str, MeterState]]:
        """Return rows ``(priority, key, class name, state)``; derived meters are not saved."""
        return [
            (priority, key, type(self[key]).__name__, self[key].state_dict())
            for priority, _, key in self.priorities
            # their function cannot be saved; whoever logs them defines them anew
            if not isinstance(self[key], DerivedMeter)
        ]

    def load_state_dict(self, state_dict: Iterable[Sequence[Any]]) -> None:
        """Replace all meters by the saved ones.

        Raises:
            CheckpointError: if a row is malformed or names a class that is no known meter.
        """
        self.clear()
        for row in state_dict:
            try:
                priority, key, kind, state = row
                meter = Meter.kinds[kind]()
                meter.load_state_dict(state)
                self.add_meter(key, meter, priority)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"the checkpoint holds a meter that cannot be read: {str(row)[:200]} "
                    f"({type(error).__name__}: {error}). Known meters: {', '.join(Meter.kinds)}. "
                    "Load it with --reset-meters to start with empty ones."
                ) from error


class DerivedMeter(Meter):
    """A figure computed from the other meters of its dictionary whenever it is shown.

    Args:
        fn: takes the dictionary of meters, returns the figure.
        round: decimals shown.
    """

    def __init__(self, fn: Callable[[MetersDict], object], round: int | None = None) -> None:
        self.fn, self.round = fn, round

    def reset(self) -> None:
        """Do nothing: there is no figure of its own."""


def _rebuild(rows: Iterable[tuple[str, Meter, int]]) -> MetersDict:
    """Return a dictionary with the given ``(key, meter, priority)`` rows."""
    meters = MetersDict()
    for key, meter, priority in rows:
        meters.add_meter(key, meter, priority)
    return meters
