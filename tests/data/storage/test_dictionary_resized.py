"""Dictionaries made to fit the embedding table of a checkpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq.data.storage.dictionary import MOST_FILLERS, Dictionary


def dictionary(words: int, fillers: int, *more: str) -> Dictionary:
    d = Dictionary()
    for i in range(words):
        d.add_symbol(f"w{i}", n=3)
    for i in range(fillers):
        d.add_symbol(f"madeupword{i:04d}", n=0)
    for word in more:
        d.add_symbol(word)
    return d


@given(st.integers(0, 5), st.integers(0, 4), st.integers(0, 150), st.booleans())
def test_only_fillers_at_the_end_come_and_go(
    words: int, fillers: int, rows: int, with_mask: bool
) -> None:
    d = dictionary(words, fillers, *["<mask>"] * with_mask)
    before = (list(d.symbols), list(d.count), dict(d.indices))
    fitted = d.resized(rows, without=("<mask>",))
    assert (d.symbols, d.count, d.indices) == before
    real = d.symbols[: 4 + words]
    most = 4 + words + min(fillers, max(0, rows - 4 - words)) + MOST_FILLERS - 1
    if not len(real) <= rows <= most:
        assert fitted is None
        return
    assert fitted is not None and len(fitted) == rows == len(fitted.count)
    assert fitted.symbols[: len(real)] == real
    assert all(fitted.index(symbol) == i for i, symbol in enumerate(fitted.symbols))
    added = fitted.symbols[len(real) :]
    assert all(word.startswith("madeupword") for word in added) and len({*added}) == len(added)
    assert not any(fitted.count[len(real) :])
    assert (fitted.pad(), fitted.unk(), fitted.nspecial) == (d.pad(), d.unk(), d.nspecial)
    fitted.add_symbol("<mask>")
    assert fitted.index("<mask>") == rows


def test_a_copy_of_the_same_size_is_independent() -> None:
    d = dictionary(3, 2)
    fitted = d.resized(len(d))
    assert fitted == d and fitted is not None
    fitted.add_symbol("new")
    assert "new" not in d and len(d) == 9


@pytest.mark.parametrize("word, count", [("madeupword0007", 1), ("madeupwords", 0), ("rare", 0)])
def test_words_that_only_look_unused_are_kept(word: str, count: int) -> None:
    d = dictionary(2, 0)
    d.add_symbol(word, n=count)
    assert d.resized(len(d) - 1) is None


def test_symbols_to_leave_out_must_come_last() -> None:
    d = dictionary(1, 0, "<mask>", "last")
    assert d.resized(6, without=("<mask>",)) is None
    assert d.resized(7, without=("<mask>",)) == d


def test_the_dictionary_of_the_pile_models_loses_its_last_two_lines() -> None:
    d = dictionary(50256, 3)
    fitted = d.resized(len(d) - 2)
    assert fitted is not None and fitted.symbols[-1] == "madeupword0000"
