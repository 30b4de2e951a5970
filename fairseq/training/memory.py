"""What a training process keeps in memory: counted from tensors, or asked of the system."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq.optim.base import FairseqOptimizer

STATUS = Path("/proc/self/status")  # of Linux


def _status(key: str) -> int | None:
    """Return a figure of the kernel's about this process in bytes, else its peak so far."""
    try:
        lines = [line.split() for line in STATUS.read_text().splitlines() if line.startswith(key)]
        # the kernel states kB, which are 1024 bytes
        return int(lines[0][1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    # unlike the figures above, this one begins with the peak of the process that started ours
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS states bytes, other systems kB
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int | None:
    """Return the bytes of memory this process holds, None where the system does not tell."""
    return _status("VmRSS:")


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that this process has held at once so far.

    Args:
        device: a GPU's own memory, reserved by torch; of another device the memory of the machine.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return _status("VmHWM:")


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; memory that several share counts once."""
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(sizes.values())


def module_tensors(*modules: nn.Module | None) -> list[Tensor]:
    """Return parameters and buffers of modules; None has none."""
    return [x for m in modules if m is not None for x in (*m.parameters(), *m.buffers())]


def masters(optimizer: FairseqOptimizer, weights: Iterable[Tensor]) -> list[Tensor]:
    """Return the fp32 copies that an optimizer keeps of half-precision weights."""
    known = {id(weight) for weight in weights}
    return [p for p in optimizer.params if id(p) not in known]


def gradient_bytes(optimizer: FairseqOptimizer, weights: Sequence[Tensor]) -> int:
    """Return the bytes of the gradients of what is trained; fp32 copies have some, too."""
    return bytes_of(weights) + bytes_of(masters(optimizer, weights))


def optimizer_bytes(optimizer: FairseqOptimizer, weights: Sequence[Tensor]) -> int | None:
    """Return the bytes of an optimizer: running means and the like, and fp32 copies of weights.

    Before the first update, rules of ours say what they will keep; torch's do not.

    Args:
        optimizer: the optimizer.
        weights: what is trained of the model and the criterion.

    Returns:
        the bytes, None if they are not known yet.
    """
    inner = optimizer.optimizer
    states = list(inner.state.values())
    if not states:
        begin = getattr(inner, "init_state", None)
        if begin is None:
            return None
        # on the device "meta" tensors have shapes and no content
        states = [
            begin(torch.empty(p.shape, device="meta"), group)
            for group in inner.param_groups
            for p in group["params"]
        ]
    tensors = [x for state in states for x in state.values() if isinstance(x, Tensor)]
    return bytes_of(masters(optimizer, weights)) + sum(x.nbytes for x in tensors)


@contextlib.contextmanager
def saved_for_backward(weights: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Count what forward passes inside the block keep for their backward passes.

    Args:
        weights: tensors that are kept anyway.

    Yields:
        bytes by address, filled while the block runs; memory that several tensors share is there
        once. What a function keeps by other means than ``save_for_backward`` is missing.
    """
    # layers save their weights for the backward pass, but these take no further memory
    kept_anyway = {x.untyped_storage().data_ptr() for x in weights}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        # views of one storage, such as transposed ones, are kept once
        address = x.untyped_storage().data_ptr()
        if address not in kept_anyway:
            sizes[address] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield sizes
