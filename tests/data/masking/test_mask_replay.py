"""The replays of the original's masks equal its recorded output, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairseq.data.masking import MaskSpec
from fairseq.data.masking.original_masks import replay_mask
from fairseq.errors import DataError

RECORDS = {"fairseq-main": "fb", "fairseq-0.12": "eify"}
VARIANTS = {
    "default": {},
    "seed5": {},
    "nounmask": {"leave_unmasked_prob": 0.0},
    "norand": {"random_token_prob": 0.0},
    "pure": {"leave_unmasked_prob": 0.0, "random_token_prob": 0.0},
    "p40": {"mask_prob": 0.4},
    "freq": {},
    "ww": {},
    "mult3": {"mask_multiple_length": 3},
    "mult3std": {"mask_multiple_length": 3, "mask_stdev": 1.0},
}


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("data_rng", RECORDS)
def test_recorded_masks(shared: Path, data_rng: str, name: str, epoch: int):
    record = np.load(shared / f"compat/train_log/{RECORDS[data_rng]}_mask_tokens.npz")
    spec = MaskSpec(
        int(record["vocab_len_with_mask"]),
        pad=1,
        mask=int(record["mask_idx"]),
        counts_V=record["dict_count"] if name == "freq" else None,
        word_begin_V=record["word_begin"] if name == "ww" else None,
        **VARIANTS[name],
    )
    items = np.split(record["flat"], np.cumsum(record["lens"])[:-1])
    sides = [
        replay_mask(
            item, i, spec=spec, seed=5 if name == "seed5" else 1, epoch=epoch, data_rng=data_rng
        )
        for i, item in enumerate(items)
    ]
    source, target = (np.concatenate(side) for side in zip(*sides, strict=True))
    np.testing.assert_array_equal(source, record[f"{name}_ep{epoch}_src"])
    np.testing.assert_array_equal(target, record[f"{name}_ep{epoch}_tgt"])


# Positions and replacements recorded from the original on <s>, 30 tokens, </s>; 25 ids, mask 24.
TOY = {
    ("fairseq-main", 1, 0): ([12, 15, 20, 21, 30], [15, 18, 7, 24, 24]),
    ("fairseq-main", 1, 1): ([8, 17, 19, 28], [24, 10, 24, 24]),
    ("fairseq-main", 2, 0): ([1, 4, 5, 19, 23], [24, 24, 8, 24, 24]),
    ("fairseq-0.12", 1, 0): ([0, 3, 13, 17, 20], None),
    ("fairseq-0.12", 1, 1): ([2, 7, 11, 19, 28], None),
}


@pytest.mark.parametrize(("data_rng", "epoch", "index"), TOY)
def test_recorded_toy_item(data_rng: str, epoch: int, index: int):
    item = np.array([0, *[4 + i % 16 for i in range(30)], 2])
    spec = MaskSpec(25, pad=1, mask=24)
    source, target = replay_mask(item, index, spec=spec, seed=1, epoch=epoch, data_rng=data_rng)
    positions, shown = TOY[data_rng, epoch, index]
    assert np.flatnonzero(target != 1).tolist() == positions
    assert (target[positions] == item[positions]).all()
    assert shown is None or source[positions].tolist() == shown


def test_an_item_with_the_mask_in_it_is_refused():
    with pytest.raises(DataError, match="item 7 .* mask id 24"):
        replay_mask(
            np.array([0, 24, 2]),
            7,
            spec=MaskSpec(25, pad=1, mask=24),
            seed=1,
            epoch=1,
            data_rng="fairseq-main",
        )
