"""Dictionary: ids, order, files, text."""

from __future__ import annotations

import io
import pickle
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.data.storage.dictionary import (
    Dictionary,
    DuplicateSymbolError,
    TruncatedDictionary,
    post_process,
)
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files.text_blocks import tokenize_line

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
symbols = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1
).filter(lambda word: not any(c.isspace() for c in word) and word not in SPECIAL)


def counted(**counts: int) -> Dictionary:
    dictionary = Dictionary()
    for word, count in counts.items():
        dictionary.add_symbol(word, n=count)
    return dictionary


def test_special_symbols_come_first():
    d = Dictionary(extra_special_symbols=["<a>"])
    assert d.symbols == [*SPECIAL, "<a>"] and d.nspecial == 5
    assert (d.bos(), d.pad(), d.eos(), d.unk()) == (0, 1, 2, 3)
    assert (d.bos_index, d.pad_index, d.eos_index, d.unk_index) == (0, 1, 2, 3)
    named = Dictionary(bos="B", pad="P", eos="E", unk="U")
    assert named.symbols == ["B", "P", "E", "U"]
    empty = Dictionary(add_special_symbols=False)
    assert len(empty) == empty.nspecial == 0


def test_foreign_special_ids():
    d = Dictionary(add_special_symbols=False)
    for word in ["[PAD]", "[UNK]", "a", "[CLS]", "[SEP]"]:
        d.add_symbol(word)
    d.pad_index, d.unk_index, d.bos_index, d.eos_index = 0, 1, 3, 4
    assert d.index("nowhere") == 1 and d.eos() == 4
    assert d.string([3, 2, 1, 4]) == f"a {d.unk_word}"
    assert d.encode_line("a b", add_if_not_exist=False).tolist() == [2, 1, 4]


def test_lookup():
    d = counted(hello=2)
    assert d["hello" in d and 4] == "hello" and "bye" not in d
    assert d.index("hello") == 4 and d.index("bye") == d.unk()
    assert d[4] == "hello" and d[5] == d[-1] == d.unk_word
    assert d.add_symbol("hello", n=3) == 4 and d.count[4] == d.get_count(4) == 5
    assert d.add_symbol("hello", overwrite=True) == 5 and d.index("hello") == 5 and len(d) == 6


def test_finalize_sorts_by_count_then_name():
    d = counted(b=2, a=2, c=9, z=1)
    d.finalize(padding_factor=1)
    assert d.symbols[4:] == ["c", "a", "b", "z"] and d.count[4:] == [9, 2, 2, 1]
    assert [d.index(word) for word in d.symbols] == list(range(8))


def test_finalize_limits():
    d = counted(b=2, a=2, c=9, z=1)
    d.finalize(threshold=2, nwords=6, padding_factor=8)
    assert d.symbols[4:] == ["c", "a", "madeupword0000", "madeupword0001"]
    assert d.count[6:] == [0, 0]
    e = counted(b=2, a=1)
    e.finalize(nwords=2, padding_factor=4)
    assert e.symbols == SPECIAL


def test_padding_counts_the_special_symbols():
    d = counted(madeupword0000=1)
    d.pad_to_multiple_(8)
    assert d.symbols[5:] == ["madeupword0001", "madeupword0002", "madeupword0003"]
    d.pad_to_multiple_(1)
    assert len(d) == 8


@given(st.dictionaries(symbols, st.integers(0, 5), max_size=30), st.integers(-1, 3))
def test_finalize_is_a_stable_selection(counts, threshold):
    d = Dictionary()
    for word, count in counts.items():
        d.add_symbol(word, n=count)
    d.finalize(threshold=threshold, padding_factor=1)
    expected = sorted((-c, w) for w, c in counts.items() if c >= threshold)
    assert list(zip(d.symbols, d.count, strict=True))[4:] == [(w, -c) for c, w in expected]


@given(st.dictionaries(symbols, st.integers(0, 10**12)))
def test_files_give_back_what_was_saved(tmp_path_factory, counts):
    d = Dictionary()
    for word, count in counts.items():
        d.add_symbol(word, n=count)
    path = tmp_path_factory.mktemp("dict") / "dict.txt"
    d.save(path)
    loaded = Dictionary.load(path)
    assert loaded == d and loaded.count[4:] == d.count[4:]
    buffer = io.StringIO(newline="")
    d.save(buffer)
    assert buffer.getvalue().encode() == path.read_bytes()
    assert Dictionary.load(io.StringIO(buffer.getvalue(), newline="\n")) == d


def test_file_lines():
    text = "the 10\na b 3\n<unk> 2 #fairseq:overwrite\nthe 1 #fairseq:overwrite\n"
    d = Dictionary.load(io.StringIO(text))
    assert d.symbols[4:] == ["the", "a b", "<unk>", "the"] and d.count[4:] == [10, 3, 2, 1]
    assert d.index("the") == 7 and d.index("<unk>") == 6 and d.unk() == 3
    saved = io.StringIO()
    d.save(saved)
    assert saved.getvalue() == text
    plain = Dictionary.load(io.StringIO("<s> 1\nx 2\n"), add_special_symbols=False)
    assert plain.symbols == ["<s>", "x"]


@pytest.mark.parametrize("line", ["word", "", "word x", "5", "word 1.5", "word ٣", "w 1_0"])
def test_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "dict.txt"
    path.write_text(f"the 1\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Incorrect dictionary format.*dict\.txt, line 2"):
        Dictionary.load(str(path))


def test_duplicate_is_named():
    with pytest.raises(RuntimeError, match="Duplicate.*'the'.*line 3") as caught:
        Dictionary.load(io.StringIO("the 1\nof 1\nthe 1\n"))
    assert isinstance(caught.value, DuplicateSymbolError) and isinstance(caught.value, DataError)
    with pytest.raises(RuntimeError, match="Duplicate.*<pad>"):
        Dictionary.load(io.StringIO("<pad> 1\n"))


def test_unreadable_files(tmp_path):
    with pytest.raises(MissingFileError, match="none"):
        Dictionary.load(tmp_path / "none")
    (tmp_path / "latin").write_bytes("caf\xe9 1\n".encode("latin-1"))
    with pytest.raises(DataError, match="encoding.*latin"):
        Dictionary.load(tmp_path / "latin")


def test_symbol_with_a_line_end_is_not_saved(tmp_path):
    d = counted()
    d.add_symbol("a\nb")
    with pytest.raises(DataError, match="line end"):
        d.save(tmp_path / "dict.txt")
    assert not list(tmp_path.iterdir())


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "new" / "dict.txt"
    counted(a=1).save(path)
    before = path.read_bytes()
    broken = counted(b=1)
    broken.add_symbol("x\r")
    with pytest.raises(DataError):
        broken.save(path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_string():
    d = counted(he=1, wor=1)
    ids = [d.bos(), 4, 5, d.unk(), d.pad(), d.eos()]
    for form in (ids, np.array(ids), torch.tensor(ids), torch.tensor(ids, dtype=torch.int32)):
        assert d.string(form) == "he wor <unk> <pad>"
    assert d.string(torch.tensor([[4, 2], [5, 2]])) == "he\nwor" == d.string([[4, 2], [5]])
    assert d.string([torch.tensor(4), torch.tensor(5)]) == "he wor"
    assert d.string([]) == d.string(torch.empty(0, dtype=torch.long)) == ""
    assert d.string(ids, include_eos=True) == "he wor <unk> <pad> </s>"
    assert d.string(ids, escape_unk=True, extra_symbols_to_ignore=[1]) == "he wor <<unk>>"
    assert d.string([4, 3], unk_string="?", separator="_") == "he_?"
    assert d.unk_string() == "<unk>" and d.unk_string(escape=True) == "<<unk>>"
    assert d.string([100]) == "<unk>"


@pytest.mark.parametrize(
    ("sentence", "symbol", "text"),
    [
        ("he@@ llo wor@@ ld", "@@ ", "hello world"),
        ("he@@ llo@@", "subword_nmt", "hello"),
        ("\u2581he llo \u2581world", "sentencepiece", "hello world"),
        ("_he llo _world", "wordpiece", "hello world"),
        ("h i | y o u |", "letter", "hi you"),
        ("a b", None, "a b"),
        ("a b", "none", "a b"),
    ],
)
def test_post_process(sentence, symbol, text):
    assert post_process(sentence, symbol) == text


def test_post_process_refuses_unknown_encodings():
    with pytest.raises(ConfigError, match="did you mean 'wordpiece'"):
        post_process("a", "wordpice")


def test_encode_line():
    d = Dictionary()
    seen = []
    ids = d.encode_line(" a  b\ta\n", consumer=lambda word, index: seen.append((word, index)))
    assert ids.dtype == torch.int32 and ids.tolist() == [4, 5, 4, 2]
    assert seen == [("a", 4), ("b", 5), ("a", 4)] and d.count[4:] == [2, 1]
    assert d.encode_line("c a", add_if_not_exist=False, append_eos=False).tolist() == [3, 4]
    assert d.encode_line("a b", reverse_order=True).tolist() == [5, 4, 2]
    assert d.encode_line("a,b", line_tokenizer=lambda line: line.split(",")).tolist() == [4, 5, 2]
    assert d.encode_line("").tolist() == [2]


def test_update_adds_counts():
    d, other = counted(a=1, b=2), counted(b=5, c=1)
    d.update(other)
    assert dict(zip(d.symbols[4:], d.count[4:], strict=True)) == {"a": 1, "b": 7, "c": 1}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tokenize", [tokenize_line, str.lower])
def test_add_file_to_dictionary(tmp_path, monkeypatch, workers, tokenize):
    from fairseq.files import text_blocks

    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 40)
    lines = ["b a a </s>", "", "caf\u00e9\u00a0Z \x1c b", "<unk> a"] * 20
    (tmp_path / "text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = Counter({"</s>": len(lines)})
    for line in lines:
        words = tokenize(f"{line}\n")
        expected.update(word for word in words if word != "\n")
    d = Dictionary()
    Dictionary.add_file_to_dictionary(tmp_path / "text", d, tokenize, workers)
    counts = dict(zip(d.symbols, d.count, strict=True))
    start = Counter(SPECIAL)
    assert counts == dict(expected + start)
    assert d.symbols[4:] == sorted(expected.keys() - set(SPECIAL))


def test_truncated_dictionary():
    whole = counted(a=3, b=2, c=1)
    d = TruncatedDictionary(whole, 6)
    assert len(d) == 6 and d.symbols[4:] == ["a", "b"]
    assert d.index("c") == d.unk() == 3 and d[6] == "<unk>" and d[5] == "b"
    assert d.wrapped_dict is whole and len(whole) == 7
    assert d.string([4, 6]) == "a <unk>"


def test_pickle_and_equality():
    d = counted(a=1, b=1)
    again = pickle.loads(pickle.dumps(d))
    assert again == d and again.count == d.count
    assert d == counted(a=7, b=9) and d != counted(b=1, a=1) and d != {"a": 4}


@given(st.text())
def test_tokenize_line_is_the_regular_expression(text):
    import re

    assert tokenize_line(text) == [word for word in re.split(r"\s+", text.strip()) if word]


@pytest.mark.parametrize(
    ("text", "times"), [("a", 50_000_000), (" #fairseq:bos", 4_000_000), (" 1", 9), ("1", 5000)]
)
def test_a_huge_line_is_refused_at_once_and_shown_in_part(tmp_path, text, times):
    line = "a " * (text == "1") + text * times + "x" * (text == " 1")
    (tmp_path / "dict.txt").write_text(f"the 2\n{line}\n")
    begun = time.perf_counter()
    with pytest.raises(DataError, match="line 2") as caught:
        Dictionary.load(tmp_path / "dict.txt")
    assert len(str(caught.value)) < 500 and time.perf_counter() - begun < 10


def test_a_long_symbol_is_a_symbol(tmp_path):
    dictionary = Dictionary()
    dictionary.add_symbol("a" * 500_000)
    dictionary.save(tmp_path / "dict.txt")
    assert Dictionary.load(tmp_path / "dict.txt") == dictionary
