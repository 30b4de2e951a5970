"""A byte-order mark at the head of a text is no part of it: every door drops it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from fairseq.config.yaml import read_yaml
from fairseq.data.encoders.byte_level import ByteLevelBPE, ByteLevelBPEConfig
from fairseq.data.encoders.gpt2_bpe import read_merges
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import make_dataset
from fairseq.errors import ConfigError, DataError
from fairseq.hub.continue_text import _decoded, _unmarked
from fairseq.pcfg.source import load_source, read_sentences
from fairseq.preprocess import preprocess
from fairseq.preprocess.encode import encode_files, train_byte_level
from tests.preprocess.test_preprocess import config

MARK = "\ufeff"
TEXT = "the cat\nthe dog\n"


@pytest.fixture
def both(tmp_path: Path) -> tuple[str, str]:
    """Write one text without the mark and with it; return their names."""
    names = tmp_path / "plain.txt", tmp_path / "marked.txt"
    for name, head in zip(names, ("", MARK), strict=True):
        name.write_text(head + TEXT, encoding="utf-8")
    return str(names[0]), str(names[1])


@pytest.fixture
def encoder(tmp_path: Path, both: tuple[str, str]) -> ByteLevelBPE:
    train_byte_level([both[1]], 300, tmp_path / "tokenizer.json")
    assert MARK not in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    return ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(tmp_path / "tokenizer.json")))


def test_training_and_encoding(
    tmp_path: Path, both: tuple[str, str], encoder: ByteLevelBPE
) -> None:
    train_byte_level([both[0]], 300, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    outputs = [str(tmp_path / "a"), str(tmp_path / "b")]
    encode_files(encoder, list(both), outputs, keep_empty=True)
    assert Path(outputs[0]).read_bytes() == Path(outputs[1]).read_bytes()


def test_preprocessing_and_raw_text(tmp_path: Path, both: tuple[str, str]) -> None:
    for name in both:
        preprocess(config(tmp_path / f"{Path(name).stem}-bin", trainpref=name))
    for file in ("dict.txt", "train.bin", "train.idx"):
        plain, marked = tmp_path / "plain-bin" / file, tmp_path / "marked-bin" / file
        assert plain.read_bytes() == marked.read_bytes()
    dictionary = Dictionary.load(str(tmp_path / "plain-bin/dict.txt"))
    raw = make_dataset(both[1], "raw", dictionary=dictionary)
    assert raw is not None and dictionary.unk() not in raw[0].tolist()


def test_dictionaries_and_their_first_symbol(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text(f"{MARK}the 2\ncat 1\n", encoding="utf-8")
    assert "the" in Dictionary.load(str(tmp_path / "dict.txt"))
    assert "the" in Dictionary.load(io.StringIO(f"{MARK}the 2\n"))
    odd = Dictionary()
    odd.add_symbol(f"{MARK}the")  # as an older dictionary may hold it
    odd.save(str(tmp_path / "odd.txt"))
    assert Dictionary.load(str(tmp_path / "odd.txt")) == odd


def test_prompts_recipes_and_merges(tmp_path: Path) -> None:
    prompts = f"{MARK}the cat\n{MARK}kept\n"
    assert [*_unmarked(io.StringIO(prompts))] == ["the cat\n", f"{MARK}kept\n"]
    assert [*_unmarked(_decoded(io.BytesIO(prompts.encode()), "x"))][0] == "the cat\n"
    (tmp_path / "a.yaml").write_text(f"{MARK}common:\n  seed: 3\n", encoding="utf-8")
    assert read_yaml(str(tmp_path / "a.yaml")) == {"common": {"seed": 3}}
    (tmp_path / "vocab.bpe").write_text(f"{MARK}#version: 0.2\na b\n", encoding="utf-8")
    assert read_merges(tmp_path / "vocab.bpe") == [("a", "b")]


def test_grammars_and_their_sentences(tmp_path: Path) -> None:
    model = {"weight": 1, "initial": [1.0], "transition": [[1.0]], "emission": [[1.0]]}
    record = {"components": [model], "words": ["w"], "shortest": 2, "longest": 2}
    hidden = tmp_path / "h.json"
    hidden.write_text(MARK + json.dumps(record), encoding="utf-8")
    assert list(load_source(hidden).terminals) == ["w"]
    (tmp_path / "text").write_text(f"{MARK}the cat\nthe\n", encoding="utf-8")
    rows = read_sentences(tmp_path / "text", ["cat", "the"])
    assert [row.tolist() for row in rows] == [[1, 0], [1]]


def test_no_piece_of_the_tokenizer_is_unknown(
    tmp_path: Path, both: tuple[str, str], encoder: ByteLevelBPE
) -> None:
    encode_files(encoder, [both[0]], [str(tmp_path / "a.bpe")])
    tokenizer = tmp_path / "tokenizer.json"
    settings = {"trainpref": str(tmp_path / "a.bpe"), "byte_level_tokenizer": str(tokenizer)}
    preprocess(config(tmp_path / "x", **settings))
    dictionary = Dictionary.load(str(tmp_path / "x/dict.txt"))
    assert all(piece in dictionary for piece in encoder.encode("Ψ 日本 \x00!").split())
    assert (tmp_path / "x/tokenizer.json").read_bytes() == tokenizer.read_bytes()
    preprocess(config(tmp_path / "without", trainpref=settings["trainpref"]))
    small = Dictionary.load(str(tmp_path / "without/dict.txt"))
    seen = [word for word in small.symbols if word.isdigit()]
    assert [word for word in dictionary.symbols if word.isdigit()][: len(seen)] == seen
    with pytest.raises(DataError, match=r"dict\.txt lacks \d+ pieces"):
        preprocess(config(tmp_path / "y", **settings, srcdict=str(tmp_path / "without/dict.txt")))
    preprocess(config(tmp_path / "z", **settings, srcdict=str(tmp_path / "x/dict.txt")))
    with pytest.raises(ConfigError, match="keeps every piece"):
        preprocess(config(tmp_path / "y", **settings, thresholdsrc=2))
