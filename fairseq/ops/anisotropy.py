"""How alike hidden states are: the mean cosine of all pairs, a measure of anisotropy.

Shapes: N positions, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mean_cosine(hidden_NC: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of two different rows, a scalar in fp32 or fp64.

    With unit vectors u, ``sum_(i != j) u_i . u_j = |sum_i u_i|^2 - N``: no pair is formed.

    Args:
        hidden_NC: at least two rows.

    Source: Ethayarajh 2019 (How Contextual are Contextualized Word Representations?), section 3.4.
    """
    rows = len(hidden_NC)
    assert rows > 1, rows
    # fp64 costs little on a CPU, much on most GPUs, and MPS has none
    wide = hidden_NC.double() if hidden_NC.is_cpu else hidden_NC.float()
    total_C = F.normalize(wide, dim=-1).sum(0)
    return (total_C.square().sum() - rows) / (rows * (rows - 1))
