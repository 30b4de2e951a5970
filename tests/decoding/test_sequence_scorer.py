"""Scoring: given probabilities, padding, contexts, ensembles, every kind of model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.decoding.scorer import SequenceScorer
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.models.base import (
    FairseqDecoder,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqLanguageModel,
)
from tests.models.tiny_lm import DICTIONARY, EOS, PAD, POSITIONS, V, tiny_lm

ADAPTIVE = {"adaptive_softmax_cutoff": "5,9", "adaptive_softmax_factor": 2.0}
WORDS = Dictionary()
for _word in ("a", "b", "c"):
    WORDS.add_symbol(_word)


class Echo(FairseqEncoder):
    def forward(self, src_tokens: Tensor, src_lengths: Any = None, **kwargs: Any) -> Any:
        return src_tokens


class Given(FairseqDecoder):
    """Answers with given probabilities (B, T, V), as stand-ins in tests of the original do."""

    def __init__(self, p_BTV: Tensor, attention: Any = None) -> None:
        super().__init__(WORDS)
        self.p_BTV, self.attention, self.rows = p_BTV, attention, []  # type: ignore[var-annotated]

    def forward(self, prev_output_tokens: Tensor, encoder_out: Any = None, **kwargs: Any) -> Any:
        return self.p_BTV, {"attn": [self.attention]}

    def get_normalized_probs(self, net_output: Any, log_probs: bool, _: Any) -> Tensor:
        self.rows.append(net_output[0].shape[:-1].numel())
        return net_output[0].log() if log_probs else net_output[0]


def given_batch() -> tuple[Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    target = torch.tensor([[4, 5, EOS], [6, EOS, PAD]])
    sample = {
        "id": torch.tensor([0, 1]),
        "net_input": {
            "src_tokens": target,
            "src_lengths": torch.tensor([3, 2]),
            "prev_output_tokens": target,
        },
        "target": target,
    }
    return torch.rand(2, 3, len(WORDS)).softmax(-1), sample


def expected_scores(p_BTV: Tensor, sample: dict[str, Any]) -> list[list[float]]:
    return [
        [math.log(float(p_BTV[row, place, token])) for place, token in enumerate(tokens)]
        for row, tokens in enumerate([[4, 5, EOS], [6, EOS]])
    ]


def check(found: Any, sample: dict[str, Any], expected: list[list[float]]) -> None:
    assert len(found) == len(expected)
    for row, scores in enumerate(expected):
        (hypothesis,) = found[row]
        assert hypothesis["tokens"].tolist() == sample["target"][row, : len(scores)].tolist()
        assert hypothesis["positional_scores"].tolist() == pytest.approx(scores, abs=1e-6)
        assert float(hypothesis["score"]) == pytest.approx(sum(scores) / len(scores), abs=1e-6)
        assert hypothesis["alignment"] is None


@pytest.mark.parametrize(
    "softmax_batch, rows", [(None, [5]), (5, [5]), (2, [2, 2, 1]), (1, [1] * 5)]
)
def test_given_probabilities(softmax_batch: int | None, rows: list[int]) -> None:
    p_BTV, sample = given_batch()
    decoder = Given(p_BTV)
    model = FairseqEncoderDecoderModel(Echo(WORDS), decoder)
    found = SequenceScorer(WORDS, softmax_batch=softmax_batch).generate([model], sample)
    check(found, sample, expected_scores(p_BTV, sample))
    assert decoder.rows == rows


def test_an_ensemble_averages_probabilities_and_attention() -> None:
    p_BTV, sample = given_batch()
    other_BTV = p_BTV.flip(-1)
    models = [
        FairseqEncoderDecoderModel(Echo(WORDS), Given(p, torch.full((2, 3, 4), value)))
        for p, value in ((p_BTV, 1.0), (other_BTV, 3.0))
    ]
    found = SequenceScorer(WORDS).generate(models, sample)
    check(found, sample, expected_scores((p_BTV + other_BTV) / 2, sample))
    assert torch.equal(found[1][0]["attention"], torch.full((2, 4), 2.0))


def test_a_context_is_not_scored() -> None:
    p_BTV, sample = given_batch()
    sample["target"] = torch.tensor([[PAD, 5, EOS], [6, EOS, PAD]])
    sample["start_indices"] = [1, 0]
    model = FairseqLanguageModel(Given(p_BTV))
    sample["net_input"] = {"src_tokens": sample["target"]}
    found = SequenceScorer(WORDS).generate([model], sample)
    assert found[0][0]["tokens"].tolist() == [5, EOS]
    expected = [math.log(float(p_BTV[0, 1, 5])), math.log(float(p_BTV[0, 2, EOS]))]
    assert found[0][0]["positional_scores"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings",
    [*POSITIONS.values(), {"head": "clap"}, ADAPTIVE],
    ids=[*POSITIONS, "clap", "adaptive"],
)
def test_our_models_are_scored_as_their_probabilities_say(settings: dict[str, Any]) -> None:
    model = tiny_lm(**settings)
    torch.manual_seed(1)
    target = torch.randint(4, V, (3, 7))
    target[1, 4:] = PAD
    sources = torch.cat([torch.full((3, 1), EOS), target[:, :-1]], 1)
    sample = {"net_input": {"src_tokens": sources}, "target": target}
    with torch.no_grad():
        log_p_BTV = model.get_normalized_probs(model(sources), log_probs=True)
    expected_BT = log_p_BTV.gather(2, target[:, :, None])[:, :, 0]
    for row, (hypothesis,) in enumerate(SequenceScorer(DICTIONARY).generate([model], sample)):
        scores = expected_BT[row, : len(hypothesis["tokens"])]
        torch.testing.assert_close(hypothesis["positional_scores"], scores)


def test_nothing_to_score() -> None:
    sample = {"net_input": {"src_tokens": torch.tensor([[EOS]])}, "target": torch.tensor([[PAD]])}
    ((hypothesis,),) = SequenceScorer(DICTIONARY).generate([tiny_lm()], sample)
    assert len(hypothesis["tokens"]) == 0
    assert math.isnan(hypothesis["score"])  # 0 is the score of what is certain


def test_refusals_and_symbols() -> None:
    assert SequenceScorer(WORDS).symbols_to_strip_from_output == {EOS}
    scorer = SequenceScorer(WORDS, eos=5, symbols_to_strip_from_output={3})
    assert scorer.symbols_to_strip_from_output == {3, 5}
    with pytest.raises(UnsupportedError, match="translation"):
        SequenceScorer(WORDS, compute_alignment=True)
    with pytest.raises(ConfigError, match="must be positive"):
        SequenceScorer(WORDS, softmax_batch=0)
