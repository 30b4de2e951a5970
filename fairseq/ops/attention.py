"""Scaled dot-product attention: one function, several backends.

Shapes: B batch, H heads, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean

BACKENDS = ("sdpa", "reference")
ALIASES = {"auto": "sdpa", "hf": "sdpa"}


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
    """Return ``softmax(q k^T / sqrt(D) + bias) v``, shape (B, H, T, D).

    Args:
        query_BHTD: queries.
        key_BHSD: keys.
        value_BHSD: values.
        bias_1HTS: fp32, added to the scaled scores of every batch row (ALiBi).
        key_padding_mask_BS: True at keys that must not be seen.
        causal: a query sees only keys up to its own position.
        dropout: probability of dropping an attention weight (0 outside training).
        backend: ``sdpa`` (PyTorch's fused attention) or ``reference`` (explicit, fp32).

    Source: Vaswani et al. 2017, equation 1; ALiBi: Press et al. 2022, section 3.
    """
    name = check_backend(backend)
    if name == "reference":
        return _reference(
            query_BHTD, key_BHSD, value_BHSD, bias_1HTS, key_padding_mask_BS, causal, dropout
        )
    plain = bias_1HTS is None and key_padding_mask_BS is None
    mask = None if plain else _mask(query_BHTD, key_BHSD, bias_1HTS, key_padding_mask_BS, causal)
    return F.scaled_dot_product_attention(
        query_BHTD, key_BHSD, value_BHSD, mask, dropout, is_causal=causal and plain
    )


def _mask(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    key_padding_mask_BS: Tensor | None,
    causal: bool,
) -> Tensor:
    """Merge bias, padding and causality; the batch dimension appears only if there is padding."""
    hidden = None if key_padding_mask_BS is None else key_padding_mask_BS[:, None, None, :]
    if causal:
        future_TS = _future(query_BHTD.shape[2], key_BHSD.shape[2], query_BHTD.device)
        hidden = future_TS if hidden is None else hidden | future_TS
    if bias_1HTS is None:
        assert hidden is not None
        return ~hidden
    bias = bias_1HTS.to(query_BHTD.dtype)
    return bias if hidden is None else bias.masked_fill(hidden, -math.inf)


def _future(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return a (T, S) mask, True where the key lies after the query (queries are the last T)."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


def _reference(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    key_padding_mask_BS: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    wide = torch.promote_types(query_BHTD.dtype, torch.float32)
    scale = query_BHTD.shape[-1] ** -0.5
    scores_BHTS = (query_BHTD.to(wide) * scale) @ key_BHSD.to(wide).transpose(-1, -2)
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS
    if key_padding_mask_BS is not None:
        scores_BHTS = scores_BHTS.masked_fill(key_padding_mask_BS[:, None, None, :], -math.inf)
    if causal:
        future_TS = _future(scores_BHTS.shape[2], scores_BHTS.shape[3], scores_BHTS.device)
        scores_BHTS = scores_BHTS.masked_fill(future_TS, -math.inf)
    weights_BHTS = F.dropout(scores_BHTS.softmax(-1), dropout, training=dropout > 0)
    return (weights_BHTS @ value_BHSD.to(wide)).to(query_BHTD.dtype)
