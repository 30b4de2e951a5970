"""RobertaHubInterface: what users type, against the originals' answers."""

from __future__ import annotations

import copy
import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compat_checkpoints import DETERMINISTIC, load, load_classifier

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import MMapIndexedDataset
from fairseq.errors import CheckpointError, ConfigError, DataError
from fairseq.models.roberta import RobertaConfig, RobertaHubInterface, RobertaModel
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq.utils import model_eval


def golden(shared: Path, name: str) -> dict[str, Any]:
    path = shared / "compat" / "checkpoints" / name / "fill_mask.json"
    return json.loads(path.read_text("utf-8"))


# -- the originals' answers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_fill_mask_equals_the_original(shared: Path, name: str) -> None:
    hub, rows = load(shared, name), golden(shared, name)["fill_mask"]
    assert rows
    for row in rows:
        ours, theirs = hub.fill_mask(row["input"], topk=5), row["topk5"]
        assert [(text, token) for text, _, token in ours] == [(t, p) for t, _, p in theirs]
        assert [p for _, p, _ in ours] == pytest.approx([p for _, p, _ in theirs], abs=1e-4)


@pytest.mark.parametrize("name", [*DETERMINISTIC, "zero_clap_self_masking", "fb_sentpred"])
def test_encode_and_decode_equal_the_original(shared: Path, name: str) -> None:
    hub = load_classifier(shared) if name == "fb_sentpred" else load(shared, name)
    expected = golden(shared, name)
    for text, ids in expected["encode"].items():
        tokens_T = hub.encode(text)
        assert tokens_T.dtype == torch.int64 and tokens_T.tolist() == ids
        assert hub.encode("\ufeff" + text).tolist() == ids
    pair_T = hub.encode("Hello world!", "The state of the Union.")
    assert pair_T.tolist() == expected["encode_pair"]
    assert hub.decode(hub.encode("The state of the Union is strong.")) == expected["decode"]


def test_the_self_masking_model_sees_its_input(shared: Path) -> None:
    """The original draws a mask in every forward pass, and fails on the unused symbols it finds."""
    hub = load(shared, "zero_clap_self_masking")
    for row in golden(shared, "zero_clap_self_masking")["fill_mask"]:
        answers = hub.fill_mask(row["input"])
        assert answers == hub.fill_mask(row["input"])
        assert len(answers) == 5 and not any("madeupword" in token for _, _, token in answers)


def test_predict_equals_the_original(shared: Path) -> None:
    hub = load_classifier(shared)
    folder = shared / "compat" / "checkpoints"
    expected = np.load(folder / "fb_sentpred" / "golden.npz")["predict_logprobs_first50_valid"]
    sentences = MMapIndexedDataset(str(folder / "sentpred-bin" / "input0" / "valid"))
    with torch.no_grad():
        for i in range(50):
            tokens_T = torch.cat([torch.tensor([0]), sentences[i].long()])
            log_p = hub.predict("cls2", tokens_T)
            np.testing.assert_allclose(log_p[0], expected[i], atol=1e-4)
            logits = hub.predict("cls2", tokens_T[None], return_logits=True)
            torch.testing.assert_close(logits.log_softmax(-1), log_p)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_features_equal_the_original(shared: Path, name: str) -> None:
    hub = load(shared, name)
    arrays = np.load(shared / "compat" / "checkpoints" / name / "golden.npz")
    tokens_T = torch.from_numpy(arrays["tokens"])[0]
    assert not (tokens_T == 1).any()
    with torch.no_grad():
        features_BTC = hub.extract_features(tokens_T)
        assert isinstance(features_BTC, torch.Tensor)
        np.testing.assert_allclose(features_BTC[0], arrays["features"][0], atol=1e-5)
        every = hub.extract_features(tokens_T[None], return_all_hiddens=True)
    assert len(every) == 3 and every[-1].equal(features_BTC)
    for i, layer_BTC in enumerate(every):
        np.testing.assert_allclose(layer_BTC[0], arrays[f"inner{i}_TBC"][:, 0], atol=1e-5)


# -- a model of words, without any text encoder ----------------------------------------------------

WORDS = ["the", "cat", "sat", "on", "mat", "madeupword0000", "madeupword0001"]


@pytest.fixture(params=["learned", "zero"])
def words(request: pytest.FixtureRequest) -> RobertaHubInterface:
    """A model that splits at blanks; its mask is a row of the table, or lies outside."""
    dictionary = Dictionary()
    for word in WORDS:
        dictionary.add_symbol(word, n=0 if "madeup" in word else 5)
    zero = request.param == "zero"
    task = MaskedLMTask(MaskedLMConfig(tokens_per_sample=12, omit_mask=zero), dictionary)
    torch.manual_seed(0)
    config = RobertaConfig(
        encoder_layers=1, encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2,
        mask_embedding=request.param, head="clap" if zero else "roberta",
    )  # fmt: skip
    model = RobertaModel.build_model(config, task)
    return RobertaHubInterface(SimpleNamespace(bpe=None), task, model)


def test_words(words: RobertaHubInterface) -> None:
    assert words.bpe is None
    tokens_T = words.encode("the cat sat <mask> the moon")
    assert tokens_T.tolist() == [0, 4, 5, 6, words.task.mask_idx, 4, 3, 2]
    assert words.decode(tokens_T) == "the cat sat <mask> the <unk>"
    answers = words.fill_mask("the cat <mask> on the mat", topk=100)
    # every symbol that can stand in a text, each with its own probability
    assert {token for _, _, token in answers} == {"<unk>", "the", "cat", "sat", "on", "mat"}
    assert answers[0][0] == f"the cat {answers[0][2]} on the mat"
    probabilities = [p for _, p, _ in answers]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1


def test_pairs(words: RobertaHubInterface) -> None:
    first, second = "the cat", "sat on the mat"
    pair_T = words.encode(first, second)
    assert pair_T.tolist() == [0, 4, 5, 2, 2, 6, 7, 4, 8, 2]
    assert words.decode(pair_T) == [first, second]
    joined_T = words.encode(first, second, no_separator=True)
    assert joined_T.tolist() == [0, 4, 5, 2, 6, 7, 4, 8, 2]
    assert words.decode(words.encode(first, second, first)) == [first, second, first]
    assert words.decode(pair_T[1:4]) == first  # without <s>, too


@pytest.mark.parametrize("text", ["the cat", "<mask> <mask> cat", ""])
def test_fill_mask_wants_exactly_one_mask(words: RobertaHubInterface, text: str) -> None:
    with pytest.raises(AssertionError, match="Please add one <mask> token for the input"):
        words.fill_mask(text)


def test_fill_mask_is_deterministic_and_restores_the_mode(words: RobertaHubInterface) -> None:
    for training in (True, False):
        words.train(training)
        first, second = (words.fill_mask("the <mask> sat") for _ in range(2))
        assert first == second
        assert words.model.training is training
    encoder = words.train().model.encoder.eval()  # frozen by hand
    words.fill_mask("the <mask> sat")
    assert words.model.training and not any(part.training for part in encoder.modules())


def test_too_many_tokens(words: RobertaHubInterface) -> None:
    text = " ".join(["cat"] * 11)
    with pytest.raises(ValueError, match="tokens exceeds maximum length: 13 > 12"):
        words.extract_features(words.encode(text))


def test_heads(words: RobertaHubInterface) -> None:
    words.eval().register_classification_head("topic", num_classes=3, embedding_size=99)
    tokens_BT = torch.stack([words.encode("the cat"), words.encode("sat on")])
    log_p = words.predict("topic", tokens_BT)
    assert log_p.shape == (2, 3)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2))
    assert words.predict("topic", tokens_BT, return_logits=True).log_softmax(-1).allclose(log_p)
    with pytest.raises(ConfigError, match="no classification head 'mnli'.*it has: topic"):
        words.predict("mnli", tokens_BT)


def test_decode_wants_one_sequence(words: RobertaHubInterface) -> None:
    for tokens in (words.encode("the cat")[None], "the cat", [0, 4, 2], None):
        with pytest.raises(DataError, match=r"an integer tensor of shape \(T,\), not "):
            words.decode(tokens)
    assert words.decode(torch.tensor([0, 99, 4, 2])) == "<unk> the"


@pytest.mark.parametrize("text", [["the cat"], None, 5, b"the cat"])
def test_what_is_no_text_is_refused(words: RobertaHubInterface, text: Any) -> None:
    for method in (words.encode, words.encode_masked, words.fill_mask):
        with pytest.raises(DataError, match=f"a text is a str, not {type(text).__name__}"):
            method(text)
    with pytest.raises(DataError, match="a text is a str"):
        words.encode("the cat", text)
    with pytest.raises(DataError, match=r"token ids are an integer tensor"):
        words.predict("topic", text)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([0, 99, 2]), "no token 99: the model knows those from 0 to "),
        (torch.tensor([0, -1, 2]), "no token -1"),
        (torch.tensor([0.0, 5.0, 2.0]), "not torch.float32 of shape"),
        (torch.zeros(2, 2, 2, dtype=torch.int64), r"\(T,\) or \(B, T\), not torch.int64"),
        ([0, 5, 2], "not list: encode"),
    ],
)
def test_what_are_no_tokens_is_refused(
    words: RobertaHubInterface, tokens: Any, message: str
) -> None:
    """A model with a zero mask took ids behind its table for it."""
    with pytest.raises(DataError, match=message):
        words.extract_features(tokens)


def test_numbers_below_one_are_refused(words: RobertaHubInterface) -> None:
    wrong: Any
    for wrong in (-1, 2.0, "5"):
        with pytest.raises(DataError, match="topk is how many"):
            words.fill_mask("the <mask>", topk=wrong)
    for wrong in (-1, "2"):
        with pytest.raises(ConfigError, match=f"'topic' cannot have {wrong!r} classes"):
            words.register_classification_head("topic", num_classes=wrong)
    with pytest.raises(ConfigError, match="cannot be called 5"):
        words.register_classification_head(5, num_classes=2)  # type: ignore[arg-type]
    assert words.fill_mask("the <mask>", topk=np.int64(1))  # type: ignore[arg-type]


def test_threads_share_a_model_that_is_in_training(words: RobertaHubInterface) -> None:
    """Whoever leaves first must not switch dropout on for those who still compute."""
    inside, left = threading.Event(), threading.Event()
    module = words.train().model

    def second() -> None:
        with model_eval(module):
            inside.set()
            left.wait(10)
            modes.append(module.training)

    modes: list[bool] = []
    thread = threading.Thread(target=second)
    with model_eval(module):
        thread.start()
        assert inside.wait(10)
    left.set()
    thread.join()
    assert modes == [False] and module.training


def test_a_copy_is_independent(words: RobertaHubInterface) -> None:
    twin = copy.deepcopy(words.eval())
    before = twin.fill_mask("the <mask>")
    with torch.no_grad():
        for parameter in words.model.parameters():
            parameter.zero_()
    assert twin.fill_mask("the <mask>") == before != words.fill_mask("the <mask>")
    assert not list(words.state_dict()) or all(k.startswith("model.") for k in words.state_dict())


# -- pieces that carry their blank -----------------------------------------------------------------


class Sentencepieces:
    """Stands in for a text encoder whose pieces begin with U+2581 where a word begins."""

    def encode(self, text: str) -> str:
        return " ".join("\u2581" + word for word in text.split())

    def decode(self, pieces: str) -> str:
        return pieces.replace(" ", "").replace("\u2581", " ").strip()


def test_sentencepiece_tokens_get_their_blank() -> None:
    dictionary = Dictionary()
    for piece in ("\u2581the", "\u2581cat", "s"):
        dictionary.add_symbol(piece)
    task = MaskedLMTask(MaskedLMConfig(tokens_per_sample=12), dictionary)
    config = RobertaConfig(
        encoder_layers=1, encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2
    )
    hub = RobertaHubInterface(
        SimpleNamespace(bpe=None), task, RobertaModel.build_model(config, task)
    )
    hub.bpe = Sentencepieces()
    assert hub.encode("the cat").tolist() == [0, 4, 5, 2]
    answers = {token: text for text, _, token in hub.fill_mask("the <mask>", topk=9)}
    assert answers == {" the": "the the", " cat": "the cat", "s": "thes", "<unk>": "the<unk>"}
    start = {token: text for text, _, token in hub.fill_mask("<mask> cat", topk=9)}
    assert start[" the"] == " the cat"


def test_probabilities_are_over_the_whole_vocabulary(shared: Path) -> None:
    hub = load(shared, "baseline")
    answers = hub.fill_mask("The <mask> of the United States.", topk=10_000)
    dictionary = hub.task.source_dictionary
    left_out = 4 + sum(dictionary.is_filler(i) for i in range(len(dictionary)))  # <s> pad </s> mask
    assert len(answers) == len(dictionary) - left_out
    assert math.fsum(p for _, p, _ in answers) == pytest.approx(1, abs=0.02)
    assert math.fsum(p for _, p, _ in answers) < 1


def test_each_interface_checks_the_kind_of_model(tmp_path: Path) -> None:
    from tiny_run import config, make_corpus, train

    from fairseq.models.transformer_lm import TransformerLanguageModel

    data = make_corpus(tmp_path / "data")
    causal = {"task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm"}
    small = {"decoder_layers": 1, "decoder_embed_dim": 16, "decoder_attention_heads": 2}
    train(config(data, tmp_path / "masked", max_update=1))
    train(config(data, tmp_path / "causal", max_update=1, **causal, **small))
    where = ("checkpoint_last.pt", str(data))
    with pytest.raises(CheckpointError, match="no masked language model.*TransformerLanguage"):
        RobertaModel.from_pretrained(str(tmp_path / "causal"), *where)
    with pytest.raises(CheckpointError, match="no causal language model.*RobertaModel"):
        TransformerLanguageModel.from_pretrained(str(tmp_path / "masked"), *where)
