"""Small tensor helpers, under the names that plug-ins import.

A few of those names are defined in higher packages; they are imported when they are asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.aliases import NAMES
from fairseq.errors import DataError
from fairseq.lazy import lazy_names
from fairseq.logging.meters import safe_round
from fairseq.ops.transforms import is_transformed
from fairseq.protocols import StateDict

__getattr__, __dir__, _names = lazy_names(
    __name__, {**NAMES[__name__], "import_user_module": "fairseq.config.plugins"}
)


ID_TYPES = (torch.int64, torch.int32)
"""What embeddings are looked up with."""


def item(value: object) -> Any:
    """Return a one-element tensor as a number, anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def split_paths(paths: str, separator: str = os.pathsep) -> list[str]:
    """Split a list of folders at ``:``, or at ``|`` if it holds URLs; ``~`` is the home folder."""
    parts = paths.split("|") if "://" in paths else paths.split(separator)
    return [os.path.expanduser(part) for part in parts]


def apply_to_sample(function: Callable[[Tensor], Tensor], sample: object) -> Any:
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


def move_to_device(sample: object, device: torch.device | str) -> Any:
    """Return the batch on ``device``; copies from pinned memory do not block."""
    return apply_to_sample(lambda tensor: tensor.to(device, non_blocking=True), sample)


def strip_pad(tensor: Tensor, pad: int) -> Tensor:
    """Return the elements that are not ``pad``."""
    return tensor[tensor.ne(pad)]


def make_positions(
    tensor: Tensor,
    padding_idx: int,
    onnx_trace: bool = False,
    offset: int | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Number the non-pad tokens of each row; pads keep ``padding_idx``.

    Args:
        tensor: token ids (B, T).
        padding_idx: id of the pad symbol.
        onnx_trace: accepted for old callers.
        offset: number of the first token; ``padding_idx + 1`` if None.
        documents: number of the document of each token (B, T); counting starts anew where it
            changes.

    Returns:
        int64 positions of shape (B, T).
    """
    real_BT = tensor.ne(padding_idx)
    first = padding_idx + 1 if offset is None else offset
    counted_BT = real_BT.cumsum(1) - 1 + first
    if documents is not None:
        begins_BT = torch.ones_like(real_BT)
        begins_BT[:, 1:] = documents[:, 1:] != documents[:, :-1]
        before_BT = real_BT.cumsum(1) - real_BT.long()  # tokens before this place
        counted_BT = counted_BT - before_BT.where(begins_BT, 0).cummax(1).values
    return counted_BT.where(real_BT, padding_idx)


def softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    """Return the softmax, computed in fp32."""
    return F.softmax(x, dim=dim, dtype=torch.float32)


def log_softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    """Return the log-softmax, computed in fp32."""
    return F.log_softmax(x, dim=dim, dtype=torch.float32)


def get_perplexity(loss: object, round: int = 2, base: float = 2) -> float:
    """Return ``base ** loss``, rounded; 0 for no loss, infinity on overflow."""
    if loss is None:
        return 0.0
    try:
        perplexity = base ** float(item(loss))
    except OverflowError:
        return math.inf
    return perplexity if math.isinf(perplexity) else safe_round(perplexity, round)


def exp_of(nats: float) -> float:
    """Return ``e ** nats``, infinity where it would overflow (beyond 709)."""
    return math.exp(nats) if nats < 700 else math.inf


# model -> blocks of `model_eval` that threads are in, and what the first of them found
_EVALUATED: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
_EVALUATING = threading.Lock()


@contextlib.contextmanager
def model_eval(model: nn.Module) -> Iterator[None]:
    """Switch ``model`` to evaluation inside the block; the last thread to leave switches back.

    Parts that were in evaluation before, such as a frozen encoder, stay so.
    """
    with _EVALUATING:
        inside, training = _EVALUATED.get(model, (0, [m for m in model.modules() if m.training]))
        _EVALUATED[model] = inside + 1, training
        model.eval()
    try:
        yield
    finally:
        with _EVALUATING:
            inside, training = _EVALUATED.pop(model)
            if inside > 1:
                _EVALUATED[model] = inside - 1, training
            else:
                for module in training:
                    module.training = True


def check_text(text: object) -> None:
    """Refuse what is no text.

    Raises:
        DataError: saying what it is.
    """
    if not isinstance(text, str):
        one_by_one = isinstance(text, (list, tuple))
        raise DataError(
            f"a text is a str, not {type(text).__name__}"
            f"{': give its texts one by one' if one_by_one else ''}"
        )


def check_token_ids(tokens: object, entries: int | None, dims: tuple[int, ...] = (1, 2)) -> None:
    """Refuse what are no token ids: a model would fail without a reason, or look up other rows.

    Args:
        tokens: an integer tensor.
        entries: how many ids there are; None if others stand for the unknown symbol.
        dims: numbers of dimensions that will do.

    Raises:
        DataError: saying what they are.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() not in dims or tokens.dtype not in ID_TYPES:
        found = type(tokens).__name__
        if isinstance(tokens, Tensor):
            found = f"{tokens.dtype} of shape {(*tokens.shape,)}"
        shapes = "(T,)" if dims == (1,) else "(T,) or (B, T)"
        raise DataError(
            f"token ids are an integer tensor of shape {shapes}, not {found}: encode() makes them"
        )
    if entries is None or is_transformed() or tokens.is_meta or not tokens.numel():
        return  # no values to look at
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or most >= entries:
        wrong = least if least < 0 else most
        raise DataError(f"there is no token {wrong}: the model knows those from 0 to {entries - 1}")


def has_parameters(module: nn.Module) -> bool:
    """Tell whether a module has parameters."""
    return next(iter(module.parameters()), None) is not None


def drops_layers(model: object) -> bool:
    """Tell whether a model leaves layers out at random in training."""
    config = getattr(model, "config", None)
    return any(getattr(config, f"{side}_layerdrop", 0) for side in ("encoder", "decoder"))


def get_rng_state() -> dict[str, Any]:
    """Return the state of torch's random generators."""
    state: dict[str, Any] = {"torch_rng_state": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: StateDict) -> None:
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
    params: Tensor | Iterable[Tensor],
    max_norm: float,
    aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
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
        # squares of fp16 gradients overflow beyond 256 and vanish below 2**-12
        norms = torch._foreach_norm([g.float() for g in grads])
        # the norm of the norms is the norm of all
        total = torch.linalg.vector_norm(torch.stack([norm.to(grads[0].device) for norm in norms]))
    if aggregate_norm_fn is not None:
        total = aggregate_norm_fn(total)
    if max_norm > 0 and grads:
        # as torch's clip_grad_norm_ does; a norm of nothing gives no division by zero
        scale = (max_norm / (total + 1e-6)).clamp(max=1)
        torch._foreach_mul_(grads, scale)
    return total


def resolve_max_positions(*limits: object) -> Any:
    """Return the smallest of several limits: numbers, tuples or dicts of them; None means none."""
    smallest: Any = None
    for limit in limits:
        if limit is None:
            continue
        smallest = limit if smallest is None else _smaller(smallest, limit)
    return smallest


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
