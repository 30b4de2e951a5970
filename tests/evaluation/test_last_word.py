"""Last words and continuations: against one forward pass per token, batches, truncation, files.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.evaluation import continuations as last_word_module
from fairseq.evaluation.continuations import (
    describe,
    evaluate_last_words,
    last_word,
    last_word_pair,
    load,
    read_texts,
    score_continuations,
)
from fairseq.hub.load import load_model_ensemble_and_task
from fairseq.models.roberta.model import RobertaConfig, RobertaModel
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq_cli.flags import add_last_word_flags

LETTERS = "abcdefghijklmnop"
TEXTS = ["ab cd efg", "a  b\nhij", "one", "p o n m l k j i h gfe ", "abcdef a", "b\tb", "ka zz"]
DECODERS: dict[str, dict[str, Any]] = {
    "learned": {"position": "learned"},
    "alibi": {"position": "alibi"},
    "rotary": {"position": "rotary"},
    "adaptive": {"adaptive_softmax_cutoff": "6,12", "adaptive_softmax_factor": 2.0},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "learned": {},
    "zero-clap": {"position": "alibi", "head": "clap", "mask_embedding": "zero"},
}


class Spelling:
    """Pieces are letters, with a mark on the one after a space: like subwords of a real encoder."""

    def encode(self, x: str) -> str:
        return " ".join(x).replace("   ", " _")

    def decode(self, x: str) -> str:
        return x.replace(" ", "").replace("_", " ")


def dictionary() -> Dictionary:
    words = Dictionary()
    for letter in LETTERS:
        words.add_symbol(letter)
        words.add_symbol(f"_{letter}")
    return words


def decoder(seed: int = 0, length: int = 24, **settings: Any) -> tuple[Any, LanguageModelingTask]:
    torch.manual_seed(seed)
    task = LanguageModelingTask(LanguageModelingConfig(tokens_per_sample=length), dictionary())
    sizes = {
        f"decoder_{name}": value
        for name, value in {
            "layers": 2, "embed_dim": 8, "input_dim": 8, "output_dim": 8, "ffn_embed_dim": 12,
            "attention_heads": 2,
        }.items()
    }  # fmt: skip
    config = TransformerLanguageModelConfig(
        **sizes, tokens_per_sample=length, max_target_positions=None, **settings
    )
    model = TransformerLanguageModel.build_model(config, task).eval()
    sharpen(model)
    return model, task


def encoder(seed: int = 0, length: int = 24, **settings: Any) -> tuple[Any, MaskedLMTask]:
    torch.manual_seed(seed)
    omit = settings.get("mask_embedding") == "zero"
    cfg = MaskedLMConfig(tokens_per_sample=length, omit_mask=omit)
    task = MaskedLMTask(cfg, dictionary())
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 12}
    config = RobertaConfig(**sizes, encoder_attention_heads=2, max_positions=length, **settings)
    model = RobertaModel.build_model(config, task).eval()
    sharpen(model)
    return model, task


def sharpen(model: torch.nn.Module) -> None:
    """Give random weights opinions: fresh ones find everything about equally likely."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def naive_causal(model: Any, task: Any, pieces: list[str], count: int) -> tuple[float, bool]:
    """Ask for the last ``count`` pieces, one forward pass for each."""
    words = task.source_dictionary
    ids = [words.eos(), *map(words.index, pieces)]
    total, right = 0.0, True
    for place in range(len(ids) - count, len(ids)):
        output = model(torch.tensor([ids[:place]]))
        log_p_V = model.get_normalized_probs(output, log_probs=True)[0, -1]
        total += float(log_p_V[ids[place]])
        right &= int(log_p_V.argmax()) == ids[place]
    return total, right


def naive_masked(
    model: Any, task: Any, pieces: list[str], count: int, rest: bool
) -> tuple[float, bool]:
    words = task.source_dictionary
    ids = [words.bos(), *map(words.index, pieces), words.eos()]
    total, right = 0.0, True
    end = len(ids) - 1
    for place in range(end - count, end):
        masked = list(ids)
        for hidden in range(place, end) if rest else [place]:
            masked[hidden] = task.mask_idx
        log_p_V = model(torch.tensor([masked]))[0][0, place].log_softmax(-1)
        total += float(log_p_V[ids[place]])
        right &= int(log_p_V.argmax()) == ids[place]
    return total, right


def check(model: Any, task: Any, naive: Any, **kwargs: Any) -> None:
    pairs = [(text.split(), len(text.split()[-1])) for text in TEXTS if len(text.split()) > 1]
    with torch.no_grad():
        expected = [
            naive(model, task, Spelling().encode(" ".join(words)).split(), count, **kwargs)
            for words, count in pairs
        ]
    for batch_size in (1, 3, 64):
        found = last_word([model], task, Spelling(), TEXTS, batch_size)
        nats = -sum(total for total, _ in expected) / len(expected)
        assert math.isclose(found["perplexity"], math.exp(nats), rel_tol=1e-5)
        known = [right and words[-1] != "zz" for (words, _), (_, right) in zip(pairs, expected)]  # noqa: B905
        assert found["accuracy"] == sum(known) / len(pairs)
        counts = {"texts": 6, "tokens": 3 + 3 + 3 + 1 + 1 + 2, "skipped": 1, "unknown": 1}
        assert counts | {"truncated": 0} == {key: found[key] for key in (*counts, "truncated")}


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_token_by_token(kind: str) -> None:
    model, task = decoder(**DECODERS[kind])
    check(model, task, naive_causal)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_from_left_to_right(kind: str) -> None:
    model, task = encoder(**ENCODERS[kind])
    check(model, task, naive_masked, rest=True)


@pytest.mark.parametrize("kind", ENCODERS)
def test_pseudo_log_likelihood_of_a_continuation(kind: str) -> None:
    model, task = encoder(**ENCODERS[kind])
    pieces = "a b _c d e f".split()
    ids = [task.dictionary.index(piece) for piece in pieces]
    (score,) = score_continuations([model], task, [(ids[:2], ids[2:])], masks="each")
    with torch.no_grad():
        total, right = naive_masked(model, task, pieces, 4, rest=False)
    assert math.isclose(score.log_prob, total, rel_tol=1e-5) and score.greedy == right
    assert score.tokens == 4


def test_greedy_is_what_the_model_writes() -> None:
    model, task = decoder(position="rotary")
    context = [2, 5, 9]
    written = list(context)
    for _ in range(6):
        written.append(int(model(torch.tensor([written]))[0][0, -1].argmax()))
    pairs = [(context, written[3:]), (context, [*written[3:-1], (written[-1] + 1) % 36])]
    scores = score_continuations([model], task, pairs)
    assert [score.greedy for score in scores] == [True, False]


def test_an_ensemble_averages_probabilities() -> None:
    models = [decoder(seed, position="alibi")[0] for seed in (0, 1)]
    task = decoder()[1]
    pairs = [([2, 4, 7], [9]), ([2, 4], [6])]
    alone = [[score.log_prob for score in score_continuations([m], task, pairs)] for m in models]
    both = [score.log_prob for score in score_continuations(models, task, pairs)]
    expected = [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in zip(*alone, strict=True)]
    assert both == pytest.approx(expected, rel=1e-5)


def test_small_chunks_of_probabilities_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = decoder()
    before = last_word([model], task, Spelling(), TEXTS)
    monkeypatch.setattr(last_word_module, "CHUNK_ELEMENTS", 80)
    assert last_word([model], task, Spelling(), TEXTS) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("make, special", [(decoder, 0), (encoder, 2)])
def test_long_contexts_lose_their_beginning(make: Any, special: int) -> None:
    model, task = make(length=8)
    words = "a b c d e f g h i j kl".split()
    found = last_word([model], task, Spelling(), [" ".join(words), "a bc"])
    assert (found["truncated"], found["texts"]) == (1, 2)
    pair = last_word_pair(" ".join(words), Spelling(), task)
    assert pair is not None
    context, last = pair
    # a decoder reads all but the last token of both, in eight positions
    room = 8 - special - len(last) + (special == 0)
    full, cut = score_continuations([model], task, [pair, (context[-room:], last)], masks="rest")
    assert full.truncated and not cut.truncated and full.log_prob == cut.log_prob
    with pytest.raises(DataError, match="text 2: .* 9 tokens, more than the 8 positions"):
        score_continuations([model], task, [pair, ([2], [5] * 9)])


def test_words_whose_pieces_join_with_the_context_are_encoded_apart() -> None:
    class Joining:
        def encode(self, x: str) -> str:
            return "ab" if x == "a b" else " ".join(x.split())

    task = decoder()[1]
    task.dictionary.add_symbol("ab")
    index = task.dictionary.index
    assert last_word_pair("a b", Joining(), task) == ([index("a")], [index("b")])
    assert last_word_pair(" a\n c  b\t", Joining(), task) == (
        [index("a"), index("c")],
        [index("b")],
    )
    assert last_word_pair("a b", None, task) == ([index("a")], [index("b")])
    assert last_word_pair(" a ", None, task) is None


def test_what_cannot_be_scored() -> None:
    model, task = decoder()
    with pytest.raises(DataError, match="1 texts of less than two words"):
        last_word([model], task, Spelling(), ["word"])
    with pytest.raises(ConfigError, match="Linear is neither a causal nor a masked"):
        last_word([torch.nn.Linear(1, 1)], task, Spelling(), ["two words"])
    (empty,) = score_continuations([model], task, [([2], [])])
    assert (empty.log_prob, empty.greedy, empty.tokens) == (0.0, True, 0)


# -- checkpoints and files -------------------------------------------------------------------------


TRAIN = (
    "--optimizer adam --lr 0.01 --batch-size 8 --max-update 80 --cpu --num-workers 0 "
    "--log-format none --no-epoch-checkpoints --tokens-per-sample 16 --sample-break-mode eos "
    "--disable-validation --bpe byte_level"
).split()
KINDS = {
    "language_modeling": "--task language_modeling --criterion cross_entropy --arch transformer_lm "
    "--decoder-layers 1 --decoder-embed-dim 32 --decoder-ffn-embed-dim 64 "
    "--decoder-attention-heads 2 --share-decoder-input-output-embed",
    "masked_lm": "--task masked_lm --criterion masked_lm --arch roberta --encoder-layers 1 "
    "--encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 2 "
    "--max-update 9",
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has learned which animal comes after which."""
    pytest.importorskip("tokenizers")
    from fairseq_cli import bpe, preprocess, train

    folder = tmp_path_factory.mktemp(request.param)
    animals = "cat dog hen cow pig".split()
    lines = [f"now {animals[i % 5]} {animals[(i + 1) % 5]}\n" for i in range(20)]
    (folder / "text").write_text("".join(lines))
    tokenizer, text, pieces = (str(folder / n) for n in ("tokenizer.json", "text", "pieces"))
    bpe.main(["train", "--inputs", text, "--vocab-size", "300", "--output", tokenizer])
    use = ["--bpe", "byte_level", "--tokenizer-file", tokenizer, "--workers", "1"]
    bpe.main(["encode", *use, "--inputs", text, "--outputs", pieces])
    data = str(folder / "bin")
    preprocess.run(["--only-source", "--trainpref", pieces, "--destdir", data])
    save = ["--save-dir", str(folder), "--byte-level-tokenizer", tokenizer]
    assert train.run([data, *save, *TRAIN, *KINDS[request.param].split()]) == 0
    return folder


def test_a_trained_model_knows_the_last_word(trained: Path) -> None:
    texts = trained / "texts.jsonl"
    lines = ["now cat dog", "now cow pig", "now hen cow"]
    wrong = ["now cat pig"]
    texts.write_text("".join(json.dumps({"t": {"x": line}}) + "\n" for line in lines + wrong))
    given = {
        "path": str(trained / "checkpoint_last.pt"), "data": str(trained / "bin"), "cpu": True,
        "log_format": "none", "batch_size": 2,
    }  # fmt: skip
    found = evaluate_last_words(given, str(texts), "t.x")
    overrides = {"data": given["data"]}
    (model,), _, task = load_model_ensemble_and_task([given["path"]], overrides)
    bpe, total, right = task.build_bpe(load(given)[1].bpe), 0.0, 0
    for line in lines + wrong:
        pieces = bpe.encode(line).split()
        count = len(bpe.encode(line[7:]).split())
        naive = naive_causal if hasattr(model, "decoder") else partial(naive_masked, rest=True)
        with torch.no_grad():
            log_p, greedy = naive(model.eval(), task, pieces, count)
        total, right = total - log_p, right + greedy
    assert math.isclose(found["perplexity"], math.exp(total / 4), rel_tol=1e-5)
    assert (found["accuracy"], found["texts"], found["truncated"]) == (right / 4, 4, 0)
    assert describe(found).startswith(f"last word: accuracy {right / 4:.2%}, perplexity ")
    if hasattr(model, "decoder"):  # masked LMs learn slowly
        texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        found = evaluate_last_words(given, str(texts))
        assert found["accuracy"] == 1 and found["perplexity"] < 1.5 and right == 3
    with pytest.raises(ConfigError, match="--path is missing"):
        evaluate_last_words({}, str(texts))


def test_the_flags() -> None:
    parser = add_last_word_flags(argparse.ArgumentParser())
    args = parser.parse_args(["--last-word", "x.jsonl", "--text-key", "a.b"])
    assert (args.last_word, args.text_key) == ("x.jsonl", "a.b")
    assert vars(parser.parse_args([])) == {
        "last_word": None,
        "text_key": "text",
        "minimal_pairs": None,
    }


def test_texts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b"}\n\n{"text": "c"}\n')
    assert list(read_texts(str(path))) == ["a b", "c"]
    path.write_text('{"text": "a b"}\n\n{"x": 1}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 3: no text") as caught:
        list(read_texts(str(path)))
    assert "--skip-bad-records" not in str(caught.value)  # the command has no such flag
    (tmp_path / "a.txt").write_text("a b\n")
    with pytest.raises(DataError, match=r"a.txt, line 1: not JSON .* give --last-word a .jsonl"):
        list(read_texts(str(tmp_path / "a.txt")))
