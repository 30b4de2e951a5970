"""Pseudo-perplexity against a naive computation; losses at several lengths."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fairseq import evaluation
from fairseq.data.storage.dictionary import Dictionary
from fairseq.evaluation import pseudo_perplexity
from fairseq.models.roberta import RobertaModel
from fairseq.utils import exp_of
from fairseq_cli import bpe, preprocess, train, validate

MODEL = (
    "--task masked_lm --criterion masked_lm --arch roberta_tiny --encoder-layers 2 "
    "--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2 "
    "--tokens-per-sample 12 --optimizer adam --lr 0.01 --batch-size 4 --max-update 3 --cpu "
    "--num-workers 0 --log-format none --no-epoch-checkpoints"
).split()
KINDS = {
    "learned": [],
    "alibi": ["--position", "alibi"],
    "zero-clap": ["--position", "alibi", "--head", "clap", "--mask-embedding", "zero"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = "the cat sees a dog near an old house".split()
    lines = [" ".join(words[(i * j) % 9] for j in range(1, 4 + i % 7)) for i in range(60)]
    for name, part in (("train", lines), ("valid", lines[::3])):
        (folder / name).write_text("".join(f"{line}\n" for line in part))
    flags = ["--trainpref", str(folder / "train"), "--validpref", str(folder / "valid")]
    assert preprocess.run(["--only-source", *flags, "--destdir", str(folder / "bin")]) == 0
    return folder / "bin"


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, data: Path) -> Path:
    folder = data / request.param
    assert train.run([str(data), "--save-dir", str(folder), *MODEL, *KINDS[request.param]]) == 0
    return folder / "checkpoint_last.pt"


@pytest.mark.parametrize("at_once", [7, 8192])
def test_pseudo_perplexity_is_the_naive_one(
    checkpoint: Path, data: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_perplexity, "TOKENS_AT_ONCE", at_once)
    given = {"path": str(checkpoint), "data": str(data), "sample_break_mode": "eos"}
    found = pseudo_perplexity.pseudo_perplexity(given, 5)["valid"]
    hub = RobertaModel.from_pretrained(str(checkpoint.parent), checkpoint.name, str(data)).eval()
    lines = (data.parent / "valid").read_text().splitlines()[:5]
    total, count = 0.0, 0
    for line in lines:
        tokens = hub.encode(line)
        for place in range(1, len(tokens) - 1):
            masked = tokens.clone()
            masked[place] = hub._mask()
            with torch.no_grad():
                logits = hub.model(masked[None])[0][0, place]
            total -= logits.log_softmax(-1)[tokens[place]].item()
            count += 1
    assert (found["tokens"], found["blocks"]) == (count, 5)
    assert math.isclose(found["pseudo_ppl"], math.exp(total / count), rel_tol=1e-5)
    assert math.isclose(2 ** found["bits"], found["pseudo_ppl"], rel_tol=1e-9)


def test_lengths(checkpoint: Path, data: Path) -> None:
    given = {"path": str(checkpoint), "data": str(data), "batch_size": 2}
    found = pseudo_perplexity.at_lengths(given, [12, 24])
    direct = evaluation.validate({**given, "tokens_per_sample": 12})["valid"]["loss"]
    assert float(found["12"]["valid"]["loss"]) == float(direct)
    if "learned" in str(checkpoint):
        assert "positions" in found["24"]["refused"]
    else:
        assert float(found["24"]["valid"]["loss"]) > 0


def test_the_command(
    checkpoint: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [str(data), "--path", str(checkpoint)]
    assert validate.run([*words, "--pseudo-ppl", "--pseudo-ppl-blocks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["valid"]
    assert found["blocks"] == 2 and found["pseudo_ppl"] > 1
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    capsys.readouterr()
    assert validate.run([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["valid"]["loss"] > 0 and "INFO" in printed.err
    assert validate.run([*words, "--at-lengths", "6", "12"]) == 0
    last = capsys.readouterr().out.splitlines()
    assert last[-2].startswith("T=6: valid loss") and last[-1].startswith("T=12: valid loss")


def test_words_and_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, pieces, tokenizer = (tmp_path / name for name in ("text", "pieces", "tokenizer.json"))
    lines = ["the café by the sea", "a cat, a dog", "the old dog sees the sea"] * 20
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    flags = ["--inputs", str(text), "--vocab-size", "280", "--output", str(tokenizer)]
    assert bpe.main(["train", *flags]) == 0
    encoder = ["--bpe", "byte_level", "--tokenizer-file", str(tokenizer)]
    assert bpe.main(["encode", *encoder, "--inputs", str(text), "--outputs", str(pieces)]) == 0
    parts = ["--trainpref", str(pieces), "--validpref", str(pieces)]
    data = str(tmp_path / "bin")
    assert preprocess.run(["--only-source", *parts, "--destdir", data]) == 0
    model = [*MODEL, "--tokens-per-sample", "64", "--sample-break-mode", "eos"]
    use = ["--bpe", "byte_level", "--byte-level-tokenizer", str(tokenizer)]
    assert train.run([data, "--save-dir", str(tmp_path), *model, *use]) == 0
    words = [data, "--path", str(tmp_path / "checkpoint_last.pt"), "--pseudo-ppl"]
    words += ["--pseudo-ppl-blocks", "3"]
    capsys.readouterr()
    assert validate.run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["valid"]
    assert found["words"] == sum(len(line.split()) for line in lines[:3])
    assert found["bytes"] == sum(len(line.encode()) for line in lines[:3])
    bits = found["bits"] * found["tokens"]
    assert math.isclose(found["bits_byte"] * found["bytes"], bits)
    assert math.isclose(math.log2(found["pseudo_ppl_word"]) * found["words"], bits)
    # the words of lines that share a block are those of the lines
    blocks = [*words, "--sample-break-mode", "complete", "--tokens-per-sample", "64"]
    assert validate.run([*blocks, "--pseudo-ppl-blocks", "500", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["valid"]
    assert whole["bytes"] == sum(len(line.encode()) for line in lines)
    assert whole["blocks"] < len(lines)
    assert whole["words"] == sum(len(line.split()) for line in lines)
    assert validate.run(words) == 0
    assert f"{found['bits_byte']:.3f} bits a byte" in capsys.readouterr().out
    tokenizer.rename(tmp_path / "moved.json")  # the likelihood does not depend on it
    assert validate.run([*words, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["valid"]
    assert alone == {key: found[key] for key in ("pseudo_ppl", "bits", "tokens", "blocks")}


def test_word_pieces_do_not_tell_words_and_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where spaces were is lost, so that punctuation would count as words."""
    pytest.importorskip("tokenizers")
    text, pieces, vocabulary = (tmp_path / name for name in ("text", "pieces", "vocab.txt"))
    text.write_text("a cat, a dog.\n" * 20)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", ",", "."]
    vocabulary.write_text("\n".join(words))
    encoder = ["--bpe", "wordpiece", "--wordpiece-vocab", str(vocabulary)]
    assert bpe.main(["encode", *encoder, "--inputs", str(text), "--outputs", str(pieces)]) == 0
    parts = ["--trainpref", str(pieces), "--validpref", str(pieces)]
    data = str(tmp_path / "bin")
    assert preprocess.run(["--only-source", *parts, "--destdir", data]) == 0
    model = [*MODEL, "--tokens-per-sample", "64", "--sample-break-mode", "eos"]
    assert train.run([data, "--save-dir", str(tmp_path), *model, *encoder]) == 0
    path = str(tmp_path / "checkpoint_last.pt")
    found = pseudo_perplexity.pseudo_perplexity({"data": data, "path": path}, 3)["valid"]
    assert set(found) == {"pseudo_ppl", "bits", "tokens", "blocks"}
    assert "--bpe wordpiece do not say where spaces were" in caplog.text


def test_a_text_that_is_one_word_has_no_finite_figure_a_word() -> None:
    dictionary = Dictionary()
    for word in ("a", "b", "c"):
        dictionary.add_symbol(word)
    lines = pseudo_perplexity._lines(
        torch.tensor([0, 4, 5, 2, 6, 2, 4]), dictionary, SimpleNamespace(decode=str)
    )
    assert [line.split() for line in lines] == [["a", "b"], ["c"], ["a"]]
    assert exp_of(900.0) == math.inf
    assert exp_of(2.0) == math.exp(2.0)
