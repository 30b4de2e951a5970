"""Scaled dot-product attention: one function, several backends.

Shapes: B batch, H heads, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean
from fairseq.ops.dropout import dropout as drop

BACKENDS = ("sdpa", "explicit", "reference")
ALIASES = {"auto": "sdpa", "hf": "sdpa"}
# Fused kernels want a number of channels that is a multiple of this.
CHANNEL_GROUP = 8


def check_backend(backend: str) -> str:
    """Return the backend that ``backend`` names; raise ``ConfigError`` for an unknown name."""
    name = ALIASES.get(backend, backend)
    if name not in BACKENDS:
        hint = did_you_mean(backend, [*BACKENDS, *ALIASES])
        raise ConfigError(
            f"unknown attention backend '{backend}'{hint}: choose auto, {', '.join(BACKENDS)}"
        )
    return name


def attention(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    *,
    bias_1HTS: Tensor | None = None,
    key_padding_mask_BS: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Return ``softmax(q k^T / sqrt(D) + bias) v``, shape (B, H, T, D), in the type of the query.

    The bias is added to the scores in fp32 whatever the type of the query is, under autocast too:
    in bf16 an ALiBi bias could not tell keys apart that are more than 256 tokens away.

    Args:
        query_BHTD: queries.
        key_BHSD: keys.
        value_BHSD: values.
        bias_1HTS: fp32, added to the scaled scores of every batch row (ALiBi); -inf hides a key,
            and every query must see one.
        key_padding_mask_BS: True at keys that must not be seen. A query that sees no key at all
            gets something finite.
        causal: a query sees only keys up to its own position; the queries are the last T.
        dropout: probability of dropping an attention weight (0 outside training).
        backend: ``sdpa`` (PyTorch's fused attention), ``explicit`` (scores in memory, products in
            the type of the input), ``reference`` (the same, all in fp32), or ``auto``: explicit on
            a CPU that drops weights, where the fused attention is not fused, sdpa otherwise.

    Source: Vaswani et al. 2017, equation 1; ALiBi: Press et al. 2022, section 3.
    """
    causal = causal and query_BHTD.shape[2] > 1  # one query, the last, sees everything anyway
    on_cpu = query_BHTD.device.type == "cpu"
    name = "explicit" if backend == "auto" and on_cpu and dropout > 0 else check_backend(backend)
    function = {"sdpa": _sdpa, "explicit": _explicit, "reference": _reference}[name]
    # autocast would round the bias to half precision
    with torch.autocast(query_BHTD.device.type, enabled=False):
        attended_BHTD = function(
            query_BHTD, key_BHSD, value_BHSD, bias_1HTS, key_padding_mask_BS, causal, dropout
        )
    return attended_BHTD.to(query_BHTD.dtype)


def _sdpa(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    hidden_BS: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    channels = query_BHTD.shape[-1]
    # the kernels' own causality starts counting at the first query, not at the last key
    kernel_is_causal = causal and query_BHTD.shape[2] == key_BHSD.shape[2]
    mask: Tensor | None = None
    if bias_1HTS is not None:
        dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
        mask = bias_1HTS.to(dtype)
        if query_BHTD.device.type != "cpu":  # only the CPU's kernel takes a mask of another type
            query_BHTD, key_BHSD, value_BHSD = (
                tensor.to(dtype) for tensor in (query_BHTD, key_BHSD, value_BHSD)
            )
        if hidden_BS is not None:
            query_BHTD, key_BHSD, value_BHSD = _hide_by_channel(
                query_BHTD, key_BHSD, value_BHSD, hidden_BS
            )
    elif hidden_BS is not None:
        mask = ~hidden_BS[:, None, None, :]
    if causal and (mask is not None or not kernel_is_causal):
        future_TS = _future(query_BHTD, key_BHSD)
        if mask is None:
            mask = ~future_TS
        elif mask.dtype == torch.bool:
            mask = mask & ~future_TS
        else:
            mask = mask.masked_fill(future_TS, -math.inf)
    attended_BHTD = F.scaled_dot_product_attention(
        query_BHTD,
        key_BHSD,
        value_BHSD,
        mask,
        dropout,
        is_causal=causal and mask is None,
        scale=channels**-0.5,
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
    huge = torch.finfo(key.dtype).min / 2
    key[..., first] = hidden_BS[:, None, :].to(key.dtype) * huge
    return query, key, value


def _future(query_BHTD: Tensor, key_BHSD: Tensor) -> Tensor:
    """Return a (T, S) mask, True where the key lies after the query."""
    queries, keys = query_BHTD.shape[2], key_BHSD.shape[2]
    everything = torch.ones(queries, keys, dtype=torch.bool, device=query_BHTD.device)
    return everything.triu(keys - queries + 1)


def _reference(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    hidden_BS: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    wide = torch.promote_types(query_BHTD.dtype, torch.float32)
    query_BHTD, key_BHSD, value_BHSD = (t.to(wide) for t in (query_BHTD, key_BHSD, value_BHSD))
    return _explicit(query_BHTD, key_BHSD, value_BHSD, bias_1HTS, hidden_BS, causal, dropout)


def _explicit(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    hidden_BS: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    wide = torch.promote_types(query_BHTD.dtype, torch.float32)
    scale = query_BHTD.shape[-1] ** -0.5
    scores_BHTS = ((query_BHTD * scale) @ key_BHSD.transpose(-1, -2)).to(wide)
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS
    lowest = torch.finfo(wide).min  # not -inf: rows without any visible key must stay finite
    if hidden_BS is not None:
        scores_BHTS = scores_BHTS.masked_fill(hidden_BS[:, None, None, :], lowest)
    if causal:
        scores_BHTS = scores_BHTS.masked_fill(_future(query_BHTD, key_BHSD), lowest)
    weights_BHTS = drop(scores_BHTS.softmax(-1), dropout)
    return weights_BHTS.to(value_BHSD.dtype) @ value_BHSD
