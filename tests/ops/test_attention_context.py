"""ALiBi's dense bias and the masks of a context."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch

from fairseq.modules.positions import alibi_slopes
from fairseq.ops.attention_context import Alibi, AttentionContext


def test_the_two_matrices_of_four_tokens() -> None:
    slopes_H = alibi_slopes(8)
    symmetric, asymmetric = (Alibi(slopes_H, kind).bias(4, 4)[0] for kind in (False, True))
    past_and_future = [[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]
    assert symmetric.equal(-slopes_H[:, None, None] * torch.tensor(past_and_future))
    nearer_future = [[0, 0.5, 1.5, 2.5], [1, 0, 0.5, 1.5], [2, 1, 0, 0.5], [3, 2, 1, 0]]
    assert asymmetric.equal(-slopes_H[:, None, None] * torch.tensor(nearer_future))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_any_length_in_any_order(asymmetric: bool, causal: bool) -> None:
    alibi = Alibi(alibi_slopes(3), asymmetric)
    for queries, keys in ((5, 5), (1, 1), (300, 300), (17, 20), (1, 301)):
        result = alibi.bias(queries, keys, causal)
        assert result.shape == (1, 3, queries, keys)
        whole = Alibi(alibi_slopes(3), asymmetric).bias(keys, keys, causal)
        assert result.equal(whole[:, :, keys - queries :])


def test_causality_hides_the_future() -> None:
    slopes_H = alibi_slopes(4)
    bias_HTT = Alibi(slopes_H).bias(6, 6, causal=True)[0]
    for h, i, j in itertools.product(range(4), range(6), range(6)):
        expected = -float(slopes_H[h]) * (i - j) if j <= i else -math.inf
        assert float(bias_HTT[h, i, j]) == pytest.approx(expected, abs=1e-7)


def test_neighbours_far_away_differ_by_the_slope() -> None:
    bias = Alibi(alibi_slopes(4)).bias(2048, 2048)
    assert bias.dtype == torch.float32
    step_HT = bias[0, :, 0, :-1] - bias[0, :, 0, 1:]
    torch.testing.assert_close(step_HT, alibi_slopes(4)[:, None].expand_as(step_HT))


def test_copies_and_pickles_leave_the_dense_bias_behind() -> None:
    alibi = Alibi(alibi_slopes(4))
    alibi.bias(64, 64)
    for other in (copy.deepcopy(alibi), pickle.loads(pickle.dumps(alibi))):
        assert other._kept == {} and other.slopes_H.equal(alibi.slopes_H)
    assert alibi._kept


def test_other_documents() -> None:
    context = AttentionContext(documents_BS=torch.tensor([[0, 0, 1, 1]]))
    assert context.other_documents(2).tolist() == [[[[True, True, False, False]] * 2]]
    assert AttentionContext().other_documents(2) is None
