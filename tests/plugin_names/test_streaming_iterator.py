"""Epochs over a dataset that can only be read in sequence."""

from __future__ import annotations

import pytest

from fairseq.data import FairseqIterableDataset, ListDataset, StreamingEpochBatchIterator
from fairseq.errors import DataError


class Stream(FairseqIterableDataset):
    def __init__(self, length=7):
        super().__init__()
        self.length, self.epoch = length, 0

    def __iter__(self):
        return iter(range(100 * self.epoch, 100 * self.epoch + self.length))

    def __len__(self):
        return self.length

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("buffer_size", [0, 2])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_streaming(num_workers, buffer_size):
    options = {"num_workers": num_workers, "buffer_size": buffer_size, "collate_fn": list}
    itr = StreamingEpochBatchIterator(Stream(), 3, **options)
    assert len(itr) == 3 and itr.next_epoch_idx == 1 and itr.iterations_in_epoch == 0
    assert list(itr.next_epoch_itr()) == [[100, 101, 102], [103, 104, 105], [106]]
    assert itr.end_of_epoch() and itr.state_dict() == {"epoch": 2}
    assert next(itr.next_epoch_itr()) == [200, 201, 202]
    assert itr.iterations_in_epoch == 1 and itr.state_dict() == {"epoch": 2}
    assert itr.first_batch == "DUMMY"
    other = StreamingEpochBatchIterator(Stream(), 3, **options)
    other.load_state_dict({"epoch": 5})
    assert next(other.next_epoch_itr()) == [500, 501, 502]


def test_streaming_refusals():
    with pytest.raises(DataError, match="IterableDataset"):
        StreamingEpochBatchIterator(ListDataset([1]))
    with pytest.raises(DataError, match="__len__"):
        StreamingEpochBatchIterator(FairseqIterableDataset())
