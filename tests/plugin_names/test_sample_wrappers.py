"""Datasets that change batches of samples, and the mask of what is padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairseq.data import (
    ColorizeDataset,
    FairseqDataset,
    ListDataset,
    NestedDictionaryDataset,
    RightPadDataset,
    RightPaddingMaskDataset,
    TransformEosDataset,
)
from fairseq.data.collate import collate_tokens
from fairseq.errors import ConfigError, DataError

PAD, EOS = 1, 2
SOURCES = [[5, 6, EOS], [7, EOS], [EOS]]
TARGETS = [[8], [9, 8], []]


class Pairs(FairseqDataset):
    """Sources that end with end-of-sentence, and targets that do not."""

    sizes = np.array([3, 2, 1])

    def __len__(self) -> int:
        return len(SOURCES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, target = (torch.tensor(rows[index]).long() for rows in (SOURCES, TARGETS))
        return {"id": index, "source": source, "target": target}

    def collater(self, samples: list[Any]) -> dict[str, Any]:
        if not samples:
            return {}
        source, target = (
            collate_tokens([s[part] for s in samples], PAD) for part in ("source", "target")
        )
        return {"net_input": {"src_tokens": source}, "target": target}


def batch_of(dataset: Any) -> dict[str, Any]:
    return dataset.collater([dataset[index] for index in range(len(dataset))])


def test_the_mask_of_padding() -> None:
    rows = ListDataset([torch.tensor(row) for row in SOURCES], np.array([3, 2, 1]))
    dataset = RightPaddingMaskDataset(rows)
    mask = batch_of(dataset)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, batch_of(RightPadDataset(rows, PAD)).eq(PAD))
    assert (dataset.num_tokens(1), len(dataset)) == (2, 3)
    nested = NestedDictionaryDataset({"mask": dataset}, sizes=[rows.sizes])
    assert torch.equal(batch_of(nested)["mask"], mask)


def test_colors_follow_the_samples() -> None:
    dataset = ColorizeDataset(Pairs(), lambda wrapped, index: int(wrapped[index]["source"][0]) - 5)
    batch = dataset.collater([dataset[1], dataset[0]])
    assert batch["net_input"]["colors"].tolist() == [2, 0]
    assert batch["net_input"]["colors"].dtype == torch.int64
    assert batch["net_input"]["src_tokens"].tolist() == [[7, EOS, PAD], [5, 6, EOS]]
    assert dataset.collater([]) == {}


def test_ends_are_added_and_removed() -> None:
    pairs = Pairs()
    dataset = TransformEosDataset(pairs, EOS, remove_eos_from_src=True, append_eos_to_tgt=True)
    samples = [dataset[index] for index in range(3)]
    batch = dataset.collater(samples)
    assert batch["net_input"]["src_tokens"].tolist() == [[5, 6], [7, PAD], [PAD, PAD]]
    assert batch["target"].tolist() == [[8, EOS, PAD], [9, 8, EOS], [EOS, PAD, PAD]]
    assert [sample["source"].tolist() for sample in samples] == SOURCES
    assert dataset.sizes is pairs.sizes and dataset.collater([]) == {}


def test_ends_that_are_not_as_stated_are_refused() -> None:
    with pytest.raises(DataError, match="the source of sample 0 ends with end-of-sentence"):
        batch_of(TransformEosDataset(Pairs(), EOS, append_eos_to_src=True))
    with pytest.raises(DataError, match="the target of sample 0 does not end"):
        batch_of(TransformEosDataset(Pairs(), EOS, remove_eos_from_tgt=True))
    with pytest.raises(ConfigError, match="target: .* both added and removed"):
        TransformEosDataset(Pairs(), EOS, append_eos_to_tgt=True, remove_eos_from_tgt=True)
    without = TransformEosDataset(Pairs(), EOS, remove_eos_from_tgt=True, has_target=False)
    assert torch.equal(batch_of(without)["target"], batch_of(Pairs())["target"])
