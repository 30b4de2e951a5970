"""Scaled dot-product attention: one function, several backends.

Shapes: B batch, H heads, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean
from fairseq.ops.attention_context import NOTHING, AttentionContext
from fairseq.ops.attention_fused import (
    BY_LENGTHS,
    FUSED,
    attention_by_lengths,
    best_on_gpu,
    fused_attention,
    require,
)
from fairseq.ops.attention_rows import attention_by_rows, is_short, is_worth_pieces
from fairseq.ops.dropout import LEVELS
from fairseq.ops.dropout import dropout as drop
from fairseq.ops.transforms import is_transformed, is_watched

BACKENDS = ("sdpa", "explicit", "reference", "rows")
ALIASES = {"auto": "sdpa", "hf": "sdpa", "flash_attention": "flash"}
# Fused kernels want a number of channels that is a multiple of this.
CHANNEL_GROUP = 8


def check_backend(backend: str) -> str:
    """Return the backend that ``backend`` names.

    Raises:
        ConfigError: for an unknown name, or one whose package cannot be imported.
    """
    name, known = ALIASES.get(backend, backend), (*BACKENDS, *FUSED)
    if name not in known:
        hint = did_you_mean(backend, [*known, *ALIASES])
        raise ConfigError(
            f"unknown attention backend '{backend}'{hint}: choose auto, {', '.join(known)}"
        )
    require(name)
    return name


def attention(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    context: AttentionContext = NOTHING,
    *,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Return ``softmax(q k^T / sqrt(D) + bias) v``, shape (B, H, T, D), in the type of the query.

    ALiBi's bias is added to the scores in fp32 whatever the type of the query is, under autocast
    too: in bf16 it could not tell keys apart that are more than 256 tokens away.

    Args:
        query_BHTD: queries.
        key_BHSD: keys.
        value_BHSD: values.
        context: biases and masks. Its rotary angles were applied before.
        dropout: probability of dropping an attention weight (0 outside training).
        backend: ``sdpa`` (PyTorch's fused attention), ``explicit`` (scores in memory, products in
            the type of the input), ``reference`` (the same, all in fp32), ``flex``, ``flash`` or
            ``xformers`` (see :mod:`fairseq.ops.attention_fused`; where there are fewer queries
            than keys, as in incremental decoding, they are sdpa), ``rows`` (a piece of the batch at
            a time, in fp32; see :mod:`fairseq.ops.attention_rows`), or ``auto``: on a CPU that
            drops weights, where the fused attention is not fused, rows or explicit, and rows too
            where several threads train on short texts; on a GPU what
            :func:`fairseq.ops.attention_fused.best_on_gpu` says; sdpa otherwise.

    Raises:
        ConfigError: for a backend that is unknown, missing, or cannot do what is asked.

    Source: Vaswani et al. 2017, equation 1; ALiBi: Press et al. 2022, section 3.
    """
    name = _choice(query_BHTD, context, dropout, backend)
    if backend == "auto" and name == "rows":
        name = _best_on_cpu(query_BHTD, key_BHSD, context, dropout)
    # fused kernels align the first query with the first key, not the last with the last
    if name in FUSED and query_BHTD.shape[2] != key_BHSD.shape[2]:
        name = "sdpa"
    functions = {"sdpa": _sdpa, "explicit": _explicit, "reference": _reference, "rows": _rows}
    function = functions.get(name) or functools.partial(fused_attention, check_backend(name))
    # autocast would round the bias to half precision
    with torch.autocast(query_BHTD.device.type, enabled=False):
        attended_BHTD = function(query_BHTD, key_BHSD, value_BHSD, context, dropout)
    return attended_BHTD.to(query_BHTD.dtype)


def _choice(query: Tensor, context: AttentionContext, dropout: float, backend: str) -> str:
    """Return the backend that ``backend`` stands for."""
    if backend != "auto":
        return ALIASES.get(backend, backend)
    if is_transformed():  # PyTorch's fused attention has no forward derivative
        return "explicit"
    if query.device.type == "cpu":
        return "rows"  # where they are worth it
    return best_on_gpu(query, context, dropout)


def _best_on_cpu(
    query_BHTD: Tensor, key_BHSD: Tensor, context: AttentionContext, dropout: float
) -> str:
    # a compiler would unroll the loop over pieces
    if is_watched() or not is_worth_pieces(query_BHTD, key_BHSD):
        return "explicit" if dropout > 0 else "sdpa"
    trained = torch.is_grad_enabled() and query_BHTD.requires_grad
    # half of a causal product is skipped by the fused one
    fits = is_short(query_BHTD, key_BHSD) and not context.causal
    shared = torch.get_num_threads() > 1 and query_BHTD.dtype == torch.float32
    return "rows" if dropout > 0 or (trained and fits and shared) else "sdpa"


def unpadded_attention(
    query_NHD: Tensor,
    key_NHD: Tensor,
    value_NHD: Tensor,
    context: AttentionContext,
    *,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Return :func:`attention` of the tokens that ``context.unpadded`` names, (N, H, D).

    Backends that take sequences by their lengths get the tokens as they are; for the others they
    go into padded rows and back.
    """
    tokens = context.unpadded
    assert tokens is not None
    name = _choice(query_NHD, context, dropout, backend)
    if name in BY_LENGTHS:
        check_backend(name)
        with torch.autocast(query_NHD.device.type, enabled=False):
            return attention_by_lengths(name, query_NHD, key_NHD, value_NHD, context, dropout)
    query, key, value = (tokens.spread(t).transpose(1, 2) for t in (query_NHD, key_NHD, value_NHD))
    attended_BHTD = attention(query, key, value, context, dropout=dropout, backend=backend)
    return tokens.gather(attended_BHTD.transpose(1, 2))


def _sdpa(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    channels, (queries, keys) = query_BHTD.shape[-1], (query_BHTD.shape[2], key_BHSD.shape[2])
    hidden_BS, others_B1TS = context.key_padding_mask_BS, context.other_documents(queries)
    mask: Tensor | None = context.bias(queries, keys, query_BHTD.device)
    causal = context.causal and queries > 1 and mask is None  # the bias hides the future itself
    if mask is not None:
        dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
        mask = mask.to(dtype)
        if query_BHTD.device.type != "cpu":  # only the CPU's kernel takes a mask of another type
            query_BHTD, key_BHSD, value_BHSD = (
                tensor.to(dtype) for tensor in (query_BHTD, key_BHSD, value_BHSD)
            )
        if hidden_BS is not None:
            query_BHTD, key_BHSD, value_BHSD = _hide_by_channel(
                query_BHTD, key_BHSD, value_BHSD, hidden_BS
            )
        if others_B1TS is not None:
            # -inf is safe here: a token is always of its own document
            mask = mask.masked_fill(others_B1TS, -math.inf)
    else:
        # the kernels' own causality starts counting at the first query, not at the last key
        kernel_is_causal = causal and queries == keys and hidden_BS is None and others_B1TS is None
        future = causal and not kernel_is_causal
        hidden = context.hidden(queries, keys, query_BHTD.device, future)
        mask = None if hidden is None else ~hidden
        causal = kernel_is_causal
    # the scale of the channels as they came: of those with some more it would be another
    attended_BHTD = F.scaled_dot_product_attention(
        query_BHTD, key_BHSD, value_BHSD, mask, dropout, is_causal=causal, scale=channels**-0.5
    )
    return attended_BHTD[..., :channels]


def _hide_by_channel(
    query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, hidden_BS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values with more channels, one of which hides keys.

    It is 1 in all queries, 0 in visible keys and hugely negative in hidden ones. That keeps the
    bias free of the batch dimension: with the padding merged into it, a layer would have to keep
    (B, H, T, S) numbers for the backward pass.
    """
    more = (0, CHANNEL_GROUP)
    first = query_BHTD.shape[-1]
    query, key, value = (F.pad(tensor, more) for tensor in (query_BHTD, key_BHSD, value_BHSD))
    query[..., first] = 1
    # half of the lowest: the other channels of the product may be added without overflow
    huge = torch.finfo(key.dtype).min / 2
    key[..., first] = hidden_BS[:, None, :].to(key.dtype) * huge
    return query, key, value


def _reference(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    wide = torch.promote_types(query_BHTD.dtype, torch.float32)
    query_BHTD, key_BHSD, value_BHSD = (t.to(wide) for t in (query_BHTD, key_BHSD, value_BHSD))
    return _explicit(query_BHTD, key_BHSD, value_BHSD, context, dropout)


def _explicit(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    wide = torch.promote_types(query_BHTD.dtype, torch.float32)
    scale = query_BHTD.shape[-1] ** -0.5
    # scaled before the product, which in fp16 would overflow where its scores are large
    scores_BHTS = ((query_BHTD * scale) @ key_BHSD.transpose(-1, -2)).to(wide)
    bias_1HTS, hidden = _bias_and_hidden(query_BHTD, key_BHSD, context)
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS
    if hidden is not None:  # not by -inf: rows without any visible key must stay finite
        scores_BHTS = scores_BHTS.masked_fill(hidden, torch.finfo(wide).min)
    weights_BHTS = drop(scores_BHTS.softmax(-1), dropout)
    return weights_BHTS.to(value_BHSD.dtype) @ value_BHSD


def _rows(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    context: AttentionContext,
    dropout: float,
) -> Tensor:
    if round(dropout * LEVELS) == LEVELS:  # nothing is kept: no factor makes up for it
        return _explicit(query_BHTD, key_BHSD, value_BHSD, context, dropout)
    wide = torch.promote_types(query_BHTD.dtype, torch.float32)
    query_BHTD, key_BHSD, value_BHSD = (t.to(wide) for t in (query_BHTD, key_BHSD, value_BHSD))
    bias_and_hidden = _bias_and_hidden(query_BHTD, key_BHSD, context)
    return attention_by_rows(query_BHTD, key_BHSD, value_BHSD, *bias_and_hidden, dropout)


def _bias_and_hidden(
    query_BHTD: Tensor, key_BHSD: Tensor, context: AttentionContext
) -> tuple[Tensor | None, Tensor | None]:
    queries, keys, device = query_BHTD.shape[2], key_BHSD.shape[2], query_BHTD.device
    bias_1HTS = context.bias(queries, keys, device)
    future = context.causal and queries > 1 and bias_1HTS is None  # the bias hides it itself
    return bias_1HTS, context.hidden(queries, keys, device, future)
