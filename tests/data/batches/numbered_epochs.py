"""A dataset of numbers and epochs over it, for the tests of iterators."""

from __future__ import annotations

import torch

from fairseq.data import EpochBatchIterator


class Numbers(torch.utils.data.Dataset):
    """Item i of epoch e is (e, i)."""

    def __init__(self, length=42):
        self.length = length
        self.epoch = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return (self.epoch, index)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def collater(self, samples):
        return {"ids": [i for _, i in samples], "epochs": {e for e, _ in samples}}


def three_each(length=42):
    return [list(range(i, min(i + 3, length))) for i in range(0, length, 3)]


def epochs(dataset=None, batches=None, **options):
    dataset = Numbers() if dataset is None else dataset
    batches = three_each(len(dataset)) if batches is None else batches
    return EpochBatchIterator(dataset, dataset.collater, batches, **options)


def ids(itr):
    return [batch["ids"] for batch in itr]


class Cached(Numbers):
    supports_prefetch = True
    asked = None

    def prefetch(self, indices):
        self.asked = indices
