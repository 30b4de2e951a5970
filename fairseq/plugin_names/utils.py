"""``fairseq.utils`` as plug-ins import it: what no part of the house needs any more."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.config.schema import list_parser, parse_literal
from fairseq.logging.console import setup_logging
from fairseq.plugin_names.incremental_state import FairseqIncrementalState, IncrementalState
from fairseq.utils import apply_to_sample, move_to_device


def move_to_cuda(sample: Any, device: torch.device | None = None) -> Any:
    """Return the batch on the current (or given) GPU."""
    return move_to_device(sample, device or torch.device("cuda"))


def move_to_cpu(sample: object) -> Any:
    """Return the batch on the CPU, half-precision tensors as fp32."""
    halves = (torch.float16, torch.bfloat16)
    return apply_to_sample(lambda x: (x.float() if x.dtype in halves else x).cpu(), sample)


def fill_with_neg_inf(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and type filled with minus infinity."""
    return torch.full_like(tensor, -math.inf)


def eval_str_list(text: object, type: Callable[[Any], object] = float) -> list[Any] | None:
    """Read ``"[1, 2]"``, ``"3"`` or ``""`` as a list; never evaluates code."""
    return None if text is None else list_parser(type)(text)


def eval_str_dict(text: str | dict[Any, Any]) -> dict[Any, Any] | None:
    """Read a dictionary written as a Python literal; never evaluates code."""
    return parse_literal(text) if isinstance(text, str) else text


def eval_bool(text: object, default: bool = False) -> bool:
    """Read a truth value; ``default`` if it is None or unreadable."""
    if text is None:
        return default
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return words.get(str(text).strip().lower(), default)


def csv_str_list(text: str) -> list[str]:
    """Split at commas."""
    return text.split(",")


def safe_hasattr(obj: object, name: str) -> bool:
    """Tell whether ``obj`` has an attribute that is not None."""
    return getattr(obj, name, None) is not None


def safe_getattr(obj: object, name: str, default: object = None) -> Any:
    """Return an attribute, ``default`` if it is missing or None."""
    value = getattr(obj, name, None)
    return default if value is None else value


def deprecation_warning(message: str, stacklevel: int = 3) -> None:
    """Warn about something that will go away."""
    warnings.warn(message, stacklevel=stacklevel)


def new_arange(x: Tensor, *size: int) -> Tensor:
    """Return ``0..n-1`` along the last dimension, expanded to ``size`` (or the shape of ``x``)."""
    shape: Sequence[int] = size or x.size()
    return torch.arange(shape[-1], device=x.device).expand(*shape).contiguous()


def buffered_arange(stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Return ``0..stop-1``."""
    return torch.arange(stop, device=device)


def convert_padding_direction(
    src_tokens: Tensor, padding_idx: int, right_to_left: bool = False, left_to_right: bool = False
) -> Tensor:
    """Move the pads of each row (B, T) from one side to the other.

    Args:
        src_tokens: token ids.
        padding_idx: id of the pad symbol.
        right_to_left: pads are on the right and go to the left.
        left_to_right: the opposite; exactly one of the two must be set.
    """
    assert right_to_left ^ left_to_right
    pad_BT = src_tokens.eq(padding_idx).int()
    order_BT = pad_BT.sort(dim=1, descending=right_to_left, stable=True).indices
    return src_tokens.gather(1, order_BT)


def get_incremental_state(
    module: FairseqIncrementalState, incremental_state: IncrementalState | None, key: str
) -> dict[str, Tensor | None] | None:
    """Return what ``module`` cached under ``key`` while it extends a sequence."""
    return module.get_incremental_state(incremental_state, key)


def set_incremental_state(
    module: FairseqIncrementalState,
    incremental_state: IncrementalState | None,
    key: str,
    value: dict[str, Tensor | None],
) -> IncrementalState | None:
    """Cache ``value`` for ``module`` under ``key``; return the incremental state."""
    return module.set_incremental_state(incremental_state, key, value)


def index_put(tensor: Tensor, indices: Tensor, value: Any) -> Tensor:
    """Write ``value`` where ``indices`` say, in place; return the tensor."""
    tensor[indices] = value
    return tensor


def multi_tensor_total_norm(grads: Iterable[Tensor], chunk_size: int = 2048 * 32) -> Tensor:
    """Return the joint L2 norm of tensors, computed in fp32; ``chunk_size`` is for old callers."""
    norms = torch._foreach_norm([grad.float() for grad in grads])
    # the norm of the norms is the norm of all
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def set_defaults(args: argparse.Namespace, cls: type) -> None:
    """Give ``args`` the defaults of the flags of a component (its ``add_args``) that it lacks."""
    if not hasattr(cls, "add_args"):
        return
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, add_help=False)
    cls.add_args(parser)
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS and not hasattr(args, action.dest):
            setattr(args, action.dest, action.default)


def reset_logging() -> None:
    """Drop every handler of the root logger and install ours."""
    setup_logging(force=True)
