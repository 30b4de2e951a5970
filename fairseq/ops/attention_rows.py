"""Attention on a CPU by pieces of the batch that stay in the cache, without copies.

PyTorch's batched products want queries, keys and values with their heads apart, so they copy all
three; and the weights of a whole batch leave the cache between product, softmax, dropout and
product. One head of some rows, or some heads of one row, have strides that the product takes as
they are, and are several matrices for the threads to share. The masks are those that
:func:`fairseq.ops.dropout.dropout` draws.

Shapes: B batch, H heads, P matrices of a piece, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fairseq.ops.dropout import LEVELS, draw_bits
from fairseq.protocols import Context

# Weights at work in a thread, half a MB in fp32: more at once would leave a second-level cache.
AT_ONCE = 1 << 17

Piece = tuple[slice, int] | tuple[int, slice]


def is_worth_pieces(query_BHTD: Tensor, key_BHSD: Tensor) -> bool:
    """Tell whether a batch fills a piece: a few small matrices are not worth the calls."""
    batch, heads, queries, _ = query_BHTD.shape
    return max(batch, heads) * queries * key_BHSD.shape[2] >= AT_ONCE


def is_short(query_BHTD: Tensor, key_BHSD: Tensor) -> bool:
    """Tell whether several matrices fit into a piece; keeping their weights costs little memory."""
    return 4 * query_BHTD.shape[2] * key_BHSD.shape[2] <= AT_ONCE


def attention_by_rows(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    hidden: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return ``dropout(softmax(q k^T / sqrt(D) + bias)) v``, shape (B, H, T, D).

    Its memory is that of (B, T, H, D): what follows may join the heads without a copy.

    Args:
        query_BHTD: fp32 or fp64.
        key_BHSD: of the same type.
        value_BHSD: of the same type.
        bias_1HTS: added to the scores; it gets no gradient.
        hidden: True at pairs that must not be seen; broadcasts to (B, 1, T, S).
        dropout: probability of dropping a weight, rounded to a multiple of 1 / LEVELS; below 1.
    """
    dropped = round(dropout * LEVELS)
    attended: Tensor = _ByRows.apply(query_BHTD, key_BHSD, value_BHSD, bias_1HTS, hidden, dropped)
    return attended


class _RowsContext(Context, Protocol):
    dropped: int


class _ByRows(torch.autograd.Function):
    """Keeps the weights before dropout and the random bits, as PyTorch's own functions would."""

    @staticmethod
    def forward(
        ctx: _RowsContext,
        query_BHTD: Tensor,
        key_BHSD: Tensor,
        value_BHSD: Tensor,
        bias_1HTS: Tensor | None,
        hidden: Tensor | None,
        dropped: int,
    ) -> Tensor:
        """Attend."""
        batch, heads, queries, channels = query_BHTD.shape
        shape = (batch, heads, queries, key_BHSD.shape[2])
        bits_BHTS = draw_bits(shape, query_BHTD.device) if dropped else None
        weights_BHTS = _room(query_BHTD, shape)
        attended_BHTD = _joined(query_BHTD)
        lowest = torch.finfo(query_BHTD.dtype).min  # not -inf: rows without keys stay finite
        for at in _pieces(*shape):
            scores_PTS = _product(query_BHTD[at], key_BHSD[at].mT, channels**-0.5)
            if bias_1HTS is not None:
                scores_PTS += bias_1HTS[0, at[1]]
            if hidden is not None:
                scores_PTS.masked_fill_(_of_piece(hidden, at), lowest)
            weights_PTS = torch.softmax(scores_PTS, -1, out=weights_BHTS[at])
            if bits_BHTS is not None:
                kept_PTS = _kept(bits_BHTS[at], dropped, out=scores_PTS)
                weights_PTS = kept_PTS.mul_(weights_PTS)
            attended_BHTD[at] = _product(weights_PTS, value_BHSD[at], _scale(dropped))
        ctx.save_for_backward(
            query_BHTD, key_BHSD, value_BHSD, bias_1HTS, hidden, weights_BHTS, bits_BHTS,
            attended_BHTD,
        )  # fmt: skip
        ctx.dropped = dropped
        return attended_BHTD

    @staticmethod
    def backward(ctx: _RowsContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        *inputs, weights_BHTS, bits_BHTS, attended_BHTD = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: what is in place below has no derivative
            again_BHTD = _differentiable(inputs, bits_BHTS, ctx.dropped)
            needed = [x for x in inputs[:3] if x.requires_grad]
            gradient = iter(
                torch.autograd.grad(again_BHTD, needed, gradients[0], create_graph=True)
            )
            first = (next(gradient) if x.requires_grad else None for x in inputs[:3])
            return (*first, None, None, None)
        query_BHTD, key_BHSD, value_BHSD, _, hidden = inputs
        (up_BHTD,), root, scale = gradients, query_BHTD.shape[-1] ** -0.5, _scale(ctx.dropped)
        # sum of weight times its gradient over the keys, which the softmax subtracts: the same as
        # the sum over channels here, and D numbers are fewer than S
        inner_BHT1 = (up_BHTD * attended_BHTD).sum(-1, keepdim=True)
        to_query, to_key, to_value = (_joined(x) for x in (query_BHTD, key_BHSD, value_BHSD))
        for at in _pieces(*weights_BHTS.shape):
            up_PTD, weights_PTS = up_BHTD[at], weights_BHTS[at]
            to_scores_PTS, used_PTS = _product(up_PTD, value_BHSD[at].mT, scale), weights_PTS
            if bits_BHTS is not None:
                kept_PTS = _kept(bits_BHTS[at], ctx.dropped, torch.empty_like(weights_PTS))
                to_scores_PTS.mul_(kept_PTS)
                used_PTS = kept_PTS.mul_(weights_PTS)
            to_scores_PTS.sub_(inner_BHT1[at]).mul_(weights_PTS)
            if hidden is not None:  # has a weight where a query sees nothing, but no influence
                to_scores_PTS.masked_fill_(_of_piece(hidden, at), 0)
            to_value[at] = _product(used_PTS.mT, up_PTD, scale)
            to_query[at] = _product(to_scores_PTS, key_BHSD[at], root)
            to_key[at] = _product(to_scores_PTS.mT, query_BHTD[at], root)
        return to_query, to_key, to_value, None, None, None


def _differentiable(inputs: Sequence[Tensor], bits_BHTS: Tensor | None, dropped: int) -> Tensor:
    """Return what was attended, by operations that can be differentiated as often as one likes."""
    query_BHTD, key_BHSD, value_BHSD, bias_1HTS, hidden = inputs
    scores_BHTS = query_BHTD @ key_BHSD.mT * query_BHTD.shape[-1] ** -0.5
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS
    if hidden is not None:
        scores_BHTS = scores_BHTS.masked_fill(hidden, torch.finfo(scores_BHTS.dtype).min)
    weights_BHTS = scores_BHTS.softmax(-1)
    if bits_BHTS is not None:
        weights_BHTS = weights_BHTS * _kept(
            bits_BHTS, dropped, torch.empty(bits_BHTS.shape).to(scores_BHTS)
        )
    return weights_BHTS @ value_BHSD * _scale(dropped)


def _pieces(batch: int, heads: int, queries: int, keys: int) -> Iterator[Piece]:
    """Yield where pieces are: some rows of each head, or some heads of each row."""
    step = torch.get_num_threads() * max(1, AT_ONCE // (queries * keys))
    if _goes_by_head(batch, heads):
        for first in range(0, batch, step):
            for head in range(heads):  # of the same rows, whose heads lie side by side
                yield slice(first, first + step), head
    else:
        for row in range(batch):
            for first in range(0, heads, step):
                yield row, slice(first, first + step)


def _goes_by_head(batch: int, heads: int) -> bool:
    return batch >= heads


def _room(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return room for (B, H, T, S) in which every piece is contiguous."""
    batch, heads, *rest = shape
    if _goes_by_head(batch, heads):
        return like.new_empty(heads, batch, *rest).transpose(0, 1)
    return like.new_empty(shape)


def _of_piece(hidden: Tensor, at: Piece) -> Tensor:
    return hidden[at[0] if len(hidden) > 1 else 0, 0]


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return ``scale`` times the products of two stacks of matrices; the factor costs nothing."""
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    # beta=0: what happens to be in it is not read
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _joined(like_BHTD: Tensor) -> Tensor:
    """Return room for (B, H, T, D) in which the heads of a token lie side by side."""
    batch, heads, tokens, channels = like_BHTD.shape
    return like_BHTD.new_empty(batch, tokens, heads, channels).transpose(1, 2)


def _kept(bits: Tensor, dropped: int, out: Tensor) -> Tensor:
    """Fill ``out`` with 1 where a weight is kept, 0 elsewhere."""
    torch.ge(bits, dropped - LEVELS // 2, out=out)
    return out


def _scale(dropped: int) -> float:
    return LEVELS / (LEVELS - dropped)
