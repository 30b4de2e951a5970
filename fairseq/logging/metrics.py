"""Log figures anywhere and aggregate them where they are needed.

>>> with aggregate("train"):
...     for step in range(10):
...         with aggregate("train_inner") as inner:
...             log_scalar("loss", 10 - step)
...             shown = inner.get_smoothed_values()
...             inner.reset()
>>> get_smoothed_values("train")["loss"]
5.5

A logged value goes to every active aggregator: the one called "default", which is always there, and
one for each open :func:`aggregate` block. ``new_root=True`` hides the outer ones, "default"
included, so that a validation inside of training does not disturb the training figures. Named
aggregators live until :func:`reset`, and are part of :func:`state_dict`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from fairseq.errors import RegistryError, did_you_mean
from fairseq.logging.meters import (
    AverageMeter,
    ConcatTensorMeter,
    DerivedMeter,
    Meter,
    MetersDict,
    StopwatchMeter,
    SumMeter,
    TimeMeter,
)
from fairseq.protocols import StateDict

_default = MetersDict()
_aggregators: OrderedDict[str, MetersDict] = OrderedDict(default=_default)
_active: list[MetersDict] = [_default]


def reset() -> None:
    """Forget all aggregators, also those of blocks that are still open."""
    _default.clear()
    _aggregators.clear()
    _aggregators["default"] = _default
    _active[:] = [_default]


@contextlib.contextmanager
def aggregate(name: str | None = None, new_root: bool = False) -> Iterator[MetersDict]:
    """Collect what is logged inside the block, or inside calls of the decorated function.

    Args:
        name: keep the meters under this name and continue them next time; None makes a fresh
            aggregator that is forgotten after the block. Blocks of one name may be nested: a value
            is still counted once.
        new_root: hide the outer aggregators inside the block.

    Yields:
        The meters of the block.
    """
    assert name != "default", "the aggregator 'default' is always active"
    aggregator = MetersDict() if name is None else _aggregators.setdefault(name, MetersDict())
    outer = list(_active)
    if new_root:
        # in place: the list is shared by everything that logs
        _active[:] = [aggregator]
    elif all(other is not aggregator for other in outer):  # == would compare the meters
        _active.append(aggregator)
    try:
        yield aggregator
    finally:
        _active[:] = outer


def get_active_aggregators() -> list[MetersDict]:
    """Return the aggregators that a value logged now would go to, the outermost first."""
    return list(_active)


def _active_meters(key: str, new_meter: Callable[[], Meter], priority: int) -> Iterator[Any]:
    """Yield the meter ``key`` of each active aggregator, made by ``new_meter`` where missing."""
    for aggregator in _active:
        if key not in aggregator:
            # a block opened later has no meter yet although the outer ones do
            aggregator.add_meter(key, new_meter(), priority)
        yield aggregator[key]


def log_scalar(
    key: str, value: object, weight: object = 1, priority: int = 10, round: int | None = None
) -> None:
    """Log a value whose weighted mean is shown.

    Args:
        key: name of the figure; a leading ``_`` hides it.
        value: number or scalar tensor; tensors on an accelerator are not read now.
        weight: its weight; 0 shows the latest value instead of a mean.
        priority: place in the order of figures, small ones first.
        round: decimals shown.
    """
    for meter in _active_meters(key, lambda: AverageMeter(round=round), priority):
        meter.update(value, weight)


def log_scalar_sum(key: str, value: object, priority: int = 10, round: int | None = None) -> None:
    """Log a value whose sum is shown."""
    for meter in _active_meters(key, lambda: SumMeter(round=round), priority):
        meter.update(value)


def log_concat_tensor(key: str, value: object, priority: int = 10, dim: int = 0) -> None:
    """Append a tensor along ``dim``, for derived figures that need all of them."""
    for meter in _active_meters(key, lambda: ConcatTensorMeter(dim=dim), priority):
        meter.update(value)


def log_derived(
    key: str, fn: Callable[[MetersDict], object], priority: int = 20, round: int | None = None
) -> None:
    """Show ``fn(meters)``, computed from the other meters of each aggregator when asked for."""
    for _ in _active_meters(key, lambda: DerivedMeter(fn, round), priority):
        pass


def log_speed(key: str, value: object, priority: int = 30, round: int | None = None) -> None:
    """Count ``value`` and show the count per second.

    The first call only starts the clock: the time its value took is not known.
    """
    for aggregator in _active:
        if key in aggregator:
            meter = aggregator[key]
            assert isinstance(meter, TimeMeter)
            meter.update(value)
        else:
            aggregator.add_meter(key, TimeMeter(round=round), priority)


def log_start_time(key: str, priority: int = 40, round: int | None = None) -> None:
    """Start a lap of the stopwatch ``key``."""
    for meter in _active_meters(key, lambda: StopwatchMeter(round=round), priority):
        meter.start()


def log_stop_time(key: str, weight: float = 0.0, prehook: Callable[[], None] | None = None) -> None:
    """End a lap of the stopwatch ``key`` wherever one was started.

    Args:
        key: the name given to :func:`log_start_time`.
        weight: with weights, the seconds per unit are shown; without, all seconds.
        prehook: called before the clock is read, for instance to wait for a device.
    """
    for aggregator in _active:
        if key in aggregator:
            meter = aggregator[key]
            assert isinstance(meter, StopwatchMeter)
            meter.stop(weight, prehook)


def log_custom(
    new_meter_fn: Callable[[], Meter], key: str, *args: object, priority: int = 50, **kwargs: object
) -> None:
    """Update a meter of one's own: ``meter.update(*args, **kwargs)``.

    Args:
        new_meter_fn: makes the meter where it does not exist yet.
        key: name of the figure.
        *args: passed to the meter.
        priority: place in the order of figures.
        **kwargs: passed to the meter.
    """
    for meter in _active_meters(key, new_meter_fn, priority):
        meter.update(*args, **kwargs)


def _named(name: str) -> MetersDict:
    if name not in _aggregators:
        raise RegistryError(
            f"no figures were aggregated as {name!r}{did_you_mean(name, _aggregators)}; "
            f"there are: {', '.join(_aggregators)}"
        )
    return _aggregators[name]


def reset_meter(name: str, key: str) -> None:
    """Reset one meter of the aggregator ``name``, if it exists."""
    meter = get_meter(name, key)
    if meter is not None:
        meter.reset()


def reset_meters(name: str) -> None:
    """Reset all meters of the aggregator ``name``, if it exists."""
    if name in _aggregators:
        _aggregators[name].reset()


def get_meter(name: str, key: str) -> Meter | None:
    """Return one meter of the aggregator ``name``, None if there is none."""
    return _aggregators[name].get(key) if name in _aggregators else None


def get_meters(name: str) -> MetersDict | None:
    """Return the meters of the aggregator ``name``, None if there is none."""
    return _aggregators.get(name)


def get_smoothed_value(name: str, key: str) -> Any:
    """Return one figure of the aggregator ``name``.

    Raises:
        RegistryError: if there is no such aggregator.
    """
    return _named(name).get_smoothed_value(key)


def get_smoothed_values(name: str) -> OrderedDict[str, Any]:
    """Return the figures of the aggregator ``name`` in order, hidden ones left out.

    Raises:
        RegistryError: if there is no such aggregator.
    """
    return _named(name).get_smoothed_values()


def state_dict() -> OrderedDict[str, Any]:
    """Return the state of all named aggregators, as kept in checkpoints."""
    return OrderedDict((name, meters.state_dict()) for name, meters in _aggregators.items())


def load_state_dict(state_dict: StateDict) -> None:
    """Replace the meters of the aggregators named in ``state_dict`` by the saved ones.

    Raises:
        CheckpointError: if a saved meter is malformed or of an unknown class.
    """
    for name, rows in state_dict.items():
        _aggregators.setdefault(name, MetersDict()).load_state_dict(rows)
