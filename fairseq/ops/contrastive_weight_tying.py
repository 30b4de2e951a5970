"""Contrastive weight tying: predict the input embedding of a token among those of the batch.

``L_n = logsumexp_m(h_n . e_m / T) - h_n . e_(y_n) / T`` over the M tokens of the batch. Tokens that
occur c times can be taken together: ``logsumexp_u(h_n . e_u / T + log c_u)`` over the U distinct
ones is the same sum, and no matrix of N x M is needed.

Source: Godey et al. 2023 (Headless Language Models), section 3.

Shapes: N predicted positions, C channels, V rows of the table, M negatives, U distinct ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean
from fairseq.ops.linear_cross_entropy import linear_cross_entropy

BACKENDS = ("distinct", "reference")
DUPLICATES = ("count", "once")


class Contrastive(NamedTuple):
    """What the contrast gives.

    Attributes:
        loss_N: loss of each position, in nats, fp32 (fp64 for fp64 input).
        right_N: whether the right token is the likeliest of all.
        negatives: distinct tokens that were told apart.
    """

    loss_N: Tensor
    right_N: Tensor
    negatives: int


class Distinct(NamedTuple):
    """The distinct ones among some ids.

    Attributes:
        ids_U: the ids in order, int64.
        count_U: how often each occurs, int64.
        place_N: where each target is among them, int64.
    """

    ids_U: Tensor
    count_U: Tensor
    place_N: Tensor


def distinct_ids(target_N: Tensor, ids_M: Tensor | None = None) -> Distinct:
    """Return the distinct ids among M, the targets if None; their number has to be waited for."""
    ids_U, count_U = (target_N if ids_M is None else ids_M).unique(return_counts=True)
    return Distinct(ids_U, count_U, torch.searchsorted(ids_U, target_N))


def contrastive_weight_tying(
    hidden_NC: Tensor,
    table_VC: Tensor,
    target_N: Tensor,
    *,
    negatives_M: Tensor | None = None,
    distinct: Distinct | None = None,
    temperature: float = 1.0,
    normalize: bool = False,
    duplicates: str = "count",
    symmetric: bool = False,
    backend: str = "distinct",
    loss_backend: str = "auto",
) -> Contrastive:
    """Return the contrastive loss of each position.

    Args:
        hidden_NC: hidden states.
        table_VC: the input embeddings.
        target_N: id of the right token, int64.
        negatives_M: ids to tell it from, the targets themselves among them; the targets if None.
        distinct: what :func:`distinct_ids` says of them, if that is known.
        temperature: T.
        normalize: compare directions (cosines) instead of dot products.
        duplicates: ``count`` a token as often as it occurs, or ``once``.
        symmetric: average with the loss of finding the position for the token, among the N here.
        backend: ``distinct``, or ``reference``, which keeps the matrix of N x M.
        loss_backend: of the loss over the distinct ones, see :func:`linear_cross_entropy`.

    Raises:
        ConfigError: for an unknown backend or way with duplicates.
    """
    for value, known in ((backend, BACKENDS), (duplicates, DUPLICATES)):
        if value not in known:
            raise ConfigError(f"'{value}'{did_you_mean(value, known)}: choose {' or '.join(known)}")
    ids_M = target_N if negatives_M is None else negatives_M
    wide = torch.float64 if hidden_NC.dtype == torch.float64 else torch.float32
    with torch.autocast(hidden_NC.device.type, enabled=False):
        hidden_NC = hidden_NC.to(wide)
        if normalize:
            hidden_NC = F.normalize(hidden_NC, dim=-1)
        hidden_NC = hidden_NC / temperature
        if not len(ids_M):
            # no position, nothing to be told from: the likeliest of no token is not defined, but
            # the empty sum still has to reach both tensors (processes wait for all gradients)
            none_N = (hidden_NC * _rows(table_VC, target_N, normalize, hidden_NC)).sum(-1)
            return Contrastive(none_N, target_N.bool(), 0)
        how = (normalize, duplicates, symmetric)
        if backend == "reference":
            return _reference(hidden_NC, table_VC, target_N, ids_M, *how)
        told = distinct or distinct_ids(target_N, negatives_M)
        own = told if negatives_M is None or not symmetric else distinct_ids(target_N)
        return _distinct(hidden_NC, table_VC, told, own, *how, loss_backend)


def _rows(table_VC: Tensor, ids: Tensor, normalize: bool, like: Tensor) -> Tensor:
    rows = F.embedding(ids, table_VC).to(like.dtype)
    return F.normalize(rows, dim=-1) if normalize else rows


def _distinct(
    hidden_NC: Tensor,
    table_VC: Tensor,
    told: Distinct,
    own: Distinct,
    normalize: bool,
    duplicates: str,
    symmetric: bool,
    backend: str,
) -> Contrastive:
    place_N = told.place_N
    weight_UC = _rows(table_VC, told.ids_U, normalize, hidden_NC)
    bias_U = told.count_U.to(hidden_NC.dtype).log() if duplicates == "count" else None
    result = linear_cross_entropy(
        hidden_NC, weight_UC, place_N, bias_V=bias_U, want_argmax=True, backend=backend
    )
    assert result.argmax_N is not None
    right_N = result.argmax_N == place_N
    # counts belong into the sum, but not into the score of the right token
    loss_N = result.loss_N if bias_U is None else result.loss_N + bias_U[place_N]
    if symmetric:
        score_N = (hidden_NC * weight_UC[place_N]).sum(-1)
        keys_UC = _rows(table_VC, own.ids_U, normalize, hidden_NC)
        none_U = torch.zeros_like(own.ids_U)
        lse_U = linear_cross_entropy(keys_UC, hidden_NC, none_U, backend=backend).lse_N
        loss_N = (loss_N + lse_U[own.place_N] - score_N) / 2
    return Contrastive(loss_N, right_N, len(told.ids_U))


def _reference(
    hidden_NC: Tensor,
    table_VC: Tensor,
    target_N: Tensor,
    ids_M: Tensor,
    normalize: bool,
    duplicates: str,
    symmetric: bool,
) -> Contrastive:
    scores_NM = hidden_NC @ _rows(table_VC, ids_M, normalize, hidden_NC).T
    score_N = (hidden_NC * _rows(table_VC, target_N, normalize, hidden_NC)).sum(-1)
    same_MM = ids_M[:, None] == ids_M[None, :]
    if duplicates == "once":
        # all but the first occurrence of a token
        repeated_M = same_MM.tril(-1).any(1)
        scores_NM = scores_NM.masked_fill(repeated_M, float("-inf"))
        weighted_NM = scores_NM
    else:
        weighted_NM = scores_NM + same_MM.sum(1).to(scores_NM.dtype).log()
    loss_N = scores_NM.logsumexp(1) - score_N
    right_N = ids_M[weighted_NM.argmax(1)] == target_N
    if symmetric:
        among_NN = hidden_NC @ _rows(table_VC, target_N, normalize, hidden_NC).T
        loss_N = (loss_N + among_NN.logsumexp(0) - score_N) / 2
    return Contrastive(loss_N, right_N, int(ids_M.unique().numel()))
