"""Word numbers: whole blocks are split and looked up as lines are, one by one."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fairseq.files.word_table import LINE_END, WordNumbers, _ShortWords

WHITE = "".join(chr(c) for c in range(0x3001) if chr(c).isspace() and chr(c) not in "\r\n")
blocks = st.lists(
    st.text(
        st.one_of(
            st.sampled_from(WHITE + "ab\0\u00e9\u0085\u200b\ufeff\x7f"),
            st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"),
        ),
        max_size=40,
    ),
    min_size=1,
    max_size=5,
)


def words_line_by_line(lines: list[str]) -> list[str]:
    return [word for line in lines for word in [*line.split(), "\n"]]


@given(st.lists(blocks, min_size=1, max_size=3))
def test_blocks_are_split_as_lines_are(many):
    numbers = WordNumbers()
    known = ["\n"]
    for lines in many:
        block = "".join(f"{line}\n" for line in lines).encode()
        numbers_N, new = numbers.encode(block)
        known += new
        assert [known[i] for i in numbers_N] == words_line_by_line(lines)
        assert (numbers_N == LINE_END).sum() == len(lines)
    assert len(set(known)) == len(known)


@given(blocks)
def test_own_tokenizer(lines):
    numbers = WordNumbers(lambda line: line.strip("\n").split("a"))
    block = "".join(f"{line}\n" for line in lines).encode()
    numbers_N, new = numbers.encode(block)
    words = [["\n", *new][i] for i in numbers_N]
    assert words == [word for line in lines for word in [*line.split("a"), "\n"]]


def test_many_words_of_all_lengths():
    draw = random.Random(5)
    words = [draw.randbytes(draw.randint(1, 12)).hex() for _ in range(20000)]
    numbers, expected = WordNumbers(), {}
    for first in range(0, 40000, 1000):
        part = [draw.choice(words[: first + 1000]) for _ in range(1000)]
        numbers_N, new = numbers.encode((" ".join(part) + "\n").encode())
        for word in new:
            expected[word] = len(expected) + 1
        assert numbers_N.tolist() == [*(expected[word] for word in part), LINE_END]
    assert len(expected) > 5000


def test_table_finds_what_was_added_and_nothing_else():
    rng = np.random.default_rng(2)
    low, high = rng.integers(0, 1 << 63, (2, 30000), dtype=np.uint64)
    table = _ShortWords()
    for first in range(0, 20000, 700):
        part = slice(first, min(first + 700, 20000))
        table.add(low[part], high[part], np.arange(part.start, part.stop))
    found = table.find(low, high)
    assert found[:20000].tolist() == list(range(20000)) and (found[20000:] == -1).all()
    assert (table.find(low, high ^ np.uint64(1)) == -1).all()


def test_words_whose_slots_collide_are_told_apart():
    table = _ShortWords()
    mix = _ShortWords._MIX
    inverse = np.array([pow(int(m), -1, 1 << 64) for m in mix], np.uint64)
    # Keys made so that the mixed value, and with it the slot, is the same for all of them.
    parts = np.arange(1, 501, dtype=np.uint64)
    low, high = parts * inverse[0], (parts ^ np.uint64(12345)) * inverse[1]
    assert len(set(table._slots(low, high).tolist())) == 1
    table.add(low[:400], high[:400], np.arange(400))
    assert table.find(low, high).tolist() == [*range(400), *[-1] * 100]
