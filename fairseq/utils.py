"""Small tensor helpers, under the names that plug-ins import.

A few of those names are defined on higher floors; they are imported when they are asked for.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.config.schema import parse_literal
from fairseq.lazy import lazy_names

__getattr__, __dir__, _names = lazy_names(
    __name__,
    {
        "get_activation_fn": "fairseq.modules.activations",
        "get_available_activation_fns": "fairseq.modules.activations",
        "import_user_module": "fairseq.user_dir",
    },
)


def item(value: Any) -> Any:
    """Return a one-element tensor as a number, anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def split_paths(paths: str, separator: str = os.pathsep) -> list[str]:
    """Split a list of folders at ``:``, or at ``|`` if it holds URLs."""
    return paths.split("|") if "://" in paths else paths.split(separator)


def apply_to_sample(function: Callable[[Tensor], Tensor], sample: Any) -> Any:
    """Return a copy of a nested batch with ``function`` applied to every tensor."""
    if isinstance(sample, Tensor):
        return function(sample)
    if isinstance(sample, Mapping):
        pairs = [(key, apply_to_sample(function, x)) for key, x in sample.items()]
        return OrderedDict(pairs) if isinstance(sample, OrderedDict) else dict(pairs)
    if isinstance(sample, (list, set)):
        return type(sample)(apply_to_sample(function, x) for x in sample)
    if isinstance(sample, tuple):
        parts = (apply_to_sample(function, x) for x in sample)
        return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)
    return sample


def move_to_device(sample: Any, device: torch.device | str) -> Any:
    """Return the batch on ``device``; copies from pinned memory do not block."""
    return apply_to_sample(lambda tensor: tensor.to(device, non_blocking=True), sample)


def move_to_cuda(sample: Any, device: Any = None) -> Any:
    """Return the batch on the current (or given) GPU."""
    return move_to_device(sample, device or torch.device("cuda"))


def move_to_cpu(sample: Any) -> Any:
    """Return the batch on the CPU, half-precision tensors as fp32."""
    halves = (torch.float16, torch.bfloat16)
    return apply_to_sample(lambda x: (x.float() if x.dtype in halves else x).cpu(), sample)


def strip_pad(tensor: Tensor, pad: int) -> Tensor:
    """Return the elements that are not ``pad``."""
    return tensor[tensor.ne(pad)]


def make_positions(
    tensor: Tensor, padding_idx: int, onnx_trace: bool = False, offset: int | None = None
) -> Tensor:
    """Number the non-pad tokens of each row; pads keep ``padding_idx``.

    Args:
        tensor: token ids (B, T).
        padding_idx: id of the pad symbol.
        onnx_trace: accepted for old callers.
        offset: number of the first token; ``padding_idx + 1`` if None.

    Returns:
        int64 positions of shape (B, T).
    """
    real_BT = tensor.ne(padding_idx)
    first = padding_idx + 1 if offset is None else offset
    counted_BT = real_BT.cumsum(1) - 1 + first
    return counted_BT.where(real_BT, padding_idx)


def softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    """Return the softmax, computed in fp32."""
    return F.softmax(x, dim=dim, dtype=torch.float32)


def log_softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    """Return the log-softmax, computed in fp32."""
    return F.log_softmax(x, dim=dim, dtype=torch.float32)


def get_perplexity(loss: Any, round: int = 2, base: float = 2) -> float:
    """Return ``base ** loss``, rounded; 0 for no loss, infinity on overflow."""
    if loss is None:
        return 0.0
    try:
        perplexity = base ** float(item(loss))
    except OverflowError:
        return math.inf
    return perplexity if math.isinf(perplexity) else builtins.round(perplexity, round)


@contextlib.contextmanager
def model_eval(model: nn.Module) -> Iterator[None]:
    """Switch ``model`` to evaluation inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def has_parameters(module: nn.Module) -> bool:
    """Tell whether a module has parameters."""
    return next(iter(module.parameters()), None) is not None


def get_rng_state() -> dict[str, Any]:
    """Return the state of torch's random generators."""
    state: dict[str, Any] = {"torch_rng_state": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`get_rng_state` returned."""
    torch.set_rng_state(state["torch_rng_state"])
    if torch.cuda.is_available() and "cuda_rng_state" in state:
        torch.cuda.set_rng_state(state["cuda_rng_state"])


class set_torch_seed:
    """Seed torch; as a context manager, restore the generators afterwards."""

    def __init__(self, seed: int) -> None:
        assert isinstance(seed, int)
        self.state = get_rng_state()
        torch.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)

    def __enter__(self) -> set_torch_seed:
        return self

    def __exit__(self, *exc: object) -> None:
        set_rng_state(self.state)


@torch.no_grad()
def clip_grad_norm_(
    params: Any, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Scale gradients in place so that their joint L2 norm is at most ``max_norm``.

    Args:
        params: a tensor or an iterable of parameters.
        max_norm: 0 or less only measures.
        aggregate_norm_fn: combines the norm with that of other processes; every process calls it.

    Returns:
        the norm before clipping, fp32, a 0-dimensional tensor.
    """
    params = [params] if isinstance(params, Tensor) else list(params)
    grads = [p.grad.detach() for p in params if p.grad is not None]
    total = torch.tensor(0.0)
    if grads:
        norms = torch._foreach_norm([g.float() for g in grads])
        total = torch.linalg.vector_norm(torch.stack([norm.to(grads[0].device) for norm in norms]))
    if aggregate_norm_fn is not None:
        total = aggregate_norm_fn(total)
    if max_norm > 0 and grads:
        scale = (max_norm / (total + 1e-6)).clamp(max=1)
        torch._foreach_mul_(grads, scale)
    return total


def fill_with_neg_inf(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and type filled with minus infinity."""
    return torch.full_like(tensor, -math.inf)


def resolve_max_positions(*limits: Any) -> Any:
    """Return the smallest of several limits: numbers, tuples or dicts of them; None means none."""
    found: Any = None
    for limit in limits:
        if limit is None:
            continue
        found = limit if found is None else _smaller(found, limit)
    return found


def _smaller(left: Any, right: Any) -> Any:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return {
            key: resolve_max_positions(left.get(key), right.get(key)) for key in {**left, **right}
        }
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return min(left, right)
    if isinstance(left, (int, float)):
        return _smaller(right, left)
    others = [right] * len(left) if isinstance(right, (int, float)) else right
    return tuple(resolve_max_positions(a, b) for a, b in zip(left, others, strict=True))


def eval_str_list(text: Any, type: Callable[[Any], Any] = float) -> list[Any] | None:
    """Read ``"[1, 2]"``, ``"3"`` or ``""`` as a list; never evaluates code."""
    if text is None:
        return None
    if text == "":
        return []
    value = parse_literal(text) if isinstance(text, str) else text
    return [type(x) for x in value] if isinstance(value, (list, tuple)) else [type(value)]


def eval_str_dict(text: Any) -> dict[Any, Any] | None:
    """Read a dictionary written as a Python literal; never evaluates code."""
    return parse_literal(text) if isinstance(text, str) else text


def eval_bool(text: Any, default: bool = False) -> bool:
    """Read a truth value; ``default`` if it is None or unreadable."""
    if text is None:
        return default
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return words.get(str(text).strip().lower(), default)


def csv_str_list(text: str) -> list[str]:
    """Split at commas."""
    return text.split(",")


def safe_hasattr(obj: Any, name: str) -> bool:
    """Tell whether ``obj`` has an attribute that is not None."""
    return getattr(obj, name, None) is not None


def safe_getattr(obj: Any, name: str, default: Any = None) -> Any:
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


def get_incremental_state(module: Any, incremental_state: Any, key: str) -> Any:
    """Return what ``module`` cached under ``key`` while it extends a sequence."""
    return module.get_incremental_state(incremental_state, key)


def set_incremental_state(module: Any, incremental_state: Any, key: str, value: Any) -> Any:
    """Cache ``value`` for ``module`` under ``key``; return the incremental state."""
    return module.set_incremental_state(incremental_state, key, value)


def reset_logging() -> None:
    """Drop every handler of the root logger and install ours."""
    from fairseq.logging.console import setup_logging

    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    setup_logging()
