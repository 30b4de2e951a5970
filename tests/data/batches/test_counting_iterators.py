"""Counting, grouping, sharding and buffering, alone and on top of each other."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq.data.batches.epochs import (
    BufferedIterator,
    CountingIterator,
    GroupedIterator,
    ShardedIterator,
)
from fairseq.errors import ConfigError


def check_counting(reference, itr):
    assert itr.has_next() and itr.n == 0 and len(itr) == 10
    assert (next(itr), itr.n) == (reference[0], 1)
    assert (next(itr), itr.n) == (reference[1], 2)
    assert itr.skip(3).n == 5
    assert next(itr) == reference[5]
    itr.skip(2)
    assert itr.n == 8
    assert list(itr) == reference[8:]
    assert not itr.has_next() and itr.n == len(itr)
    itr.skip(3)
    assert itr.n == 10


def test_counting():
    check_counting(list(range(10)), CountingIterator(range(10)))
    check_counting(list(range(10)), CountingIterator(BufferedIterator(3, range(10))))
    reference = list(GroupedIterator(range(30), 3))
    check_counting(reference, GroupedIterator(range(30), 3))
    reference = list(ShardedIterator(range(30), 3, 0))
    check_counting(reference, ShardedIterator(range(30), 3, 0))


def test_counting_another_length():
    assert list(CountingIterator(range(10), total=8)) == list(range(8))
    with pytest.raises(IndexError, match="length 12, but exhausted at position 10"):
        list(CountingIterator(range(10), total=12))
    outer = CountingIterator(CountingIterator(range(10)).skip(4))
    assert (outer.n, len(outer), list(outer)) == (4, 10, [4, 5, 6, 7, 8, 9])


def test_take():
    for make in (CountingIterator, lambda items: CountingIterator(BufferedIterator(2, items))):
        itr = make(range(10)).take(5)
        assert len(itr) == 5 and list(itr) == [0, 1, 2, 3, 4]
        itr = make(range(10)).take(5)
        assert [next(itr), next(itr), next(itr.skip(2))] == [0, 1, 4] and not itr.has_next()
    buffered = BufferedIterator(2, range(10))
    CountingIterator(buffered).take(5)
    assert len(buffered) == 5 and list(buffered) == [0, 1, 2, 3, 4]
    buffered = BufferedIterator(2, range(4, 10))
    itr = CountingIterator(buffered, start=4).take(5)
    assert (len(itr), len(buffered), list(itr)) == (5, 1, [4])
    with pytest.raises(StopIteration):
        next(buffered)


def test_grouping():
    assert list(GroupedIterator(range(5), 1)) == [[0], [1], [2], [3], [4]]
    assert list(GroupedIterator(range(10), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    short = GroupedIterator(range(10), 4, skip_remainder_batch=True)
    assert (len(short), list(short)) == (2, [[0, 1, 2, 3], [4, 5, 6, 7]])
    inner = CountingIterator(range(10))
    list(GroupedIterator(inner, 4, skip_remainder_batch=True))
    assert not inner.has_next()


@given(length=st.integers(0, 20), done=st.integers(0, 20), size=st.integers(1, 6))
def test_grouping_the_rest_loses_nothing(length, done, size):
    inner = CountingIterator(range(length))
    inner.skip(done)
    groups = GroupedIterator(inner, size)
    assert groups.n == -(-inner.n // size)
    assert [x for group in groups for x in group] == list(range(length))[done:]
    assert groups.n == len(groups)


def test_sharding():
    assert list(ShardedIterator(range(10), 1, 0)) == list(range(10))
    assert list(ShardedIterator(range(10), 3, 0)) == [0, 3, 6, 9]
    assert list(ShardedIterator(range(10), 3, 1)) == [1, 4, 7, None]
    assert list(ShardedIterator(range(10), 3, 2, fill_value=[])) == [2, 5, 8, []]
    for shard in (-1, 3):
        with pytest.raises(ConfigError, match="shard_id must be between 0 and 2"):
            ShardedIterator(range(10), 3, shard)


def test_buffering_passes_errors_on_and_ends_its_thread():
    def failing():
        yield 1
        raise KeyError("broken")

    class Failing:
        def __iter__(self):
            return failing()

        def __len__(self):
            return 5

    itr = BufferedIterator(2, Failing())
    assert next(itr) == 1
    with pytest.raises(KeyError, match="broken"):
        next(itr)
    with pytest.raises(StopIteration):
        next(itr)
    short = CountingIterator(BufferedIterator(2, CountingIterator(range(3))), total=5)
    with pytest.raises(IndexError):
        list(short)
    before = threading.active_count()
    abandoned = BufferedIterator(2, range(1000))
    next(abandoned)
    assert threading.active_count() == before + 1
    del abandoned
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
