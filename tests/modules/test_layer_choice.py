"""The lists of the published recipes, and what every choice must satisfy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.errors import ConfigError
from fairseq.modules.layer_choice import STRATEGIES, block_influence, choose_layers

PUBLISHED = {
    "distil": [0, 2, 4, 7, 9, 11],
    "spread": [0, 2, 4, 7, 9, 11],
    "alt": [0, 2, 4, 6, 8, 10],
    "first": [0, 1, 2, 3, 4, 5],
    "6b": [0, 1, 2, 3, 4, 5],
    "last": [6, 7, 8, 9, 10, 11],
    "6t": [6, 7, 8, 9, 10, 11],
    "3b3t": [0, 2, 4, 7, 9, 11],
    "3l": [0, 6, 11],
}


@pytest.mark.parametrize("strategy", PUBLISHED)
def test_twelve_layers(strategy: str) -> None:
    wanted = PUBLISHED[strategy]
    assert choose_layers(strategy, 12, len(wanted)) == wanted


@given(st.sampled_from(STRATEGIES), st.integers(1, 40), st.data())
def test_layers_are_distinct_and_in_order(strategy: str, layers: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, layers))
    if strategy == "3l":
        layers, kept = max(layers, 3), 3
    influence = data.draw(st.lists(st.floats(0, 2), min_size=layers, max_size=layers))
    chosen = choose_layers(strategy, layers, kept, influence)
    assert len(chosen) == kept and chosen == sorted(set(chosen))
    assert chosen[0] >= 0 and chosen[-1] < layers
    if strategy == "auto":
        left = set(range(layers)) - set(chosen)
        assert all(influence[a] >= influence[b] for a in chosen for b in left)


def test_influence_is_what_a_layer_turns() -> None:
    x_TBC = torch.randn(4, 2, 3)
    turned_TBC = x_TBC.roll(1, -1)
    kept_BT = torch.ones(2, 4, dtype=torch.bool)
    kept_BT[1, 2:] = False
    pads_TBC = turned_TBC.clone()
    pads_TBC[2:, 1] = 100.0  # changes nothing
    same, other = block_influence([x_TBC, 3 * x_TBC, pads_TBC], kept_BT)
    rows = x_TBC.transpose(0, 1)[kept_BT]
    cosine = (rows * rows.roll(1, -1)).sum(-1) / rows.pow(2).sum(-1)
    assert same == pytest.approx(0, abs=1e-6) and other == pytest.approx(1 - cosine.mean().item())


def test_what_cannot_be_chosen_is_refused() -> None:
    for arguments, said in (
        (("spred", 4, 2), "did you mean 'spread'"),
        (("first", 4, 5), "5 layers cannot be kept of 4"),
        (("3l", 12, 6), "keeps 3 layers"),
        (("auto", 12, 6), "needs the influence"),
    ):
        with pytest.raises(ConfigError, match=said):
            choose_layers(*arguments)
