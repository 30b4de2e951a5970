"""``from_pretrained`` of language models: the original's scores, and text in, text out."""

from __future__ import annotations

import functools
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.errors import ConfigError, DataError, UnsupportedError
from fairseq.hub import load as hub_utils
from fairseq.hub.language_model import GeneratorHubInterface
from fairseq.models.transformer_lm import TransformerLanguageModel

UNK = "<unk>"


@functools.cache
def load(shared: Path) -> GeneratorHubInterface:
    folder, gpt2 = shared / "compat" / "checkpoints", shared / "data" / "gpt2_bpe"
    return TransformerLanguageModel.from_pretrained(
        str(folder / "fb_lm"),
        "model.pt",
        str(folder / "data-bin"),
        gpt2_encoder_json=str(gpt2 / "encoder.json"),
        gpt2_vocab_bpe=str(gpt2 / "vocab.bpe"),
    )


@pytest.fixture
def lm(shared: Path) -> GeneratorHubInterface:
    return load(shared)


def encoder_of(shared: Path) -> Any:
    gpt2 = shared / "data" / "gpt2_bpe"
    return hub_utils.BPEHubInterface(
        "gpt2",
        gpt2_encoder_json=str(gpt2 / "encoder.json"),
        gpt2_vocab_bpe=str(gpt2 / "vocab.bpe"),
    )


@pytest.fixture
def golden(shared: Path) -> dict[str, Any]:
    path = shared / "compat" / "checkpoints" / "fb_lm" / "score.json"
    return json.loads(path.read_text())


def test_the_original_s_scores(lm: GeneratorHubInterface, golden: dict[str, Any]) -> None:
    assert lm.encode(golden["text"]).tolist() == golden["encode"]
    assert lm.encode("\ufeff" + golden["text"]).tolist() == golden["encode"]
    found = lm.score(golden["text"])
    assert found["tokens"].tolist() == golden["tokens"]
    assert float(found["score"]) == pytest.approx(golden["score"], abs=1e-5)
    expected = torch.tensor(golden["positional_scores"])
    torch.testing.assert_close(found["positional_scores"], expected, atol=1e-5, rtol=0)


def test_the_original_s_continuation(lm: GeneratorHubInterface, golden: dict[str, Any]) -> None:
    assert lm.sample("We the people", beam=1, max_len_b=8) == golden["generate_beam1"]


def test_the_end_of_a_prompt_is_left_out(lm: GeneratorHubInterface) -> None:
    open_ids = lm.encode("We the people")
    assert int(open_ids[-1]) == lm.task.source_dictionary.eos()
    found = [lm.generate(ids, beam=1, max_len_b=8)[0] for ids in (open_ids, open_ids[:-1])]
    assert found[0]["tokens"].tolist() == found[1]["tokens"].tolist()
    assert len(found[0]["tokens"]) > len(open_ids)


def test_several_texts_keep_their_order(lm: GeneratorHubInterface, golden: dict[str, Any]) -> None:
    texts = ["We the people of the United States", golden["text"], "I", ""]
    found = lm.score(texts)
    assert found[1]["tokens"].tolist() == golden["tokens"]
    for text, hypothesis in zip(texts, found, strict=True):
        alone = lm.score(text)
        torch.testing.assert_close(hypothesis["positional_scores"], alone["positional_scores"])
        assert hypothesis["tokens"].tolist() == lm.encode(text)[:-1].tolist()
    assert lm.sample(texts, max_len_b=12) == [lm.sample(text, max_len_b=12) for text in texts]


def test_lines_can_be_sentences(lm: GeneratorHubInterface) -> None:
    found = lm.score("We the people\nWe the people", replace_newline_with_eos=True)
    one = lm.encode("We the people").tolist()
    assert found["tokens"].tolist() == one + one[:-1]
    assert math.exp(-float(found["score"])) == pytest.approx(
        math.exp(-float(found["positional_scores"].mean())), rel=1e-5
    )


def test_generation(lm: GeneratorHubInterface) -> None:
    prompt = lm.encode("We the people")
    found = lm.generate(prompt, beam=3, max_len_b=8, unkpen=100)
    assert len(found) == 3
    assert all(UNK not in lm.decode(one["tokens"])[len("We the people") :] for one in found)
    assert [float(one["score"]) for one in found] == sorted(
        (float(one["score"]) for one in found), reverse=True
    )
    assert set(found[0]) == {"tokens", "score", "attention", "alignment", "positional_scores"}
    (batch,) = lm.generate([prompt], beam=3, max_len_b=8, unkpen=100)
    assert [one["tokens"].tolist() for one in batch] == [one["tokens"].tolist() for one in found]


def test_samples(lm: GeneratorHubInterface) -> None:
    settings: dict[str, Any] = {"sampling": True, "sampling_topp": 0.9, "max_len_b": 12}
    first, second = (lm.sample("I", seed=4, **settings) for _ in range(2))
    assert first == second != lm.sample("I", seed=5, **settings)
    torch.manual_seed(0)
    free = {lm.sample("I", **settings) for _ in range(3)}
    assert len(free) > 1
    torch.manual_seed(0)
    assert lm.sample("I", **settings) in free


def test_allowed_tokens(lm: GeneratorHubInterface) -> None:
    prompt, word = lm.encode("We the people"), int(lm.encode(" the")[0])
    (best, *_) = lm.generate(
        prompt, beam=1, max_len_b=6, prefix_allowed_tokens_fn=lambda number, tokens: [word]
    )
    assert best["tokens"].tolist() == [*prompt[:-1].tolist(), word, word, word, 2]


def test_text_and_back(lm: GeneratorHubInterface) -> None:
    text = "the state of our Union"
    pieces = lm.apply_bpe(lm.tokenize(text))
    assert lm.detokenize(lm.remove_bpe(pieces)) == text
    assert lm.binarize(pieces).tolist() == lm.encode(text).tolist()
    assert lm.decode(lm.encode(text)) == text
    assert lm.string(lm.encode(text)) == pieces
    assert lm.translate("I", beam=1, max_len_b=5) == lm.sample("I", beam=1, max_len_b=5)


def test_what_is_logged(lm: GeneratorHubInterface, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        lm.sample("We the people", verbose=True, max_len_b=8)
    lines = [line for line in caplog.messages if line[:2] in ("S\t", "H\t", "P\t")]
    assert [line[0] for line in lines] == ["S", "H", "P"]
    assert lines[1].endswith("We the people" + UNK * 5)


def test_too_long_a_prompt(lm: GeneratorHubInterface) -> None:
    tokens = [torch.full((3000,), 5), torch.tensor([5, 6])]
    with pytest.raises(DataError, match="Size of sample #0"):
        lm.generate(tokens, beam=1)
    (found,) = lm.generate(tokens, beam=1, skip_invalid_size_inputs=True, max_len_b=4)
    assert found[0]["tokens"].tolist()[:2] == [5, 6]
    assert lm.generate(tokens[:1], beam=1, skip_invalid_size_inputs=True) == []
    assert lm.generate(tokens[0], beam=1, skip_invalid_size_inputs=True) == []
    text = " ".join(["We"] * 3000)
    assert lm.sample(text, skip_invalid_size_inputs=True) is None
    assert lm.score(text, skip_invalid_size_inputs=True) is None


def test_settings_are_checked(lm: GeneratorHubInterface) -> None:
    with pytest.raises(ConfigError, match="'samplig'.*did you mean 'sampling'"):
        lm.sample("I", samplig=True)
    with pytest.raises(UnsupportedError, match="diverse-beam-groups"):
        lm.sample("I", diverse_beam_groups=3)
    with pytest.raises(DataError, match="no token"):
        lm.generate([torch.tensor([], dtype=torch.int64)])
    assert lm.generate([]) == []


@pytest.mark.parametrize("wrong", [None, 5, [["We"]], ["We", None], b"We"])
def test_what_is_no_text_is_refused(lm: GeneratorHubInterface, shared: Path, wrong: Any) -> None:
    steps = (lm.tokenize, lm.detokenize, lm.apply_bpe, lm.remove_bpe, lm.binarize)
    words = hub_utils.TokenizerHubInterface("space")
    pieces = encoder_of(shared)
    coding = (words.encode, words.decode, pieces.encode, pieces.decode)
    for method in (lm.encode, lm.sample, lm.score, *steps, *coding):
        with pytest.raises(DataError, match="a text is a str, not "):
            method(wrong)
    for method in (lm.generate, lm.string, lm.decode):
        with pytest.raises(DataError, match="token ids are an integer tensor"):
            method(wrong)


@pytest.mark.parametrize("wrong", ["We", "55", 5.0, [5.0, 6.0], torch.tensor([5.0])])
def test_what_are_no_ids_is_not_decoded(lm: GeneratorHubInterface, wrong: Any) -> None:
    with pytest.raises(DataError, match="token ids are an integer tensor"):
        lm.decode(wrong)


def test_ids_may_come_in_other_shapes(lm: GeneratorHubInterface) -> None:
    text = lm.decode(torch.tensor([5, 6]))
    for ids in ([5, 6], (5, 6), np.array([5, 6]), list(torch.tensor([5, 6]))):
        assert lm.decode(ids) == text  # type: ignore[arg-type]
    assert lm.string(torch.tensor([[5, 6], [5, 6]])) == "\n".join(
        [lm.string(torch.tensor([5, 6]))] * 2
    )


def test_an_empty_text_has_no_score(lm: GeneratorHubInterface) -> None:
    """A mean of nothing: 0 would be that of a text that is certain, the best there is."""
    empty, text = lm.score(["", "We"])
    assert math.isnan(empty["score"]) and not math.isnan(text["score"])
    assert not len(empty["positional_scores"])


def test_a_model_in_training_stays_so(lm: GeneratorHubInterface) -> None:
    """Texts are scored without dropout, and the next step of a fine-tuning has it again."""
    before = lm.score("We the people")["score"]
    lm.train()
    try:
        assert lm.score("We the people")["score"].equal(before)
        assert lm.sample("We", max_len_b=2) and all(part.training for part in lm.modules())
    finally:
        lm.eval()


def test_none_leaves_a_setting_as_it_is(lm: GeneratorHubInterface) -> None:
    assert lm.sample("We", max_len_b=2) == lm.sample("We", max_len_b=2, lenpen=None, min_len=None)
    with pytest.raises(ConfigError, match="a whole number, not 'x'"):
        lm.sample("We", sampling=True, seed="x")
    with pytest.raises(ConfigError, match="no setting of the generation is called 'topk'"):
        lm.sample("We", topk=None)


def test_it_is_a_module(lm: GeneratorHubInterface) -> None:
    assert not lm.training and not lm.models[0].training
    assert lm.device == torch.device("cpu")
    assert lm.max_positions == 64
    assert hub_utils.GeneratorHubInterface is GeneratorHubInterface


def test_encoders_by_name(shared: Path) -> None:
    bpe = encoder_of(shared)
    assert bpe.encode("Hello world") == "15496 995"
    assert bpe.decode("15496 995") == "Hello world"


def test_torch_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    monkeypatch.delitem(sys.modules, "hubconf", raising=False)
    hubconf = importlib.import_module("hubconf")
    tokenizer = hubconf.tokenizer("space")
    assert tokenizer.encode("a  b") == "a b"
    assert isinstance(tokenizer, hub_utils.TokenizerHubInterface)
    for name in ("roberta.base", "xlmr.large", "camembert", "gottbert-base"):
        assert name in getattr(hubconf, name).func.__self__.hub_models()
    entry = getattr(hubconf, "transformer_lm.wmt19.en")
    assert entry.func.__self__ is TransformerLanguageModel
