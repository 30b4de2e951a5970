"""Attention by FlexAttention, FlashAttention 2 and xFormers: slopes and lengths, no dense bias.

Each serves self-attention over whole sequences (as many queries as keys) and is there to be asked
for; only :mod:`fairseq.ops.attention` knows when it is. All compute in the type of the queries.

Shapes: B batch, H heads, T tokens, D channels of a head, N visible tokens of the batch.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from fairseq.errors import ConfigError
from fairseq.lazy import require_library
from fairseq.ops.attention_context import Alibi, AttentionContext

FUSED = ("flex", "flash", "xformers")
FLEX_CHANNELS = 16  # the fewest of a head that its kernels take, as tensor cores do
BY_LENGTHS = ("flash", "xformers")  # take tokens of several sequences, without padding
MODULES = {"flash": ("flash_attn", "flash-attn"), "xformers": ("xformers.ops", "xformers")}
ADVICE = "choose --attention-backend auto"


def require(backend: str) -> None:
    """Raise ``ConfigError`` if the package that a backend needs cannot be imported."""
    if backend in MODULES:
        module, package = MODULES[backend]
        require_library(module, f"--attention-backend {backend}", package)


@functools.cache
def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def best_on_gpu(query_BHTD: Tensor, context: AttentionContext, dropout: float) -> str:
    """Return the backend that ``auto`` stands for on a GPU.

    The kernels behind ``sdpa`` are the fastest where there is neither ALiBi nor documents; with
    them they would attend in fp32, or over hidden keys. ``flash`` has to look for the sequences
    of a batch first if some tokens are hidden, which waits for the device; ``flex`` does not.
    Of unpadded tokens it knows them, and saves their way into rows and back.
    """
    half = query_BHTD.dtype in (torch.bfloat16, torch.float16)
    dense = context.alibi is None and context.documents_BS is None
    if not half or (dense and context.unpadded is None):
        return "sdpa"
    channels = query_BHTD.shape[-1]
    sided = context.alibi is not None and context.alibi.asymmetric and not context.causal
    # what the kernels of FlashAttention 2 take
    fits = channels % 8 == 0 and channels <= 256
    can = {
        "flash": not sided and fits and _importable("flash_attn"),
        "flex": not dense and not dropout and channels >= FLEX_CHANNELS and _importable("triton"),
    }
    hidden = context.key_padding_mask_BS is not None and context.unpadded is None
    order = ("flex", "flash") if hidden or context.documents_BS is not None else ("flash", "flex")
    return next((name for name in order if can[name]), "sdpa")


def fused_attention(
    backend: str,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    """Return the attended values, (B, H, T, D).

    Queries at padding get zeros from ``flash`` and ``xformers``, which do not see them at all.

    Raises:
        ConfigError: for what the backend cannot do: a package, device or type that it lacks,
            dropout (flex), slopes that differ by side (flash), or any (xformers).
    """
    if backend == "flex":
        return _flex(query_BHTD, key_BHTD, value_BHTD, context, dropout)
    packed, length = sequences(context), query_BHTD.shape[2]
    rows = [tensor.transpose(1, 2) for tensor in (query_BHTD, key_BHTD, value_BHTD)]
    tokens = rows if packed is None else [t.flatten(0, 1)[packed.places_N] for t in rows]
    attended = _FUNCTIONS[backend](*tokens, packed, length, context, dropout)
    return _heads(attended, packed, query_BHTD)


def attention_by_lengths(
    backend: str,
    query_NHD: Tensor,
    key_NHD: Tensor,
    value_NHD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    """Return the attended values of unpadded tokens, (N, H, D), by a backend of ``BY_LENGTHS``.

    Raises:
        ConfigError: as :func:`fused_attention`.
    """
    assert context.unpadded is not None
    packed, length = sequences(context), context.unpadded.length
    return _FUNCTIONS[backend](query_NHD, key_NHD, value_NHD, packed, length, context, dropout)


# -- FlexAttention --------------------------------------------------------------------------------


def _flex(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    if dropout:
        raise ConfigError(f"flex cannot drop attention weights: --attention-dropout 0, or {ADVICE}")
    on_cpu, device = query_BHTD.device.type == "cpu", query_BHTD.device
    tensors = (query_BHTD, key_BHTD, value_BHTD)
    if on_cpu and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ConfigError(f"flex cannot train on a CPU: {ADVICE}")
    channels = query_BHTD.shape[-1]
    if not on_cpu and channels < FLEX_CHANNELS:
        few = f"heads of {channels} channels, flex needs {FLEX_CHANNELS}"
        raise ConfigError(f"the model has {few}: fewer heads, or {ADVICE}")
    score_mod = None if context.alibi is None else _slopes(context.alibi, device)
    return _flex_function(compiled=not on_cpu)(
        *tensors, score_mod=score_mod, block_mask=_block_mask(query_BHTD, context)
    )


@functools.cache
def _flex_function(compiled: bool) -> Callable[..., Any]:
    # uncompiled it keeps all scores; on a CPU that saves waiting for a compiler
    function: Any = flex_attention
    return torch.compile(function) if compiled else function


# another function, though equal, would be compiled anew
@functools.lru_cache(maxsize=16)
def _slopes(alibi: Alibi, device: torch.device) -> Callable[..., Tensor]:
    """Return the bias of ALiBi as FlexAttention wants it; the same function for all layers."""
    slopes_H = alibi.slopes_H.to(device)

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes_H[h] * (i - j).abs()

    def add_by_side(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes_H[h] * ((i - j).abs() - 0.5 * (j > i))

    return add_by_side if alibi.asymmetric else add


def _block_mask(query_BHTD: Tensor, context: AttentionContext) -> BlockMask | None:
    hidden_BT, documents_BT, causal = (
        context.key_padding_mask_BS,
        context.documents_BS,
        context.causal,
    )
    if hidden_BT is None and documents_BT is None and not causal:
        return None
    batch, _, length, _ = query_BHTD.shape
    # causality is the same in all rows, so one mask serves them
    batch = 1 if hidden_BT is None and documents_BT is None else batch

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        # true, in the shape that FlexAttention maps over
        seen = i >= 0
        if causal:
            seen = seen & (j <= i)
        if hidden_BT is not None:
            seen = seen & ~hidden_BT[b, j]
        if documents_BT is not None:
            seen = seen & (documents_BT[b, i] == documents_BT[b, j])
        return seen

    device = query_BHTD.device
    return context.once(
        ("flex", batch, length, device),
        lambda: create_block_mask(sees, batch, None, length, length, device=device),
    )


# -- FlashAttention and xFormers -------------------------------------------------------------------


class Sequences(NamedTuple):
    """The visible tokens of a batch as sequences that do not see each other.

    Attributes:
        places_N: their flat indices (b * T + t), in order.
        starts: int32, where each sequence begins among the N, and N: cu_seqlens.
    """

    places_N: Tensor
    starts: Tensor


def sequences(context: AttentionContext) -> Sequences | None:
    """Return the sequences of a batch, or None if each row is one and all of it is visible.

    Neighbours in a row belong together if they are of one document. The search waits for the
    device, once a batch: all layers share its result.
    """
    hidden_BT, documents_BT = context.key_padding_mask_BS, context.documents_BS
    one = documents_BT if hidden_BT is None else hidden_BT
    if one is None:
        return None
    everything_BT = torch.ones_like(one, dtype=torch.bool)

    def search() -> Sequences:
        visible_BT = everything_BT if hidden_BT is None else ~hidden_BT
        known = context.unpadded
        places_N = visible_BT.flatten().nonzero()[:, 0] if known is None else known.places_N
        row_N = places_N // one.shape[1]
        new_N = row_N.diff() != 0
        if documents_BT is not None:
            new_N = new_N | (documents_BT.flatten()[places_N].diff() != 0)
        # a difference belongs to the later one of two neighbours
        inner = new_N.nonzero()[:, 0] + 1
        ends = places_N.new_tensor([0, len(places_N)])
        return Sequences(places_N, torch.cat([ends[:1], inner, ends[1:]]).int())

    return context.once(("sequences",), search)


def _heads(attended: Tensor, packed: Sequences | None, like_BHTD: Tensor) -> Tensor:
    """Return (B, H, T, D) of (B, T, H, D), or of packed tokens; those left out get zeros."""
    if packed is not None:
        batch, heads, length, channels = like_BHTD.shape
        whole = attended.new_zeros(batch * length, heads, channels)
        attended = whole.index_copy(0, packed.places_N, attended).unflatten(0, (batch, length))
    return attended.transpose(1, 2)


# queries, keys and values are (B, T, H, D), or (N, H, D) where tokens are packed
def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Sequences | None,
    length: int,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    library = require_library("flash_attn", "--attention-backend flash", "flash-attn")
    alibi = context.alibi
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"flash attends in bf16 or fp16, not {query.dtype}: --amp, or {ADVICE}")
    if alibi is not None and alibi.asymmetric and not context.causal:
        raise ConfigError(f"flash has one slope for both sides: --position alibi, or {ADVICE}")
    how: dict[str, Any] = {
        "dropout_p": dropout,
        "softmax_scale": query.shape[-1] ** -0.5,
        "causal": context.causal,
        "alibi_slopes": None if alibi is None else alibi.slopes_H.to(query.device).float(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if packed is None:
        return library.flash_attn_func(query, key, value, **how)
    # the longest sequence would have to be fetched from the device: T is never too short
    return library.flash_attn_varlen_func(
        query, key, value, packed.starts, packed.starts, length, length, **how
    )


def _xformers(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Sequences | None,
    length: int,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    library = require_library("xformers.ops", "--attention-backend xformers", "xformers")
    if context.alibi is not None:
        raise ConfigError(f"xformers knows no slopes: {ADVICE}, flex or flash with ALiBi")
    biases, tokens = library.fmha.attn_bias, [query, key, value]
    if packed is not None:
        bias = context.once(
            ("xformers",),
            lambda: biases.BlockDiagonalMask.from_seqlens(packed.starts.diff().tolist()),
        )
        bias = bias.make_causal() if context.causal else bias
        tokens = [tensor[None] for tensor in tokens]
    else:
        bias = biases.LowerTriangularMask() if context.causal else None
    attended = library.memory_efficient_attention(
        *tokens, attn_bias=bias, p=dropout, scale=query.shape[-1] ** -0.5
    )
    return attended if packed is None else attended[0]


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"flash": _flash, "xformers": _xformers}
