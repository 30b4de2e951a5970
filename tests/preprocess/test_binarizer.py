"""Binarizers: the same tokens for any tokenizer, number of workers and block size."""

from __future__ import annotations

import random
import string
from collections import Counter

import pytest
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import make_builder, make_dataset
from fairseq.errors import DataError
from fairseq.files import text_blocks
from fairseq.files.text_blocks import tokenize_line
from fairseq.preprocess.binarize import (
    Binarizer,
    BinarizeSummary,
    FileBinarizer,
    NumberedText,
    VocabularyDatasetBinarizer,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 500)


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    draw = random.Random(3)
    words = ["".join(draw.choices(string.ascii_letters, k=draw.randint(1, 30))) for _ in range(99)]
    return [draw.choices(words, k=draw.randint(0, 8)) for _ in range(700)]


@pytest.fixture
def text(tmp_path, sentences):
    path = tmp_path / "text"
    path.write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8")
    return path


@pytest.fixture
def dictionary(sentences) -> Dictionary:
    d = Dictionary()
    for word in sorted({word for words in sentences for word in words})[::2]:
        d.add_symbol(word)
    return d


def expected_tokens(sentences, d, append_eos=True):
    return [[d.index(word) for word in words] + [2] * append_eos for words in sentences]


def read(prefix, impl="mmap"):
    dataset = make_dataset(prefix, impl, fix_lua_indexing=True)
    assert dataset is not None
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_line(dictionary, sentences):
    binarizer = VocabularyDatasetBinarizer(dictionary)
    summary = BinarizeSummary()
    words = max(sentences, key=len)
    tokens = binarizer.binarize_line(" ".join(words), summary)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == expected_tokens([words], dictionary)[0]
    unknown = Counter(word for word in words if word not in dictionary)
    assert summary == BinarizeSummary(unknown, 1, len(words) + 1)
    assert 0 < summary.num_replaced == unknown.total()


def test_line_options(dictionary):
    words = dictionary.symbols[4:7]
    line = " ".join(words)
    turned = VocabularyDatasetBinarizer(dictionary, append_eos=False, reverse_order=True)
    assert turned.binarize_line(line, BinarizeSummary()).tolist() == [6, 5, 4]
    numbers = VocabularyDatasetBinarizer(dictionary, already_numberized=True)
    summary = BinarizeSummary()
    assert numbers.binarize_line("7 9", summary).tolist() == [7, 9, 2]
    assert str(summary) == "1 sents, 3 tokens" and summary.replaced_percent == 0
    literal = VocabularyDatasetBinarizer(dictionary)
    summary = BinarizeSummary()
    assert literal.binarize_line("<unk> nowhere", summary).tolist() == [3, 3, 2]
    assert summary.replaced == {"nowhere": 1}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("tokenize", [tokenize_line, str.split])
def test_file(tmp_path, text, dictionary, sentences, workers, append_eos, tokenize):
    binarizer = VocabularyDatasetBinarizer(dictionary, tokenize, append_eos)
    summary = FileBinarizer.multiprocess_dataset(
        text, "mmap", binarizer, tmp_path / "out", len(dictionary), workers
    )
    tokens = expected_tokens(sentences, dictionary, append_eos)
    assert read(tmp_path / "out") == tokens
    unknown = Counter(w for words in sentences for w in words if w not in dictionary)
    assert summary == BinarizeSummary(unknown, len(tokens), sum(map(len, tokens)))
    share = 100 * unknown.total() / summary.num_tok
    assert str(summary).endswith(f"{summary.num_tok} tokens, {share:.3}% replaced")


@pytest.mark.parametrize("workers", [1, 2])
def test_options_of_the_line_reach_the_file(tmp_path, text, dictionary, sentences, workers):
    binarizer = VocabularyDatasetBinarizer(dictionary, reverse_order=True)
    FileBinarizer.multiprocess_dataset(text, "lazy", binarizer, tmp_path / "out", None, workers)
    turned = [words[::-1] for words in sentences]
    assert read(tmp_path / "out", "lazy") == expected_tokens(turned, dictionary)


class LengthBinarizer(Binarizer):
    """A plug-in's own: each line becomes the lengths of its words."""

    def binarize_line(self, line, summary):
        tokens = torch.tensor([len(word) for word in line.split()], dtype=torch.int32)
        summary.merge(BinarizeSummary(None, 1, len(tokens)))
        return tokens


@pytest.mark.parametrize("workers", [1, 2])
def test_own_binarizer(tmp_path, text, sentences, workers):
    summary = FileBinarizer.multiprocess_dataset(
        text, "mmap", LengthBinarizer(), tmp_path / "out", num_workers=workers
    )
    assert read(tmp_path / "out") == [[len(word) for word in words] for words in sentences]
    assert summary.num_tok == sum(map(len, sentences)) and summary.replaced is None


def test_bad_text_leaves_no_files(tmp_path, text, dictionary):
    text.write_bytes(text.read_bytes() + b"\xff")
    with pytest.raises(DataError, match=rf"at byte {text.stat().st_size - 1} "):
        FileBinarizer.multiprocess_dataset(
            text, "mmap", VocabularyDatasetBinarizer(dictionary), tmp_path / "out"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("workers", [1, 3])
def test_text_numbered_before_its_dictionary_gives_the_same(
    tmp_path, text, dictionary, sentences, workers
):
    numbered = NumberedText(text, tmp_path, workers)
    with make_builder(tmp_path / "out.bin", "mmap", len(dictionary)) as builder:
        summary = numbered.write(dictionary, builder)
        builder.finalize(tmp_path / "out.idx")
    numbered.close()
    assert read(tmp_path / "out") == expected_tokens(sentences, dictionary)
    direct = FileBinarizer.multiprocess_dataset(
        text, "mmap", VocabularyDatasetBinarizer(dictionary), tmp_path / "direct", len(dictionary)
    )
    assert summary == direct
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "direct.bin").read_bytes()
    assert builder.max_id == max(map(max, expected_tokens(sentences, dictionary)))
    counts = dict(zip(numbered.words.words, numbered.words.counts_W.tolist(), strict=True))
    assert counts == {"\n": len(sentences), **Counter(w for words in sentences for w in words)}


def test_summaries_merge():
    summary = BinarizeSummary()
    assert str(summary) == "0 sents, 0 tokens" and summary.replaced_percent == 0
    summary.merge(BinarizeSummary(Counter(a=1), 2, 4))
    summary.merge(BinarizeSummary(None, 1, 4))
    summary.merge(BinarizeSummary(Counter(a=1, b=1), 1, 4))
    assert summary == BinarizeSummary(Counter(a=2, b=1), 4, 12)
    assert summary.num_replaced == 3 and str(summary) == "4 sents, 12 tokens, 25.0% replaced"
