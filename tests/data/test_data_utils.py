"""Batching, filtering, collating, seeding and opening: goldens, references and refusals."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.data import ConcatDataset, FairseqDataset, ListDataset, collate
from fairseq.data.batches.cut import batch_by_size_fn, batch_by_size_vec
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import ConfigError, DataError, UnsupportedError

GOLDEN_LENGTHS = [3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 9, 9]


def limit(text: str) -> int | None:
    return None if text == "None" else int(text)


@pytest.mark.parametrize(("version", "drop"), [("fb", True), ("eify", False)])
def test_batches_equal_the_original(shared, version, drop):
    golden = np.load(shared / f"compat/train_log/{version}_batch_by_size.npz")
    sizes = golden["sizes"]
    cases = [k.removesuffix("_len") for k in golden.files if k.endswith("_len")]
    assert len(cases) == 27
    for case in cases:
        order, *limits = re.fullmatch(r"(\w+)_mt(\w+)_ms(\w+)_mult(\d+)", case).groups()
        indices = golden[f"idx_{order}"]
        max_tokens, max_sentences, multiple = map(limit, limits)
        for vec in (None, sizes[indices]):
            batches = collate.batch_by_size(
                indices, sizes.__getitem__, vec, max_tokens, max_sentences, multiple, None, drop
            )
            assert [len(batch) for batch in batches] == golden[f"{case}_len"].tolist(), case
            assert np.array_equal(np.concatenate(batches), golden[f"{case}_flat"]), case


@pytest.mark.parametrize(
    ("max_tokens", "max_sentences", "multiple", "expected"),
    [
        (20, None, 1, [5, 3, 2, 2]),
        (20, None, 2, [4, 2, 2, 2, 2]),
        (40, None, 4, [4, 4, 4]),
        (None, 5, 1, [5, 5, 2]),
        (None, 5, 8, [5, 5]),
    ],
)
def test_batch_lengths_of_the_main_branch(max_tokens, max_sentences, multiple, expected):
    batches = collate.batch_by_size(
        np.arange(12),
        GOLDEN_LENGTHS.__getitem__,
        None,
        max_tokens,
        max_sentences,
        multiple,
        drop_trailing=True,
    )
    assert [len(batch) for batch in batches] == expected


def reference_batches(lengths, max_tokens, max_sentences, multiple):
    """Read samples one by one; cut at the last allowed place before the one that does not fit."""

    def fits(batch):
        return (max_sentences <= 0 or len(batch) <= max_sentences) and (
            max_tokens <= 0 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
        )

    batches, queue = [], []
    for i in range(len(lengths)):
        queue.append(i)
        while not fits(queue):
            allowed = [n for n in range(1, len(queue)) if n < multiple or n % multiple == 0]
            cut = max(n for n in allowed if fits(queue[:n]))
            batches.append(queue[:cut])
            queue = queue[cut:]
    cut = len(queue) if len(queue) < multiple else len(queue) - len(queue) % multiple
    return [batch for batch in [*batches, queue[:cut], queue[cut:]] if batch]


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=40),
    max_tokens=st.sampled_from([-1, 0, 12, 13, 20, 37, 100]),
    max_sentences=st.sampled_from([-1, 0, 1, 3, 8, 9]),
    multiple=st.integers(1, 9),
)
def test_batches_equal_the_rules(lengths, max_tokens, max_sentences, multiple):
    indices = np.arange(len(lengths))[::-1]
    backwards = lengths[::-1]
    found = batch_by_size_vec(indices, np.array(backwards), max_tokens, max_sentences, multiple)
    rows = reference_batches(backwards, max_tokens, max_sentences, multiple)
    assert [b.tolist() for b in found] == [indices[row].tolist() for row in rows]
    same = batch_by_size_fn(indices, lengths.__getitem__, max_tokens, max_sentences, multiple)
    assert [b.tolist() for b in same] == [b.tolist() for b in found]


def test_empty_samples_fit_into_any_batch():
    for lengths, rows in (
        ([0] * 9, [[*range(9)]]),
        ([1, 0, 0, 1, 0, 0, 0], [[0], [1, 2], [3], [4, 5, 6]]),
    ):
        found = batch_by_size_vec(np.arange(len(lengths)), lengths, 1, None, 1)
        assert [b.tolist() for b in found] == rows


def test_batching_refuses_what_cannot_be():
    with pytest.raises(DataError, match=r"max_tokens=8: sample 10 has 9 tokens \(2 such"):
        collate.batch_by_size(np.arange(12), GOLDEN_LENGTHS.__getitem__, max_tokens=8)
    with pytest.raises(UnsupportedError, match="TPU"):
        collate.batch_by_size([0], len, fixed_shapes=[(1, 2)])
    assert collate.batch_by_size([], len, drop_trailing=True) == []
    assert [b.tolist() for b in collate.batch_by_size(iter([2, 0]), lambda i: 1)] == [[2, 0]]


class Sized(FairseqDataset):
    def __init__(self, *sizes, arrays=False):
        super().__init__()
        self._lengths = sizes
        if arrays:
            arrays = [np.array(lengths) for lengths in sizes]
            self.sizes = arrays[0] if len(arrays) == 1 else arrays

    def __len__(self):
        return len(self._lengths[0])

    def size(self, index):
        lengths = tuple(lengths[index] for lengths in self._lengths)
        return lengths[0] if len(lengths) == 1 else lengths

    def num_tokens(self, index):
        return self._lengths[0][index]


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize(
    ("max_sizes", "kept"),
    [(5, [0, 2]), ((4, 9), [0, 1]), ((None, 3), [0, 2]), (None, [0, 1, 2]), ([9, None], [0, 1, 2])],
)
def test_filter_two_lengths(arrays, max_sizes, kept):
    dataset = Sized([1, 2, 5], [3, 9, 2], arrays=arrays)
    found, ignored = dataset.filter_indices_by_size(np.arange(3), max_sizes)
    assert found.tolist() == kept
    assert sorted(found.tolist() + ignored) == [0, 1, 2]


@pytest.mark.parametrize("arrays", [False, True])
def test_filter_one_length(arrays, caplog):
    dataset = Sized([1, 8, 5, 9], arrays=arrays)
    order = np.array([3, 2, 1, 0])
    for limits in (5, 5.0, (5,), (9, 5)):
        found, ignored = dataset.filter_indices_by_size(order, limits)
        assert (found.tolist(), ignored) == ([2, 0], [3, 1])
    with caplog.at_level(logging.WARNING):
        assert collate.filter_by_size(order, dataset, 5).tolist() == [2, 0]
    assert "2 samples are too long" in caplog.text and "[3, 1]" in caplog.text
    with pytest.raises(DataError, match="--skip-invalid-size-inputs-valid-test"):
        collate.filter_by_size(order, dataset, 5, raise_exception=True)


def test_filter_pairs():
    source, target, order = np.array([1, 2, 5]), np.array([3, 9, 2]), np.arange(3)
    function = collate.filter_paired_dataset_indices_by_size
    assert function(source, target, order, (4, 8))[0].tolist() == [0]
    assert function(source, target, order, 5)[0].tolist() == [0, 2]
    assert function(source, None, order, (4, 8))[1] == [2]
    assert function(source, target, order, None)[1] == []


def test_dataset_batches_itself():
    dataset = Sized([1, 8, 5, 9])
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=16)
    assert [b.tolist() for b in batches] == [[0, 1], [2], [3]]
    batches = dataset.batch_by_size(
        dataset.ordered_indices(), None, 3, required_batch_size_multiple=2, drop_trailing=True
    )
    assert [b.tolist() for b in batches] == [[0, 1], [2, 3]]


COLLATE_CASES = {
    "right": {},
    "left": {"left_pad": True},
    "pad8": {"pad_to_multiple": 8},
    "to20": {"pad_to_length": 70},
    "bsz12": {"pad_to_bsz": 12},
}


@pytest.mark.parametrize("version", ["fb", "eify"])
def test_collate_equals_the_original(shared, version):
    folder = shared / "compat/train_log"
    golden = np.load(folder / f"{version}_misc.npz")
    items = np.load(folder / f"{version}_mask_tokens.npz")
    values = torch.from_numpy(items["flat"]).split(items["lens"].tolist())
    for name, options in COLLATE_CASES.items():
        found = collate.collate_tokens(values, 1, **options)
        assert np.array_equal(found, golden[f"collate_{name}"]), name


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(3, 2**40), max_size=7), min_size=1, max_size=5),
    eos=st.sampled_from([None, 2]),
    left=st.booleans(),
    move=st.booleans(),
    length=st.sampled_from([None, 0, 5, 9]),
    multiple=st.integers(1, 8),
    rows_wanted=st.sampled_from([None, 1, 7]),
)
def test_collate_equals_the_rules(rows, eos, left, move, length, multiple, rows_wanted):
    found = collate.collate_tokens(
        [torch.tensor(row, dtype=torch.int64) for row in rows],
        1,
        eos,
        left,
        move,
        pad_to_length=length,
        pad_to_multiple=multiple,
        pad_to_bsz=rows_wanted,
    )
    width = max(*map(len, rows), length or 0, 0)
    while width % multiple:
        width += 1
    expected = [[1] * width for _ in range(max(len(rows), rows_wanted or 0))]
    for to, row in zip(expected, rows, strict=False):
        if move and row:
            row = [row[-1] if eos is None else eos, *row[:-1]]
        place = width - len(row) if left else 0
        to[place : place + len(row)] = row
    assert found.tolist() == expected
    assert found.dtype == torch.int64


@pytest.mark.parametrize("version", ["fb", "eify"])
def test_numpy_seed_equals_the_original(shared, version):
    golden = np.load(shared / f"compat/train_log/{version}_misc.npz")
    for name, seeds in {"1": (1,), "1_1": (1, 1), "1_2_3": (1, 2, 3)}.items():
        with collate.numpy_seed(*seeds):
            assert np.array_equal(np.random.rand(5), golden[f"numpy_seed_{name}"])
    with collate.numpy_seed(1):
        assert np.array_equal(np.random.permutation(20), golden["numpy_seed_1_perm20"])


def test_numpy_seed_restores_the_state():
    np.random.seed(5)
    expected = np.random.rand(4)
    np.random.seed(5)
    first = np.random.rand()
    with pytest.raises(KeyError), collate.numpy_seed(1, 2):
        np.random.rand()
        raise KeyError
    second = np.random.rand()
    with collate.numpy_seed(None):
        third = np.random.rand()
    assert [first, second, third, np.random.rand()] == expected.tolist()


def write(path, items):
    with make_builder(f"{path}.bin", "mmap", vocab_size=100) as builder:
        for item in items:
            builder.add_item(torch.tensor(item))
        builder.finalize(f"{path}.idx")


def test_load_indexed_dataset(tmp_path, caplog):
    path = str(tmp_path / "valid")
    assert collate.load_indexed_dataset(path) is None
    write(path, [[4, 5], [6]])
    assert collate.load_indexed_dataset(path, combine=True)[1].tolist() == [6]
    write(path + "1", [[7, 8]])
    write(path + "3", [[9]])  # valid2 is missing, so that this one is not reached
    with caplog.at_level(logging.INFO):
        alone = collate.load_indexed_dataset(path)
    assert len(alone) == 2
    assert f"loaded 2 examples from: {path}" in caplog.text
    both = collate.load_indexed_dataset(path, combine=True)
    assert isinstance(both, ConcatDataset)
    assert [item.tolist() for item in both] == [[4, 5], [6], [7, 8]]
    assert both.sizes.tolist() == [2, 1, 2]


def config(folder, **dataset):
    defaults = {
        "ignore_unused_valid_subsets": False,
        "combine_valid_subsets": None,
        "disable_validation": False,
        "valid_subset": "valid",
    }
    return SimpleNamespace(
        dataset=SimpleNamespace(**(defaults | dataset)), task=SimpleNamespace(data=folder)
    )


def test_unused_validation_sets_are_refused(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, names in ((first, ["valid", "train"]), (second, ["valid", "valid1", "valid12"])):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.bin").touch()
            (folder / f"{name}.idx").touch()
    check = collate.raise_if_valid_subsets_unintentionally_ignored
    check(config(str(first)))
    both = f"{first}:{second}"
    with pytest.raises(ConfigError, match=r"\['valid1', 'valid12'\].*--combine-val"):
        check(config(both))
    with pytest.raises(ConfigError, match=r"\['valid12'\]"):
        check(config(both, valid_subset="valid,valid1"))
    check(config(both, valid_subset="valid,valid1,valid12"))
    for flag in ("ignore_unused_valid_subsets", "combine_valid_subsets", "disable_validation"):
        check(config(both, **{flag: True}))
    check(config(str(tmp_path / "missing")))
    without_data = config(both)
    del without_data.task.data
    check(without_data)


def test_list_dataset_has_no_sizes_until_given():
    dataset = ListDataset(["ab", "c"], [2, 1])
    assert [b.tolist() for b in dataset.batch_by_size(dataset.ordered_indices(), 2)] == [[0], [1]]
    assert list(dataset) == ["ab", "c"] and dataset.collater(["ab"]) == ["ab"]
