"""Items cut short: the original's pieces, and ours."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from fairseq.data import ListDataset, RandomCropDataset, TruncateDataset, maybe_shorten_dataset
from fairseq.errors import ConfigError

ROWS = [[5, 6, 7], [8], [9, 10]]


def tokens(rows=ROWS):
    return ListDataset([torch.tensor(row) for row in rows], np.array([len(row) for row in rows]))


def lists(dataset):
    return [item.tolist() for item in dataset]


@pytest.mark.parametrize("version", ["fb", "eify"])
def test_shortening_equals_the_original(shared, version):
    folder = shared / "compat/train_log"
    golden = np.load(folder / f"{version}_misc.npz")
    items = np.load(folder / f"{version}_mask_tokens.npz")
    data = ListDataset(torch.from_numpy(items["flat"]).split(items["lens"].tolist()), items["lens"])
    assert np.array_equal(torch.cat(list(TruncateDataset(data, 16))), golden["truncate16"])
    for data_rng in ("fairseq-main", "fairseq-0.12"):
        cropped = RandomCropDataset(data, 16, seed=1, data_rng=data_rng)
        for epoch in (1, 2):
            cropped.set_epoch(epoch)
            found = torch.cat(list(cropped))
            assert np.array_equal(found, golden[f"randomcrop16_ep{epoch}"]), epoch


def test_random_crops_change_with_the_epoch_and_reach_both_ends():
    cropped = RandomCropDataset(tokens([list(range(10))] * 300), 8)
    starts = [item[0].item() for item in cropped]
    assert all(
        item.tolist() == list(range(s, s + 8)) for s, item in zip(starts, cropped, strict=True)
    )
    counts = Counter(starts)
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 70
    cropped.set_epoch(2)
    assert starts != [item[0].item() for item in cropped]
    cropped.set_epoch(1)
    assert starts == [item[0].item() for item in cropped]
    assert cropped.sizes.tolist() == [8] * 300 and lists(RandomCropDataset(tokens(), 3)) == ROWS


def test_maybe_shorten():
    data = tokens()

    def shorten(method, splits=""):
        return maybe_shorten_dataset(data, "train", splits, method, 2, seed=1)

    assert shorten("none") is data and shorten("truncate", "valid,test") is data
    assert lists(shorten("truncate")) == lists(shorten("truncate", "valid,train"))
    assert lists(shorten("truncate")) == [[5, 6], [8], [9, 10]]
    assert isinstance(shorten("random_crop"), RandomCropDataset)
    with pytest.raises(ConfigError, match="did you mean 'truncate'"):
        shorten("truncated")
    with pytest.raises(ConfigError, match="cannot be cut to 0"):
        TruncateDataset(data, 0)
