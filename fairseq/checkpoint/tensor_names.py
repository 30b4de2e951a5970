"""Tensors as older files call them, and what they are called today."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fairseq.checkpoint.unused_weights import COPIES
from fairseq.protocols import StateDict

# Names of tensors: (pattern, replacement), applied in this order to the keys of a state dict.
ROBERTA_KEYS: tuple[tuple[str, str], ...] = (
    # the encoder of the first releases was called so
    (r"^decoder\.", "encoder."),
    (r"\.emb_layer_norm\.", ".layernorm_embedding."),
    (r"\.layer_norms\.0\.", ".self_attn_layer_norm."),
    (r"\.layer_norms\.1\.", ".final_layer_norm."),
    (r"^encoder\.clap_head\.beta$", "encoder.lm_head.beta"),
)
DECODER_KEYS = (
    (r"^decoder\.embed_out$", "decoder.output_projection.weight"),
    (r"\.layer_norms\.0\.", ".self_attn_layer_norm."),
    (r"\.layer_norms\.[12]\.", ".final_layer_norm."),
)


# Tensors that mean nothing here: caches of fixed tables, and heads of projects that went by.
ROBERTA_DROPPED = (
    r"embed_positions\.(_float_tensor|weights)$",
    r"^encoder\.(regression_head|_ema)",
    r"^encoder\.scales\.weight$",
    COPIES,
)
DECODER_DROPPED = (r"^decoder\.embed_positions\.(_float_tensor|weights)$",)


def upgrade_roberta_state(state: StateDict) -> None:
    """Rename, split and drop the keys of an old RoBERTa state dict, in place."""
    _upgrade(state, ROBERTA_KEYS, ROBERTA_DROPPED)


def upgrade_decoder_state(state: StateDict) -> None:
    """Rename, split and drop the keys of an old state dict of a causal model, in place."""
    _upgrade(state, DECODER_KEYS, DECODER_DROPPED)


def _upgrade(state: StateDict, renamed: Sequence[tuple[str, str]], dropped: Sequence[str]) -> None:
    """Rename, split and drop keys.

    A joint ``in_proj_weight`` or ``in_proj_bias`` holds the query, key and value projections in
    this order, one third of the rows each.
    """
    for key in list(state):
        new = key
        for pattern, replacement in renamed:
            new = re.sub(pattern, replacement, new)
        value = state.pop(key)
        if any(re.search(pattern, new) for pattern in dropped):
            continue
        joint = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", new)
        if joint is None:
            state[new] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            state[f"{joint[1]}{name}_proj.{joint[2]}"] = part
