"""Positions: learned, sinusoidal, and ALiBi's bias, against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.errors import DataError
from fairseq.modules.positions import (
    LearnedPositionalEmbedding,
    PositionalEmbedding,
    SinusoidalPositionalEmbedding,
    alibi_slopes,
    make_positions,
    sinusoidal_table,
)

PAD = 1
# heads -> minus the base-2 logarithms of the slopes, as the original builds them
EXPONENTS = {
    1: [8],
    2: [4, 8],
    3: [4, 8, 2],
    6: [2, 4, 6, 8, 1, 3],
    8: [1, 2, 3, 4, 5, 6, 7, 8],
    10: [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5],
    12: [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5],
    16: [0.5 * i for i in range(1, 17)],
    20: [*(0.5 * i for i in range(1, 17)), 0.25, 0.75, 1.25, 1.75],
}


@pytest.mark.parametrize("heads", EXPONENTS)
def test_slopes(heads: int) -> None:
    slopes_H = alibi_slopes(heads)
    assert slopes_H.dtype == torch.float32
    assert slopes_H.tolist() == pytest.approx([2**-e for e in EXPONENTS[heads]], rel=1e-7)


@given(st.integers(1, 200))
def test_slopes_of_any_number_of_heads_are_different_powers_of_two(heads: int) -> None:
    exponents = [-math.log2(slope) for slope in alibi_slopes(heads).tolist()]
    assert len(exponents) == heads and len({round(e, 6) for e in exponents}) == heads
    lower = 2 ** int(math.log2(heads))
    assert exponents[:lower] == pytest.approx([8 * (i + 1) / lower for i in range(lower)])
    # the rest are the odd multiples of half the step, which lie between the others
    odd = [4 * (2 * i + 1) / lower for i in range(heads - lower)]
    assert exponents[lower:] == pytest.approx(odd)


TOKENS = torch.tensor([[5, 6, 7, PAD, PAD], [PAD, 5, PAD, 6, 7], [5, 6, 7, 8, 9]])


def test_positions_count_tokens_not_places() -> None:
    expected = [[2, 3, 4, 1, 1], [1, 2, 1, 3, 4], [2, 3, 4, 5, 6]]
    assert make_positions(TOKENS, PAD).tolist() == expected
    expected = [[0, 1, 2, 1, 1], [1, 0, 1, 1, 2], [0, 1, 2, 3, 4]]
    assert make_positions(TOKENS, PAD, offset=0).tolist() == expected


def test_learned_positions() -> None:
    embed = LearnedPositionalEmbedding(10 + PAD + 1, 3, PAD)
    assert embed.max_positions == 10 and not embed.weight[PAD].any()
    assert embed(TOKENS).equal(embed.weight[make_positions(TOKENS, PAD)])
    embed(TOKENS).sum().backward()
    assert embed.weight.grad is not None
    assert embed.weight.grad[:, 0].tolist() == [0, 0, 3, 3, 3, 1, 1, 0, 0, 0, 0, 0]


def test_learned_positions_that_begin_at_zero() -> None:
    embed = LearnedPositionalEmbedding(5, 3, PAD, offset=0)
    assert embed.max_positions == 5
    assert embed(TOKENS)[2].equal(embed.weight)
    assert embed(TOKENS)[1, [1, 3, 4]].equal(embed.weight[:3])


@pytest.mark.parametrize("offset", [None, 0])
def test_learned_positions_end(offset: int | None) -> None:
    embed = LearnedPositionalEmbedding(5 + (2 if offset is None else 0), 3, PAD, offset)
    pads = torch.full((2, 4), PAD)
    full = torch.cat([torch.full((2, 5), 7), pads], 1)
    assert embed(full).shape == (2, 9, 3)  # only tokens need positions
    with pytest.raises(
        DataError, match="6 tokens exceeds the 5 learned positions.*-positions 6.*alibi"
    ):
        embed(torch.cat([full[:, :1], full], 1))


def test_sinusoidal_positions() -> None:
    channels, rows = 8, 20
    table_PC = sinusoidal_table(rows, channels, PAD)
    for position in range(rows):
        for i in range(channels // 2):
            angle = position / 10000 ** (i / (channels // 2 - 1))
            sine, cosine = (math.sin(angle), math.cos(angle)) if position != PAD else (0, 0)
            assert float(table_PC[position, i]) == pytest.approx(sine, abs=2e-6)
            assert float(table_PC[position, i + 4]) == pytest.approx(cosine, abs=2e-6)
    assert not sinusoidal_table(rows, 7, None)[:, 6].any()  # an odd channel is left over


@pytest.mark.parametrize("offset", [None, 0, 3])
def test_the_sinusoidal_table_grows_and_is_no_state(offset: int | None) -> None:
    short, long = (SinusoidalPositionalEmbedding(8, PAD, rows, offset) for rows in (4, 100))
    assert not short.state_dict() and not list(short.parameters())
    tokens = torch.full((2, 40), 7)
    tokens[1, 30:] = PAD
    assert short(tokens).equal(long(tokens))
    first = 2 if offset is None else offset
    assert short(tokens)[0].equal(sinusoidal_table(first + 40, 8, None)[first:])
    if offset is None:
        assert not short(tokens)[1, 30:].any()


def test_the_factory_takes_the_number_of_positions() -> None:
    learned = PositionalEmbedding(10, 4, PAD, learned=True)
    assert isinstance(learned, LearnedPositionalEmbedding) and learned.max_positions == 10
    wide = PositionalEmbedding(200, 64, PAD, learned=True)
    assert float(wide.weight.std()) == pytest.approx(1 / 8, rel=0.05) and not wide.weight[PAD].any()
    fixed = PositionalEmbedding(10, 4, PAD)
    assert isinstance(fixed, SinusoidalPositionalEmbedding) and fixed.table.shape == (12, 4)


@pytest.mark.parametrize("learned", [True, False])
def test_without_a_pad_every_token_counts_from_zero(learned: bool) -> None:
    embed = PositionalEmbedding(5, 4, None, learned=learned)
    table_PC = embed.weight if learned else sinusoidal_table(5, 4, None)
    assert embed(TOKENS).equal(table_PC.expand(3, 5, 4))
    assert not learned or embed.max_positions == len(table_PC)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("pad", [PAD, None])
def test_the_arguments_of_the_original(learned: bool, pad: int | None) -> None:
    embed = PositionalEmbedding(5, 4, pad, learned=learned)
    every_BTC = embed(TOKENS)
    # a step of a generation: only the last token is new
    assert embed(TOKENS, incremental_state={}).equal(every_BTC[:, -1:])
    assert embed(TOKENS, incremental_state=None, positions=None).equal(every_BTC)
    # rows of the table; the tokens do not count
    first = 0 if pad is None else pad + 1
    rows_BT = first + torch.arange(5).expand(3, 5)
    backwards_BTC = embed(TOKENS, positions=rows_BT.flip(1))
    assert backwards_BTC.equal(embed(torch.full((3, 5), 7)).flip(1))
