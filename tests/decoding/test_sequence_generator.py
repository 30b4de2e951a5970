"""Generation: against enumeration, against plain forward passes, and whatever the batch is."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairseq.data.storage.dictionary import Dictionary
from fairseq.decoding.beams import SequenceGenerator, build_generator
from fairseq.decoding.scorer import SequenceScorer
from fairseq.decoding.search import BeamSearch, Sampling
from fairseq.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from fairseq.models.base import FairseqDecoder, FairseqIncrementalDecoder, FairseqLanguageModel
from tests.models.tiny_lm import DICTIONARY, EOS, PAD, POSITIONS, tiny_lm

SMALL = Dictionary()
for _word in ("a", "b"):
    SMALL.add_symbol(_word)
ADAPTIVE = {
    "adaptive_input": True,
    "adaptive_input_cutoff": "5,9",
    "adaptive_input_factor": 2.0,
    "adaptive_softmax_cutoff": "5,9",
    "adaptive_softmax_factor": 2.0,
}
KINDS = {**POSITIONS, "clap": {"head": "clap"}, "adaptive": ADAPTIVE}


class Bigrams(FairseqDecoder):
    """What comes next depends on the last token alone, (V, V) logits."""

    def __init__(self, logits_VV: Tensor, dictionary: Any = SMALL) -> None:
        super().__init__(dictionary)
        self.logits_VV = nn.Parameter(logits_VV)

    def forward(self, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        return self.logits_VV[prev_output_tokens], None


class LastTokenOnly(Bigrams, FairseqIncrementalDecoder):
    """Decodes as the original's modules do: sums what it saw, and looks at the last token only."""

    def forward(
        self, prev_output_tokens: Tensor, incremental_state: Any = None, **kwargs: Any
    ) -> Any:
        if incremental_state is None:
            return self.logits_VV[prev_output_tokens].cumsum(1), None
        seen_RV = self.logits_VV[prev_output_tokens[:, -1]] + incremental_state.get("seen", 0)
        incremental_state["seen"] = seen_RV
        return seen_RV[:, None], None

    def reorder_incremental_state(self, incremental_state: Any, new_order: Tensor) -> None:
        incremental_state["seen"] = incremental_state["seen"][new_order]


def bigrams(seed: int = 0, dictionary: Any = SMALL) -> FairseqLanguageModel:
    torch.manual_seed(seed)
    size = len(dictionary)
    return FairseqLanguageModel(Bigrams(torch.randn(size, size), dictionary))


def batch_of(*prompts: list[int], first: int = 0) -> tuple[dict[str, Any], Tensor]:
    """Return a batch and its prefix tokens, padded on the right."""
    longest = max(map(len, prompts))
    prefix = torch.tensor([[*p, *[PAD] * (longest - len(p))] for p in prompts], dtype=torch.int64)
    prefix = prefix.view(len(prompts), longest)
    sources = torch.cat([torch.full((len(prompts), 1), EOS), prefix], 1)
    ids = torch.arange(first, first + len(prompts))
    return {"id": ids, "net_input": {"src_tokens": sources}}, prefix


def run(model: Any, *prompts: list[int], first: int = 0, **settings: Any) -> list[Any]:
    dictionary = settings.pop("dictionary", DICTIONARY)
    generator = SequenceGenerator([model], dictionary, **settings)
    sample, prefix = batch_of(*prompts, first=first)
    return generator.generate([model], sample, prefix_tokens=prefix)


def tokens_of(hypotheses: list[Any]) -> list[list[int]]:
    return [hypothesis["tokens"].tolist() for hypothesis in hypotheses]


def log_probs(model: Any, tokens: list[int]) -> Tensor:
    """Return what follows the tokens, by a full forward pass."""
    with torch.no_grad():
        output = model(torch.tensor([tokens]))
    return model.get_normalized_probs(output, log_probs=True)[0, -1]


# -- beam search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lenpen, normalize", [(1.0, True), (0.3, True), (2.0, True), (1.0, False)])
def test_a_wide_beam_finds_every_sequence(lenpen: float, normalize: bool) -> None:
    model, longest = bigrams(), 3
    log_p_VV = model.decoder.logits_VV.detach().double().log_softmax(-1)
    words = [i for i in range(len(SMALL)) if i not in (PAD, EOS)]
    expected = {}
    for length in range(1, longest + 1):
        for sequence in itertools.product(words, repeat=length):
            path = [EOS, *sequence, EOS]
            total = sum(float(log_p_VV[a, b]) for a, b in itertools.pairwise(path))
            expected[path[1:].__str__()] = total / (length + 1) ** lenpen if normalize else total
    (found,) = run(
        model,
        [],
        dictionary=SMALL,
        beam_size=len(expected) + 1,
        max_len_b=longest,
        len_penalty=lenpen,
        normalize_scores=normalize,
    )
    scores = {str(h["tokens"].tolist()): float(h["score"]) for h in found}
    assert scores == pytest.approx(expected, abs=1e-5)
    assert [float(h["score"]) for h in found] == sorted(scores.values(), reverse=True)


def test_a_narrow_beam_is_a_plain_beam_search() -> None:
    """Against a search over Python lists that follows the definition."""
    model, beam, longest = bigrams(3), 2, 5
    log_p_VV = model.decoder.logits_VV.detach().log_softmax(-1)
    words = [i for i in range(len(SMALL)) if i != PAD]
    alive, ended = [((EOS,), 0.0)], []
    for step in range(longest + 1):
        grown = [
            ((*path, word), total + float(log_p_VV[path[-1], word]))
            for path, total in alive
            for word in words
            if (word == EOS if step == longest else step > 0 or word != EOS)
        ]
        grown.sort(key=lambda pair: -pair[1])
        ended += [pair for pair in grown[:beam] if pair[0][-1] == EOS]
        alive = [pair for pair in grown if pair[0][-1] != EOS][:beam]
        if len(ended) >= beam:
            break
    best = sorted(ended[:beam], key=lambda pair: -pair[1] / (len(pair[0]) - 1))
    (found,) = run(model, [], dictionary=SMALL, beam_size=beam, max_len_b=longest)
    assert tokens_of(found) == [list(path[1:]) for path, _ in best]


@pytest.mark.parametrize("kind", KINDS)
def test_beam_one_is_greedy(kind: str) -> None:
    model, prompt = tiny_lm(**KINDS[kind]), [5, 7]
    tokens = [EOS, *prompt]
    while tokens[-1] != EOS or len(tokens) == 1:
        log_p_V = log_probs(model, tokens)
        log_p_V[PAD] = -torch.inf
        tokens.append(EOS if len(tokens) == 11 else int(log_p_V.argmax()))
    assert tokens_of(run(model, prompt, max_len_b=10)[0]) == [tokens[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_are_those_of_the_scorer(kind: str) -> None:
    model = tiny_lm(**KINDS[kind])
    (found,) = run(model, [5, 6, 7], beam_size=4, max_len_b=8)
    assert len(found) == 4
    for hypothesis in found:
        target = hypothesis["tokens"][None]
        sources = torch.cat([torch.tensor([[EOS]]), target[:, :-1]], 1)
        sample = {"net_input": {"src_tokens": sources}, "target": target}
        ((scored,),) = SequenceScorer(DICTIONARY).generate([model], sample)
        torch.testing.assert_close(
            hypothesis["positional_scores"], scored["positional_scores"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(hypothesis["score"], scored["score"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_batch_gives_what_its_prompts_give_alone(kind: str, sampled: bool) -> None:
    model = tiny_lm(**KINDS[kind])
    search = Sampling(DICTIONARY, seed=5) if sampled else None
    settings: dict[str, Any] = {"beam_size": 3, "max_len_b": 9, "search_strategy": search}
    prompts = [[5], [6, 7, 8, 9], [], [7, 7, 5], [10, EOS, 4]]
    together = run(model, *prompts, **settings)
    for place, prompt in enumerate(prompts):
        (alone,) = run(model, prompt, first=place, **settings)
        assert tokens_of(alone) == tokens_of(together[place])
        for one, other in zip(alone, together[place], strict=True):
            torch.testing.assert_close(one["score"], other["score"])
            assert one["tokens"].tolist()[: len(prompt)] == prompt


def test_plug_ins_that_look_at_the_last_token_only() -> None:
    torch.manual_seed(1)
    logits_VV = torch.randn(len(SMALL), len(SMALL))
    decoder = LastTokenOnly(logits_VV)
    model = FairseqLanguageModel(decoder)
    prompts = [[4, 5, 4], [5]]
    found = run(model, *prompts, dictionary=SMALL, beam_size=2, max_len_b=6)
    for hypotheses in found:
        for hypothesis in hypotheses:
            tokens = [EOS, *hypothesis["tokens"].tolist()]
            expected = [
                float(log_probs(model, tokens[:i])[tokens[i]]) for i in range(1, len(tokens))
            ]
            assert hypothesis["positional_scores"].tolist() == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_averages_probabilities() -> None:
    models = [bigrams(seed) for seed in (1, 2, 3)]
    generator = SequenceGenerator(models, SMALL, max_len_b=3)
    sample, prefix = batch_of([4])
    ((hypothesis,),) = generator.generate(models, sample, prefix_tokens=prefix)
    path = [EOS, *hypothesis["tokens"].tolist()]
    mean_VV = sum(m.decoder.logits_VV.detach().softmax(-1) for m in models) / 3
    expected = [math.log(float(mean_VV[a, b])) for a, b in itertools.pairwise(path)]
    assert hypothesis["positional_scores"].tolist() == pytest.approx(expected, abs=1e-5)


def test_temperature_sharpens() -> None:
    model = bigrams()
    ((hypothesis,),) = run(model, [], dictionary=SMALL, temperature=0.5, max_len_b=3)
    log_p_VV = (model.decoder.logits_VV.detach() / 0.5).log_softmax(-1)
    path = [EOS, *hypothesis["tokens"].tolist()]
    expected = [float(log_p_VV[a, b]) for a, b in itertools.pairwise(path)]
    assert hypothesis["positional_scores"].tolist() == pytest.approx(expected, abs=1e-5)


# -- prompts and lengths ---------------------------------------------------------------------------


def test_lengths_are_kept() -> None:
    for hypotheses in run(
        bigrams(2), [4], [], dictionary=SMALL, beam_size=3, min_len=4, max_len_b=6
    ):
        assert all(5 <= len(tokens) <= 7 for tokens in tokens_of(hypotheses))
        assert all(EOS not in tokens[:-1] for tokens in tokens_of(hypotheses))


def test_the_limit_can_grow_with_the_source() -> None:
    generator = SequenceGenerator([bigrams(2)], SMALL, max_len_a=2, max_len_b=1, min_len=3)
    prompts = generator._prompts(*batch_of([4, 4], [4]))
    assert prompts.max_len_B.tolist() == [2 * 3 + 1, 2 * 2 + 1]  # sources have one token in front


def test_a_prompt_beyond_the_limit_is_ended() -> None:
    ((hypothesis,),) = run(bigrams(), [4, 5, 4, 5], dictionary=SMALL, max_len_b=2)
    assert hypothesis["tokens"].tolist() == [4, 5, 4, 5, EOS]


def test_a_prompt_that_ends_is_complete() -> None:
    found = run(bigrams(), [4, EOS], [4, EOS, 5], dictionary=SMALL, beam_size=2, max_len_b=5)
    assert tokens_of(found[0]) == [[4, EOS]]
    assert all(tokens[:3] == [4, EOS, 5] and len(tokens) > 3 for tokens in tokens_of(found[1]))


def test_positions_run_out() -> None:
    model = tiny_lm()  # 12 positions
    with pytest.raises(DataError, match="12 positions"):
        run(model, [5] * 12)
    ((hypothesis,),) = run(model, [5] * 9, min_len=11)
    assert len(hypothesis["tokens"]) == 12


# -- constraints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(size: int) -> None:
    model = bigrams(7)
    settings: dict[str, Any] = {"dictionary": SMALL, "min_len": 4, "max_len_b": 16, "beam_size": 3}
    (found,) = run(model, [4], no_repeat_ngram_size=size, **settings)
    for tokens in tokens_of(found):
        ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        assert len(set(ngrams)) == len(ngrams)
    (free,) = run(model, [4], **settings)
    assert tokens_of(free) != tokens_of(found)


def test_a_penalty_keeps_unknowns_away() -> None:
    model = bigrams(7)
    with torch.no_grad():
        model.decoder.logits_VV[:, SMALL.unk()] += 5
    settings: dict[str, Any] = {"dictionary": SMALL, "min_len": 4, "max_len_b": 6}
    assert SMALL.unk() in tokens_of(run(model, [], **settings)[0])[0]
    assert SMALL.unk() not in tokens_of(run(model, [], unk_penalty=20.0, **settings)[0])[0]


@pytest.mark.parametrize("sampled", [False, True])
def test_only_what_is_allowed_follows(sampled: bool) -> None:
    calls = []

    def allowed(number: int, tokens_S: Tensor) -> list[int]:
        calls.append((number, tokens_S.tolist()))
        return [4, 5] if len(tokens_S) % 2 else [5, EOS]

    search = Sampling(SMALL) if sampled else BeamSearch(SMALL)
    settings: dict[str, Any] = {"dictionary": SMALL, "beam_size": 3, "max_len_b": 7, "first": 3}
    settings |= {"prefix_allowed_tokens_fn": allowed, "search_strategy": search}
    for hypotheses in run(bigrams(2), [0], [0, 0, 0], **settings):
        for tokens in tokens_of(hypotheses):
            prompt = tokens.count(0)
            for place, token in enumerate(tokens[prompt:-1], start=prompt + 1):
                assert token in ([4, 5] if place % 2 else [5, EOS])
    assert {number for number, _ in calls} == {3, 4}
    assert all(tokens[0] == EOS and tokens.count(0) in (1, 3) for _, tokens in calls)
    with pytest.raises(ConfigError, match="sentence 3: no token is left"):
        run(bigrams(), [4], **{**settings, "prefix_allowed_tokens_fn": lambda *_: []})


# -- sampling --------------------------------------------------------------------------------------


def test_samples_follow_the_model() -> None:
    """Pearson's statistic of 3,000 first tokens against the model's probabilities."""
    model, beam = bigrams(4), 3000
    search = Sampling(SMALL, seed=1)
    (found,) = run(
        model, [4], dictionary=SMALL, beam_size=beam, max_len_b=2, search_strategy=search
    )
    p_V = model.decoder.logits_VV.detach()[4].softmax(-1)
    p_V[PAD] = 0  # never written, so the others share the rest
    p_V /= p_V.sum()
    counts_V = torch.bincount(torch.tensor([t[1] for t in tokens_of(found)]), minlength=len(SMALL))
    likely = p_V > 0
    statistic = ((counts_V - beam * p_V)[likely] ** 2 / (beam * p_V[likely])).sum()
    assert counts_V[PAD] == 0
    assert statistic < 18.5  # exceeded once in 1,000 with 4 degrees of freedom
    log_p_V = model.decoder.logits_VV.detach()[4].log_softmax(-1)
    for hypothesis in found[:20]:  # scores are the model's own
        token = hypothesis["tokens"][1]
        assert float(hypothesis["positional_scores"][1]) == pytest.approx(float(log_p_V[token]))


def test_a_seed_makes_samples_repeatable() -> None:
    model = tiny_lm()

    def sampled(seed: int | None) -> list[list[int]]:
        search = Sampling(DICTIONARY, seed=seed)
        return tokens_of(run(model, [5], beam_size=4, max_len_b=9, search_strategy=search)[0])

    assert sampled(1) == sampled(1) != sampled(2)
    torch.manual_seed(3)
    first, second = sampled(None), sampled(None)
    torch.manual_seed(3)
    assert sampled(None) == first != second


# -- refusals --------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    model = bigrams()
    for settings in ({"beam_size": 0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match="must be positive"):
            SequenceGenerator([model], SMALL, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="min_len 9 is more than max_len 5"):
        run(model, [], dictionary=SMALL, min_len=9, max_len_b=5)
    with pytest.raises(UnsupportedError):
        SequenceGenerator([model], SMALL, match_source_len=True)
    with pytest.raises(ConfigError, match="Linear cannot generate"):
        SequenceGenerator([nn.Linear(2, 2)], SMALL)
    with torch.no_grad():
        model.decoder.logits_VV.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not a number"):
        run(model, [], dictionary=SMALL)


def test_no_sentence_is_no_problem() -> None:
    sample = {"net_input": {"src_tokens": torch.zeros(0, 3, dtype=torch.int64)}}
    assert SequenceGenerator([bigrams()], SMALL).generate([], sample) == []


def test_settings_become_a_generator() -> None:
    model = bigrams()
    generator = build_generator(SMALL, [model], Namespace(beam=7, lenpen=0.5, unnormalized=True))
    assert (generator.beam_size, generator.len_penalty) == (7, 0.5)
    assert not generator.normalize_scores and isinstance(generator.search, BeamSearch)
    args = Namespace(sampling=True, sampling_topk=3, seed=4)
    search = build_generator(SMALL, [model], args).search
    assert (search.sampling_topk, search.seed) == (3, 4)
    scorer = build_generator(SMALL, [model], Namespace(score_reference=True))
    assert isinstance(scorer, SequenceScorer)
    with pytest.raises(ConfigError, match="need --sampling"):
        build_generator(SMALL, [model], Namespace(sampling_topp=0.5))
