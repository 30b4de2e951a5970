"""Beam search and sampling, one step at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.decoding.search import BeamSearch, Sampling
from fairseq.errors import ConfigError

WORDS = Dictionary()
for _word in ("a", "b", "c"):
    WORDS.add_symbol(_word)
SIZE = len(WORDS)


def random_log_probs(batch: int, beam: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(batch, beam, SIZE).log_softmax(-1)


def test_a_step_of_beam_search_sorts_all_continuations() -> None:
    batch, beam = 2, 3
    log_p_BKV, total_BK = random_log_probs(batch, beam), torch.randn(batch, beam)
    scores, tokens, beams = BeamSearch(WORDS).step(4, log_p_BKV, total_BK[:, :, None])
    assert scores.shape == (batch, 2 * beam)
    for row in range(batch):
        every = sorted(
            (
                (float(total_BK[row, k] + log_p_BKV[row, k, v]), v, k)
                for k in range(beam)
                for v in range(SIZE)
            ),
            reverse=True,
        )[: 2 * beam]
        found = zip(scores[row].tolist(), tokens[row].tolist(), beams[row].tolist(), strict=True)
        assert list(found) == every


def test_the_first_step_looks_at_one_hypothesis_of_each_sentence() -> None:
    log_p_BKV = random_log_probs(2, 4)
    scores, tokens, beams = BeamSearch(WORDS).step(0, log_p_BKV, None)
    assert not beams.any()
    assert scores.shape == (2, SIZE)  # no more than there are
    torch.testing.assert_close(scores, log_p_BKV[:, 0].gather(1, tokens))
    assert (scores.diff(dim=1) <= 0).all()


def drawn(search: Sampling, p_V: Tensor, times: int = 4000) -> Tensor:
    """Return how often each word was drawn."""
    log_p_BKV = p_V.log().expand(1, times, -1)
    _, tokens, beams = search.step(0, log_p_BKV, None, None, [0])
    assert beams.tolist() == [list(range(times))]
    return torch.bincount(tokens[0], minlength=len(p_V))


P_V = torch.tensor([0.05, 0.0, 0.2, 0.3, 0.1, 0.25, 0.1])


@pytest.mark.parametrize(
    "topk, topp, support",
    [
        (-1, -1.0, [0, 2, 3, 4, 5, 6]),
        (0, 1.0, [0, 2, 3, 4, 5, 6]),
        (1, -1.0, [3]),
        (3, -1.0, [2, 3, 5]),
        (100, -1.0, [0, 2, 3, 4, 5, 6]),
        (-1, 0.29, [3]),
        (-1, 0.31, [3, 5]),
        (-1, 0.7, [2, 3, 5]),
        (2, 0.7, [3, 5]),
        (3, 0.5, [3, 5]),
    ],
)
def test_words_are_drawn_from_what_is_likely(topk: int, topp: float, support: list[int]) -> None:
    counts_V = drawn(Sampling(WORDS, topk, topp, seed=3), P_V)
    assert counts_V.nonzero()[:, 0].tolist() == support
    share_V = P_V[support] / P_V[support].sum()
    expected_V = 4000 * share_V
    statistic = float(((counts_V[support] - expected_V) ** 2 / expected_V).sum())
    assert statistic < 20.5  # exceeded once in 1,000 with 5 degrees of freedom


def test_scores_of_samples_are_the_model_s() -> None:
    log_p_BKV, total_BK = random_log_probs(3, 2), torch.randn(3, 2)
    search = Sampling(WORDS, sampling_topk=2, seed=1)
    scores, tokens, _ = search.step(1, log_p_BKV, total_BK[:, :, None], None, [7, 8, 9])
    expected = total_BK + log_p_BKV.gather(2, tokens[:, :, None])[:, :, 0]
    torch.testing.assert_close(scores, expected)


def test_draws_depend_on_seed_sentence_and_step_only() -> None:
    log_p_BKV = torch.zeros(1, 1, 1000).log_softmax(-1).expand(2, 3, -1)

    def tokens(seed: int, step: int, ids: list[int]) -> list[list[int]]:
        search = Sampling(WORDS, seed=seed)
        return search.step(step, log_p_BKV, None, None, torch.tensor(ids))[1].tolist()

    first = tokens(1, 0, [4, 5])
    assert tokens(1, 0, [5, 4]) == first[::-1]
    different = [first[0], first[1], *tokens(2, 0, [4, 5]), *tokens(1, 1, [4, 5])]
    assert len({tuple(row) for row in different}) == len(different)


def test_hypotheses_without_a_future_stay_so() -> None:
    """All words ruled out, or the hypothesis itself: the score is -inf, the word is one."""
    log_p_BKV = torch.full((1, 2, SIZE), -math.inf)
    log_p_BKV[:, 1, 3] = 0
    total_BK1 = torch.tensor([[[0.0], [-math.inf]]])
    for search in (Sampling(WORDS, sampling_topp=0.9), BeamSearch(WORDS)):
        scores, tokens, _ = search.step(2, log_p_BKV, total_BK1)
        assert torch.isneginf(scores).all()
        assert ((tokens >= 0) & (tokens < SIZE)).all()


def test_a_probability_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a probability, not 1.5"):
        Sampling(WORDS, sampling_topp=1.5)
