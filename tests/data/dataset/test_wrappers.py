"""Datasets that wrap, join, cut or draw from others, one by one, and the names of the package."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fairseq.data
from fairseq.data import (
    AppendTokenDataset,
    BaseWrapperDataset,
    ConcatDataset,
    ConcatSentencesDataset,
    FairseqDataset,
    FairseqIterableDataset,
    IdDataset,
    LeftPadDataset,
    ListDataset,
    LRUCacheDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    OffsetTokensDataset,
    PadDataset,
    PrependDataset,
    PrependTokenDataset,
    RawLabelDataset,
    ReplaceDataset,
    RightPadDataset,
    RollDataset,
    SortDataset,
    StripTokenDataset,
    TruncateDataset,
)
from fairseq.errors import DataError

ROWS = [[5, 6, 7], [8], [9, 10]]


def tokens(rows=ROWS) -> ListDataset:
    return ListDataset([torch.tensor(row) for row in rows], np.array([len(row) for row in rows]))


def lists(dataset) -> list:
    return [item.tolist() for item in dataset]


class Recorder(FairseqDataset):
    """Answers every question with something of its own, and remembers what it was told."""

    sizes = np.array([4, 2])
    supports_prefetch = True
    can_reuse_epoch_itr_across_epochs = False

    def __init__(self):
        super().__init__()
        self.told = []

    def __getitem__(self, index):
        return ("item", index)

    def __len__(self):
        return 2

    def collater(self, samples):
        return ("batch", samples)

    def num_tokens(self, index):
        return 40 + index

    def num_tokens_vec(self, indices):
        return 40 + indices

    def size(self, index):
        return 50 + index

    def ordered_indices(self):
        return np.array([1, 0])

    def attr(self, attr, index):
        return (attr, index)

    def prefetch(self, indices):
        self.told.append(("prefetch", indices))

    def set_epoch(self, epoch):
        self.told.append(("epoch", epoch))

    def get_batch_shapes(self):
        return "shapes"

    def batch_by_size(self, indices, **limits):
        return ("batches", indices, limits)

    def filter_indices_by_size(self, indices, max_sizes):
        return ("filtered", indices, max_sizes)


def test_base_wrapper_hands_everything_on():
    inner = Recorder()
    outer = BaseWrapperDataset(inner)
    assert outer[1] == ("item", 1) and len(outer) == 2
    assert outer.collater([1]) == ("batch", [1])
    assert outer.sizes is inner.sizes
    assert (outer.num_tokens(1), outer.size(1)) == (41, 51)
    assert outer.num_tokens_vec(np.array([1])).tolist() == [41]
    assert outer.ordered_indices().tolist() == [1, 0]
    assert outer.attr("lang", 1) == ("lang", 1)
    assert outer.get_batch_shapes() == "shapes"
    assert outer.batch_by_size([1], max_tokens=3) == ("batches", [1], {"max_tokens": 3})
    assert outer.filter_indices_by_size([1], 3) == ("filtered", [1], 3)
    assert outer.supports_prefetch and not outer.can_reuse_epoch_itr_across_epochs
    outer.prefetch([0])
    outer.set_epoch(3)
    assert inner.told == [("prefetch", [0]), ("epoch", 3)]


def test_base_wrapper_of_a_list():
    outer = BaseWrapperDataset([7, 8])
    assert outer.collater([7, 8]).tolist() == [7, 8]
    assert outer.ordered_indices().tolist() == [0, 1]
    assert not outer.supports_prefetch and outer.can_reuse_epoch_itr_across_epochs
    outer.set_epoch(2)
    with pytest.raises(NotImplementedError):
        outer.num_tokens_vec(np.array([0]))


def test_contract_of_the_bases():
    dataset = FairseqDataset()
    for call in (
        lambda: dataset[0],
        lambda: len(dataset),
        lambda: dataset.collater([]),
        lambda: dataset.num_tokens(0),
        lambda: dataset.num_tokens_vec(np.array([0])),
        lambda: dataset.size(0),
        lambda: dataset.prefetch([0]),
        lambda: iter(FairseqIterableDataset()),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert dataset.get_batch_shapes() is None
    assert dataset.supports_fetch_outside_dataloader and not dataset.supports_prefetch
    assert dataset.can_reuse_epoch_itr_across_epochs
    assert FairseqIterableDataset().can_reuse_epoch_itr_across_epochs
    dataset.epoch = 9
    assert dataset.attr("epoch", 0) == 9 and dataset.attr("nothing", 0) is None


@pytest.mark.parametrize(
    ("make", "expected", "sizes"),
    [
        (lambda d: PrependTokenDataset(d, 0), [[0, 5, 6, 7], [0, 8], [0, 9, 10]], [4, 2, 3]),
        (lambda d: AppendTokenDataset(d, 2), [[5, 6, 7, 2], [8, 2], [9, 10, 2]], [4, 2, 3]),
        (lambda d: PrependTokenDataset(d), ROWS, [3, 1, 2]),
        (lambda d: AppendTokenDataset(d), ROWS, [3, 1, 2]),
        (lambda d: TruncateDataset(d, 2), [[5, 6], [8], [9, 10]], [2, 1, 2]),
        (lambda d: OffsetTokensDataset(d, -4), [[1, 2, 3], [4], [5, 6]], [3, 1, 2]),
        (lambda d: RollDataset(d, 1), [[7, 5, 6], [8], [10, 9]], [3, 1, 2]),
        (
            lambda d: ConcatSentencesDataset(d, tokens(), d),
            [row * 3 for row in ROWS],
            [9, 3, 6],
        ),
    ],
)
def test_items_and_sizes(make, expected, sizes):
    dataset = make(tokens())
    assert lists(dataset) == expected
    assert dataset.sizes.tolist() == sizes
    assert [dataset.size(i) for i in range(3)] == [dataset.num_tokens(i) for i in range(3)] == sizes
    indices = np.arange(len(dataset))
    kept, ignored = dataset.filter_indices_by_size(indices, 2)
    assert kept.tolist() == [i for i in range(3) if sizes[i] <= 2] and len(kept) + len(ignored) == 3
    batches = dataset.batch_by_size(indices, max_tokens=max(sizes))
    assert all(len(b) * max(sizes[i] for i in b) <= max(sizes) for b in batches)
    assert lists(tokens()) == ROWS


def test_strip_token():
    rows = [[2, 2, 5, 2, 6, 2], [2, 2], [5], []]
    assert lists(StripTokenDataset(tokens(rows), 2)) == [[5, 2, 6], [], [5], []]


def test_replace_is_simultaneous_and_leaves_the_original_alone():
    data = tokens([[5, 6, 5, 6]])
    assert lists(ReplaceDataset(data, {5: 6, 6: 5}, [0])) == [[6, 5, 6, 5]]
    assert lists(ReplaceDataset(data, {5: 6, 6: 5}, [1])) == [[5, 5, 6, 5]]
    assert lists(ReplaceDataset(data, {5: 6, 6: 5}, [-1])) == [[6, 5, 6, 6]]
    assert lists(data) == [[5, 6, 5, 6]]
    pairs = ListDataset([(torch.tensor([5, 5]), torch.tensor([5, 5]))])
    assert [part.tolist() for part in ReplaceDataset(pairs, {5: 7}, [1, -1])[0]] == [[5, 7], [7, 5]]
    with pytest.raises(DataError, match="replace_map"):
        ReplaceDataset(data, {}, [0])


def test_prepend_dataset_replaces_the_first_token():
    data = tokens()
    assert lists(PrependDataset(data, lambda inner, i: 20 + i)) == [[20, 6, 7], [21], [22, 10]]
    assert lists(data) == ROWS
    pairs = ListDataset([(torch.tensor([5, 6]), "label")])
    source, label = PrependDataset(pairs, lambda inner, i: 1, ensure_first_token_is=5)[0]
    assert (source.tolist(), label) == ([1, 6], "label")
    with pytest.raises(DataError, match="sample 1 begins with token 8, not with 5"):
        list(PrependDataset(data, lambda inner, i: 0, ensure_first_token_is=5))


def test_padding():
    items = list(tokens())
    right = [[5, 6, 7], [8, 1, 1], [9, 10, 1]]
    left = [[5, 6, 7], [1, 1, 8], [1, 9, 10]]
    assert RightPadDataset(tokens(), 1).collater(items).tolist() == right
    assert LeftPadDataset(tokens(), 1).collater(items).tolist() == left
    assert PadDataset(tokens(), 1, left_pad=True).collater(items).tolist() == left
    longer = RightPadDataset(tokens(), 1, pad_length=4).collater(items)
    assert longer.tolist() == [[*row, 1] for row in right]
    assert lists(LeftPadDataset(tokens(), 1)) == ROWS


def test_counts_ids_and_labels():
    data = tokens()
    counts = NumelDataset(data)
    assert list(counts) == [3, 1, 2] and counts.collater([3, 1]).tolist() == [3, 1]
    assert NumelDataset(data, reduce=True).collater([3, 1]) == 4
    assert NumelDataset([np.zeros((2, 3))])[0] == 6
    ids = IdDataset()
    assert (ids[7], len(ids), ids.collater([7, 2]).tolist()) == (7, 0, [7, 2])
    samples = NumSamplesDataset()
    assert (samples[7], len(samples), samples.collater([1, 1])) == (1, 0, 2)
    labels = RawLabelDataset([0.5, 1.5])
    assert (labels[1], len(labels), labels.collater([0.5, 1.5]).tolist()) == (1.5, 2, [0.5, 1.5])


def test_sort_uses_the_last_key_first():
    data = tokens()
    keys = [np.array([2, 1, 0]), np.array([1, 0, 1])]
    assert SortDataset(data, keys).ordered_indices().tolist() == [1, 2, 0]
    assert SortDataset(data, keys[0]).ordered_indices().tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="keys of"):
        SortDataset(data, [np.arange(4)])


def test_lru_cache():
    reads = Counter()

    class Counting(BaseWrapperDataset):
        def __getitem__(self, index):
            reads[index] += 1
            return self.dataset[index]

    cached = LRUCacheDataset(Counting(list(range(20))))
    assert [cached[3], cached[3], cached[4]] == [3, 3, 4] and reads == {3: 1, 4: 1}
    for index in range(10, 17):
        cached[index], cached[3]
    assert reads[3] == 1  # used again and again, so never the oldest
    assert cached[4] == 4 and reads[4] == 2
    cached.set_epoch(2)
    assert cached[3] == 3 and reads[3] == 2


def nested():
    return NestedDictionaryDataset(
        {
            "id": IdDataset(),
            "net_input": {
                "src_tokens": RightPadDataset(tokens(), 1),
                "src_lengths": NumelDataset(tokens()),
            },
            "extra": [RawLabelDataset([1, 2, 3]), RawLabelDataset([4, 5, 6])],
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(tokens(), reduce=True),
        },
        sizes=[np.array([3, 1, 2])],
    )


def test_nested_dictionary():
    dataset = nested()
    assert len(dataset) == 3
    assert dataset[1]["net_input.src_tokens"].tolist() == [8] and dataset[1]["extra.[1]"] == 5
    batch = dataset.collater([dataset[0], dataset[2]])
    assert batch["id"].tolist() == [0, 2]
    assert batch["net_input"]["src_tokens"].tolist() == [[5, 6, 7], [9, 10, 1]]
    assert batch["net_input"]["src_lengths"].tolist() == [3, 2]
    assert [part.tolist() for part in batch["extra"]] == [[1, 3], [4, 6]]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 5)
    assert dataset.collater([]) == {}
    assert (dataset.size(0), dataset.num_tokens(0)) == (3, 3)
    assert dataset.num_tokens_vec(np.array([2, 0])).tolist() == [2, 3]
    assert dataset.filter_indices_by_size(np.arange(3), 2)[0].tolist() == [1, 2]


def test_nested_dictionary_of_two_lengths_and_foreign_datasets():
    sizes = (np.array([3, 1]), np.array([2, 9]))
    foreign = torch.utils.data.TensorDataset(torch.arange(2))
    dataset = NestedDictionaryDataset({"x": foreign}, sizes=sizes)
    assert (dataset.size(1), dataset.num_tokens(1)) == ((1, 9), 9)
    assert dataset.num_tokens_vec(np.arange(2)).tolist() == [3, 9]
    assert dataset.filter_indices_by_size(np.arange(2), (9, 5))[1] == [1]
    assert dataset.collater([dataset[0], dataset[1]])["x"][0].tolist() == [0, 1]


def test_nested_dictionary_tells_its_datasets():
    one, two = Recorder(), Recorder()
    dataset = NestedDictionaryDataset({"a": one, "b": {"c": two}, "d": RawLabelDataset([1, 2])})
    dataset.set_epoch(4)
    dataset.prefetch([1])
    assert one.told == two.told == [("epoch", 4), ("prefetch", [1])]
    assert dataset.supports_prefetch and not dataset.can_reuse_epoch_itr_across_epochs


def test_nested_dictionary_refusals():
    with pytest.raises(DataError, match=r"'a\.b', found int"):
        NestedDictionaryDataset({"a": {"b": 3}})
    with pytest.raises(DataError, match=r"'x': 3, 'y': 1"):
        NestedDictionaryDataset({"x": tokens(), "y": tokens([[1]]), "z": IdDataset()})


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=5))
def test_concat_dataset(parts):
    base, datasets, expected = 0, [], []
    for length, ratio in parts:
        values = list(range(base, base + length))
        base += length
        datasets.append(tokens([[value] * (value % 3) for value in values]))
        expected += [[value] * (value % 3) for value in values] * ratio
    dataset = ConcatDataset(datasets, [ratio for _, ratio in parts])
    assert len(dataset) == len(expected) and lists(dataset) == expected
    assert dataset.sizes.tolist() == [len(row) for row in expected]
    assert [dataset.size(i) for i in range(len(dataset))] == dataset.sizes.tolist()
    assert [dataset[-1 - i].tolist() for i in range(len(dataset))] == expected[::-1]
    order = dataset.ordered_indices()
    assert order.tolist() == sorted(range(len(expected)), key=lambda i: len(expected[i]))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_concat_dataset_asks_the_right_part():
    one, two = Recorder(), Recorder()
    two.lang = "de"
    dataset = ConcatDataset([one, two], sample_ratios=2)
    assert dataset[5] == ("item", 1) and dataset.size(6) == 50 and dataset.num_tokens(7) == 51
    assert dataset.collater([3]) == ("batch", [3])
    assert dataset.attr("lang", 4) == "de" and dataset.attr("lang", 1) is None
    dataset.prefetch([0, 3, 6])
    dataset.set_epoch(2)
    assert one.told == [("prefetch", [0, 1]), ("epoch", 2)]
    assert two.told == [("prefetch", [0]), ("epoch", 2)]
    assert dataset.supports_prefetch and not dataset.can_reuse_epoch_itr_across_epochs
    with pytest.raises(DataError, match="1 datasets, 2 ratios"):
        ConcatDataset([one], [1, 2])
    plain = ConcatDataset([[1], [2]])
    assert plain.collater([1, 2]).tolist() == [1, 2]


def test_concat_sentences_asks_all():
    one, two = Recorder(), Recorder()
    dataset = ConcatSentencesDataset(one, two)
    assert dataset.ordered_indices().tolist() == [1, 0]
    assert dataset.collater([3]) == ("batch", [3])
    dataset.set_epoch(2)
    dataset.prefetch([0])
    assert one.told == two.told == [("epoch", 2), ("prefetch", [0])]
    assert dataset.supports_prefetch
    with pytest.raises(DataError, match="different numbers"):
        ConcatSentencesDataset(one, tokens())


def test_wrappers_survive_pickling():
    dataset = nested()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[2]["net_input.src_tokens"].tolist() == [9, 10]


def test_every_public_name_resolves():
    for name in fairseq.data.__all__:
        assert getattr(fairseq.data, name) is not None, name
    assert set(fairseq.data.__all__) <= set(dir(fairseq.data))
    assert fairseq.data.batches.epochs is importlib.import_module("fairseq.data.batches.epochs")
    with pytest.raises(AttributeError, match="no attribute 'NoSuchDataset'"):
        fairseq.data.NoSuchDataset  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import sys, fairseq.data; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
