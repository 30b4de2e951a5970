"""Drawn items: how often each is drawn, and what is asked of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fairseq.data import BaseWrapperDataset, ListDataset, ResamplingDataset, SubsampleDataset
from fairseq.errors import DataError

STRINGS = ["ab", "c", "def", "ghij"]


@pytest.mark.parametrize("by_size", [True, False])
def test_resampling(by_size):
    weights = np.array([4.0, 2.0, 7.0, 1.5])
    data = ListDataset(STRINGS, [len(s) for s in STRINGS])
    dataset = ResamplingDataset(data, weights, size_ratio=2, batch_by_size=by_size, seed=0)
    assert len(dataset) == 8 and not dataset.can_reuse_epoch_itr_across_epochs
    counts, sorted_epochs = Counter(), 0
    for epoch in range(1000):
        dataset.set_epoch(epoch)
        order = dataset.ordered_indices()
        assert sorted(order.tolist()) == list(range(8))
        lengths = [dataset.size(i) for i in order]
        assert lengths == [len(dataset[i]) for i in order]
        sorted_epochs += lengths == sorted(lengths)
        counts.update(dataset[i] for i in order)
    assert (sorted_epochs == 1000) == by_size
    shares = np.array([counts[s] for s in STRINGS]) / 8000
    assert np.abs(shares - weights / weights.sum()).max() < 0.02


def test_resampling_is_a_function_of_seed_and_epoch():
    data = ListDataset(list(range(50)), np.arange(50))
    dataset = ResamplingDataset(data, replace=False, size_ratio=0.5, epoch=3)
    third = list(dataset)
    assert len(set(third)) == 25
    dataset.set_epoch(4)
    assert list(dataset) != third
    dataset.set_epoch(3)
    assert list(dataset) == third == list(dataset.sizes)
    assert dataset.num_tokens(0) == third[0]
    assert list(ResamplingDataset(data, replace=False, size_ratio=0.5, epoch=3, seed=1)) != third
    with pytest.raises(DataError, match="replace=True"):
        ResamplingDataset(data, replace=False, size_ratio=1.5)
    with pytest.raises(DataError, match="as many weights"):
        ResamplingDataset(data, weights=[1.0])


def test_drawn_items_are_batched_and_filtered_by_their_own_sizes():
    data = ListDataset([[0] * n for n in (1, 2, 3, 4, 5, 6)], [1, 2, 3, 4, 5, 6])
    dataset = SubsampleDataset(data, 0.5, seed=5)
    lengths = [len(item) for item in dataset]
    assert lengths == sorted(set(lengths)) and len(lengths) == 3
    assert dataset.sizes.tolist() == lengths
    kept, ignored = dataset.filter_indices_by_size(np.arange(3), lengths[1])
    assert (kept.tolist(), ignored) == ([0, 1], [2])
    batches = dataset.batch_by_size(np.arange(3), max_tokens=max(lengths))
    assert max(len(b) * max(lengths[i] for i in b) for b in batches) <= max(lengths)
    shuffled = SubsampleDataset(data, 0.5, shuffle=True, seed=5)
    assert sorted(len(item) for item in shuffled) == lengths
    assert shuffled.ordered_indices().tolist() == np.argsort(shuffled.sizes).tolist()
    with pytest.raises(DataError, match="between 0 and 1"):
        SubsampleDataset(data, 1.0)


def test_drawn_items_of_two_lengths():
    class Pairs(BaseWrapperDataset):
        sizes = [np.array([3, 1, 2]), np.array([1, 9, 1])]

    dataset = ResamplingDataset(Pairs(list("abc")), size_ratio=2)
    first = np.array([{"a": 3, "b": 1, "c": 2}[item] for item in dataset])
    assert dataset.sizes[0].tolist() == first.tolist()
    assert first[dataset.ordered_indices()].tolist() == sorted(first)
