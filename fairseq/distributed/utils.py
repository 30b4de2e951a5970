"""Who am I among the processes, and how do we talk: torchrun's environment, spawn, reduces.

Statistics travel as tensors, never as pickles.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import importlib
import logging
import math
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fairseq.config.plugins import import_user_module
from fairseq.config.sections import DistributedTrainingConfig, FairseqConfig
from fairseq.errors import ConfigError, FairseqError
from fairseq.logging.console import setup_logging
from fairseq.protocols import LoggingOutput, Settings

logger = logging.getLogger(__name__)

TIMEOUT_MINUTES = 30
SAME_NORM = 1e-6  # of gradients on two processes, relative
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGINT")
    if hasattr(signal, name)  # Windows has one
]


class DifferentGradientsError(FairseqError, FloatingPointError):
    """Processes that should have one gradient have several."""


def is_initialized() -> bool:
    """Tell whether this process talks to others."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if is_initialized() else 0


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_initialized() else 1


get_global_rank, get_global_world_size = get_rank, get_world_size
get_data_parallel_rank, get_data_parallel_world_size = get_rank, get_world_size


def is_master(cfg: Settings | None = None) -> bool:
    """Tell whether this process writes logs and checkpoints."""
    return get_rank() == 0


def get_global_group() -> Any:
    """Return the group of all processes, None if there is only one."""
    return dist.group.WORLD if is_initialized() else None


get_data_parallel_group = get_global_group


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait for all processes."""
    if is_initialized():
        dist.barrier(group)


def all_reduce(tensor: Tensor, group: object = None, op: str = "sum") -> Tensor:
    """Combine a tensor over all processes, in place (``sum`` or ``max``)."""
    if is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, group)
    return tensor


def device_of_messages() -> torch.device:
    """Return where messages are put together where no batch tells it: NCCL sends from GPUs only."""
    nccl = is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def longest(duration: float, device: torch.device) -> float:
    """Return the longest duration of any process, the same on all of them."""
    if get_world_size() == 1:
        return duration
    return float(all_reduce(torch.tensor(duration, dtype=torch.float64, device=device), op="max"))


def sum_over_processes(data: Mapping[str, object], device: torch.device) -> dict[str, Any]:
    """Add up a dict of numbers over all processes, in one message of float64.

    What a process lacks (its share was filler, or none of its samples has the figure) counts as
    zero. Names travel only when some process has others than last time.

    Args:
        data: numbers or 0-dimensional tensors by name.
        device: where the messages are put together.

    Returns:
        the totals by name, the same on every process, as fp64 tensors.
    """
    if not is_initialized():
        return dict(data)
    names = sorted(data)
    if _last_names:
        others = 0.0 if not names or names == _last_names else 1.0
        *values, strangers = _sum_of({**data, "others": others}, [*_last_names, "others"], device)
        if not bool(strangers):
            return dict(zip(_last_names, values, strict=True))
    _last_names[:] = _all_names(names, device)
    return dict(zip(_last_names, _sum_of(data, _last_names, device), strict=True))


# the same in every process, since all change it together
_last_names: list[str] = []


def _sum_of(data: Mapping[str, object], names: Sequence[str], device: torch.device) -> Tensor:
    """Return the totals under these names; what is missing here counts as zero."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    values = [
        torch.as_tensor(data[name], dtype=torch.float64, device=device).reshape(())
        if name in data
        else zero
        for name in names
    ]
    return all_reduce(torch.stack(values)) if values else zero.new_zeros(0)


def _all_names(names: list[str], device: torch.device) -> list[str]:
    """Return the names that any process has, sorted: each may have some that others lack."""
    encoded = "\0".join(names).encode()
    size = int(all_reduce(torch.tensor([len(encoded)], device=device), op="max"))
    text_WL = torch.zeros(get_world_size(), size, dtype=torch.int64)
    text_WL[get_rank(), : len(encoded)] = torch.tensor(list(encoded), dtype=torch.int64)
    rows = all_reduce(text_WL.to(device)).tolist()
    texts = (bytes(row).rstrip(b"\0").decode() for row in rows)
    return sorted({name for text in texts if text for name in text.split("\0")})


def can_be_added(logs: Sequence[LoggingOutput]) -> bool:
    """Tell whether all figures are numbers or tensors."""
    return all(isinstance(x, Number | Tensor | np.number) for log in logs for x in log.values())


def added_up(logs: Sequence[LoggingOutput]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sums of what logging outputs say, and the rows that they join instead.

    Rows are tensors of two dimensions under a name that begins with ``_``. What one output lacks
    counts as 0 there.
    """
    total: dict[str, Any] = {}
    parts: dict[str, list[Tensor]] = {}
    for key, value in ((key, value) for log in logs for key, value in log.items()):
        if key.startswith("_") and torch.is_tensor(value) and value.dim() == 2:
            parts.setdefault(key, []).append(value)
        else:
            total[key] = total.get(key, 0) + value
    return total, {key: torch.cat(found) for key, found in parts.items()}


# mark, among added numbers, tensors that travel on their own: rows to be joined, tables to be added
_ROWS_OF, _TABLE_OF = "_rows_of_", "_table_of_"


def shared(
    logs: Sequence[LoggingOutput], sample_size: Any, device: torch.device
) -> tuple[list[LoggingOutput], Any]:
    """Return what the logging outputs of all processes say together, and their samples.

    A process without any output has no shape for a table, and gets its entries side by side.

    Args:
        logs: of this process.
        sample_size: of this process.
        device: where the messages are put together.
    """
    total, rows = added_up(logs)
    if not is_initialized():
        return [{**total, **rows}], sample_size
    tables = {k: x for k, x in total.items() if torch.is_tensor(x) and x.numel() > 1}
    parts = {_ROWS_OF + key: part for key, part in rows.items()}
    parts |= {_TABLE_OF + key: total.pop(key).reshape(1, -1) for key in tables}
    total |= {**dict.fromkeys(parts, 1), "_sample_size": sample_size}
    total = sum_over_processes(total, device)
    sample_size = total.pop("_sample_size", 0)
    for mark in [key for key in total if key.startswith((_ROWS_OF, _TABLE_OF))]:
        del total[mark]
        joined = concat_over_processes(parts.get(mark), device)
        key = mark.removeprefix(_ROWS_OF).removeprefix(_TABLE_OF)
        if mark.startswith(_TABLE_OF):
            joined = joined.sum(0)
            joined = joined.reshape(tables[key].shape) if key in tables else joined
        total[key] = joined
    return [total], sample_size


def concat_over_processes(rows_NK: Tensor | None, device: torch.device) -> Tensor:
    """Join the rows of all processes, in the order of their ranks.

    Args:
        rows_NK: what this process has, None for nothing; N may differ, K may not.
        device: where the messages are put together.

    Returns:
        all rows, as fp64, the same on every process.
    """
    rows_NK = torch.zeros(0, 0) if rows_NK is None else rows_NK
    if not is_initialized():
        return rows_NK.double()
    shapes = torch.zeros(get_world_size(), 2, dtype=torch.int64, device=device)
    shapes[get_rank()] = torch.tensor(rows_NK.shape)
    counts, columns = all_reduce(shapes).unbind(1)
    joined = torch.zeros(int(counts.sum()), int(columns.max()), dtype=torch.float64, device=device)
    first = int(counts[: get_rank()].sum())
    if len(rows_NK):
        joined[first : first + len(rows_NK)] = rows_NK
    # every process filled its own rows, so that the sum is all of them side by side
    return all_reduce(joined)


def backend_for(requested: str, device: torch.device) -> str:
    """Return the backend to use: NCCL serves GPUs only."""
    if requested == "nccl" and device.type != "cuda":
        return "gloo"
    return requested


def free_port() -> int:
    """Return a port on this machine that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def meeting(config: FairseqConfig) -> DistributedTrainingConfig:
    """Return how many processes a run should have, and how they meet.

    Under ``torchrun`` the environment decides; otherwise ``--distributed-world-size``, whose
    default is the number of visible GPUs, 1 where they are not used.

    Args:
        config: as the user wrote it.
    """
    env, cfg = os.environ, config.distributed_training
    if all(name in env for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")):
        return cfg.changed(
            distributed_init_method="env://",
            distributed_world_size=int(env["WORLD_SIZE"]),
            distributed_rank=int(env["RANK"]),
            device_id=int(env.get("LOCAL_RANK", 0)),
            distributed_no_spawn=True,
        )
    if cfg.distributed_world_size < 1:
        cfg = cfg.changed(distributed_world_size=max(1, _gpus_for(config)))
    if cfg.distributed_world_size == 1 and cfg.heartbeat_timeout > 0:
        logger.warning("--heartbeat-timeout does nothing in one process, which waits for nobody")
    return cfg


def before_meeting(config: FairseqConfig) -> DistributedTrainingConfig:
    """Return the section without what :func:`meeting` and the start of processes filled in.

    Settings that are kept to be used again say what was asked for: places are found anew.
    """
    told, usual = config.stated.get("distributed_training", {}), DistributedTrainingConfig()
    places = (
        *("distributed_world_size", "distributed_rank", "distributed_init_method"),
        *("distributed_no_spawn", "device_id"),
    )
    asked = {name: told.get(name, getattr(usual, name)) for name in places}
    return config.distributed_training.changed(**asked)


def _gpus_for(config: FairseqConfig) -> int:
    """Return how many GPUs of this machine a run uses if it may."""
    used = not config.common.cpu and config.common.device in ("auto", "cuda")
    return torch.cuda.device_count() if used else 0


def init_process_group(cfg: DistributedTrainingConfig, device: torch.device) -> int:
    """Join the other processes, until this one ends.

    Returns:
        the rank of this process.

    Raises:
        ConfigError: if the processes cannot meet.
    """
    if is_initialized():
        return get_rank()
    backend, seconds = backend_for(cfg.distributed_backend, device), cfg.heartbeat_timeout
    # a wrapped model imports this, and what it imports keeps a group that is there for ever
    importlib.import_module("torch._dynamo")
    try:
        dist.init_process_group(
            backend,
            init_method=cfg.distributed_init_method,
            world_size=cfg.distributed_world_size,
            rank=-1 if cfg.distributed_rank is None else cfg.distributed_rank,
            timeout=datetime.timedelta(
                minutes=seconds / 60 if seconds and seconds > 0 else TIMEOUT_MINUTES
            ),
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"could not join the other processes at {cfg.distributed_init_method}: {error}"
        ) from error
    atexit.register(leave)
    if get_rank() != 0:
        logging.getLogger().setLevel(logging.WARNING)
    return get_rank()


def leave() -> None:
    """Leave the other processes, and wait for the threads that talked to them.

    They let go of their last tensors whenever they come to it; if the interpreter is ending by
    then, the process is aborted instead of ending with its status. They end when nothing refers to
    the group any more: a wrapped model must be gone by now.
    """
    if is_initialized():
        gc.collect()  # a wrapped model is part of cycles
        dist.destroy_process_group()


def _spawned(index: int, main: Callable[..., object], cfg: FairseqConfig, start_rank: int) -> None:
    # what this process was started by is nobody's choice for its data workers: by "spawn" they
    # import torch anew for every epoch and every validation
    multiprocessing.set_start_method(None, force=True)
    place = cfg.distributed_training.changed(distributed_rank=start_rank + index, device_id=index)
    cfg = cfg.changed(distributed_training=place)
    import_user_module(cfg.common)  # a spawned process knows no plug-in yet
    setup_logging()
    main(cfg)


def call_main(cfg: FairseqConfig, main: Callable[..., object]) -> Any:
    """Run ``main(cfg)`` in as many processes as the configuration asks for.

    Args:
        cfg: the whole configuration.
        main: a module-level function.

    Returns:
        what ``main`` returned, None if it ran in processes of their own.
    """
    distributed = meeting(cfg)
    cfg = cfg.changed(distributed_training=distributed)
    world = distributed.distributed_world_size
    if world == 1 or distributed.distributed_no_spawn:
        return main(cfg)
    local = distributed.distributed_num_procs
    if local is None or local < 1:
        local = _gpus_for(cfg) or world
    if distributed.distributed_init_method is None:
        local = world  # they meet on this machine, so all of them are here
        address = f"tcp://127.0.0.1:{free_port()}"
        distributed = distributed.changed(distributed_init_method=address)
        cfg = cfg.changed(distributed_training=distributed)
    start_rank = distributed.distributed_rank or 0
    try:
        with left_to_children():
            torch.multiprocessing.spawn(
                _spawned, args=(main, cfg, start_rank), nprocs=min(local, world), join=True
            )
    except torch.multiprocessing.ProcessExitedException as error:
        raise FairseqError(_how_it_ended(error)) from error
    except torch.multiprocessing.ProcessRaisedException as error:
        cause = str(error).strip().splitlines()[-1]
        raise FairseqError(
            f"process {error.error_index} of {world} failed and the others were stopped: {cause} "
            "(FAIRSEQ_DEBUG=1 shows the traceback)"
        ) from error
    return None


@contextlib.contextmanager
def left_to_children() -> Iterator[None]:
    """Pass signals on to the children, and let them finish what they are asked to do.

    A terminal tells them of a Ctrl-C too; to them, both are one request.

    Raises:
        SystemExit: with status 128 + n after signal n, if the children ended without an error, or
            there are none.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: object) -> None:
        noted.append(number)
        children = [child.pid for child in multiprocessing.active_children() if child.pid]
        if not children:
            raise SystemExit(128 + number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if noted:
        raise SystemExit(128 + noted[0])


def _how_it_ended(error: torch.multiprocessing.ProcessExitedException) -> str:
    """Say which process ended how; a stop signal of ours is passed on as exit status."""
    # the process saved and stopped as it was asked to
    if error.signal_name is None and error.exit_code - 128 in STOP_SIGNALS:
        raise SystemExit(error.exit_code)
    how = error.signal_name or f"exit status {error.exit_code}"
    return (
        f"process {error.error_index} ended unexpectedly ({how}) and the others were stopped; run "
        "the same command again to go on from the last checkpoint"
    )


def average_gradients(module: torch.nn.Module) -> None:
    """Replace the gradients of a module that is not wrapped by their mean over all processes.

    A parameter without gradient on any of them stays so: it is neither decayed nor counted.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if get_world_size() == 1 or not parameters:
        return
    flags = [int(p.grad is not None) for p in parameters]
    trained = all_reduce(torch.tensor(flags, device=parameters[0].device), op="max").tolist()
    for parameter in (p for p, somewhere in zip(parameters, trained, strict=True) if somewhere):
        # every process takes part in every reduction, or the others wait for ever
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= get_world_size()


def refuse_other_norms(norm: Tensor, device: torch.device) -> None:
    """Make sure that all processes have one gradient, by its norm.

    Args:
        norm: of this process, 0-dim.
        device: where the message is put together.

    Raises:
        DifferentGradientsError: on every process, if norms differ by more than rounding.
    """
    norm_W = torch.zeros(get_world_size(), dtype=torch.float64, device=device)
    norm_W[get_rank()] = norm
    norms = all_reduce(norm_W).tolist()
    # what is finite on one process alone is no norm of the others' gradient; infinite ones are
    finite = [math.isfinite(norm) for norm in norms]
    if not any(finite):
        return
    if not all(finite) or max(norms) - min(norms) > SAME_NORM * max(norms):
        raise DifferentGradientsError(
            "gradients are inconsistent between workers, their norms are "
            f"{', '.join(f'{norm:.8g}' for norm in norms)}: something changes them behind their "
            "average, or parameters are used by some of them only. Try --ddp-backend legacy_ddp"
        )
