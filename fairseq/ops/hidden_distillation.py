"""Comparing hidden states of a student with those of a teacher.

Everything is fp32 (fp64 for fp64 input). Shapes: B batch, T time, C channels, H heads, D channels
of a head, R relation heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.ops.attention_context import AttentionContext


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def cosine_distance(student_BTC: Tensor, teacher_BTC: Tensor) -> Tensor:
    """Return ``1 - cos`` of each position, (B, T), in [0, 2].

    Source: Sanh et al. 2019 (DistilBERT), section 3.
    """
    return 1 - F.cosine_similarity(_wide(student_BTC), _wide(teacher_BTC), dim=-1)


def direction_distance(student_BTC: Tensor, teacher_BTC: Tensor) -> Tensor:
    """Return the mean over channels of ``(s / |s| - t / |t|)^2`` of each position, (B, T).

    Source: Sun et al. 2019 (Patient Knowledge Distillation), section 3, per channel.
    """
    student_BTC, teacher_BTC = (F.normalize(_wide(x), dim=-1) for x in (student_BTC, teacher_BTC))
    return (student_BTC - teacher_BTC).square().mean(-1)


class Relation(NamedTuple):
    """Two of the queries, keys and values of a layer, (B, H, T, D) each."""

    left_BHTD: Tensor
    right_BHTD: Tensor

    def log_softmax(self, hidden_B1TT: Tensor, heads: int) -> Tensor:
        """Return ``log softmax(left right^T / sqrt(D))``, (B, R, T, T)."""
        left, right = (_wide(x) if not heads else _regroup(_wide(x), heads) for x in self)
        scores_BRTT = left @ right.transpose(-1, -2) * left.shape[-1] ** -0.5
        # finite: two logarithms of -inf at a hidden key have no difference
        lowest = torch.finfo(scores_BRTT.dtype).min / 2
        return scores_BRTT.masked_fill(hidden_B1TT, lowest).log_softmax(-1)


def _regroup(x_BHTD: Tensor, heads: int) -> Tensor:
    """Return the same channels, cut into another number of heads."""
    return x_BHTD.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)


def relation_divergence(
    student: Relation,
    teacher: Relation,
    pad_BT: Tensor,
    causal: bool,
    heads: int = 0,
    documents_BT: Tensor | None = None,
) -> Tensor:
    """Return ``KL(teacher || student)`` of each query's row, its mean over heads, (B, T).

    With queries and keys these are the attention weights (of the content alone: biases and
    rotations of positions are left out); with values twice the value relation.

    Args:
        student: of the student.
        teacher: of the teacher; D may differ, H too if ``heads`` is given.
        pad_BT: True at pads, whose keys are hidden.
        causal: hide later keys, too.
        heads: R, into which both sides are cut; 0 for the heads as they are.
        documents_BT: number of each token's document, if keys of others are hidden.

    Source: Wang et al. 2020 (MiniLM), sections 3.1 and 3.2; relation heads: Wang et al. 2021
    (MiniLMv2), section 3.
    """
    context = AttentionContext(key_padding_mask_BS=pad_BT, documents_BS=documents_BT)
    length = pad_BT.shape[1]
    hidden_B1TT = context.hidden(length, length, pad_BT.device, future=causal)
    assert hidden_B1TT is not None  # pads are given
    with torch.autocast(pad_BT.device.type, enabled=False):
        log_q, log_p = (side.log_softmax(hidden_B1TT, heads) for side in (student, teacher))
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)
