"""Blocks: the original's, a sentence by sentence reference, and streams of many tokens."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.data import ListDataset, MMapIndexedDataset, TokenBlockDataset
from fairseq.data.datasets.block_boundaries import BREAK_MODES, block_slices
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import ConfigError, DataError, UnsupportedError

PAD, EOS = 1, 2


def sentences(flat: np.ndarray, sizes: np.ndarray) -> ListDataset:
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return ListDataset([torch.from_numpy(part.astype(np.int64)) for part in parts], sizes)


class FlatDataset:
    """A dataset that offers its stream, and fails if sentences are read one by one."""

    def __init__(self, flat: np.ndarray, sizes: np.ndarray) -> None:
        self.flat = flat.astype(np.uint16)
        self.sizes = sizes

    def tokens(self, start: int, end: int) -> np.ndarray:
        return self.flat[start:end]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> torch.Tensor:
        raise AssertionError("the stream should have been used")


@pytest.mark.parametrize("version", ["fb", "eify"])
@pytest.mark.parametrize("make", [sentences, FlatDataset], ids=["sentences", "flat"])
def test_equals_the_original(shared, version, make):
    golden = np.load(shared / f"compat/train_log/{version}_token_block.npz")
    dataset = make(golden["flat"], golden["sizes"])
    cases = sorted({re.match(r"(.*_bs(\d+)_sep(\d+))_", k)[0] for k in golden.files if "_bs" in k})
    assert len(cases) == 12
    for case in cases:
        mode, block_size, separator = re.fullmatch(r"(.*)_bs(\d+)_sep(\d+)_", case).groups()
        arguments = (dataset, golden["sizes"], int(block_size), PAD, EOS)
        options = {"break_mode": mode, "document_sep_len": int(separator)}
        blocks = TokenBlockDataset(*arguments, **options)
        assert np.array_equal(blocks.slice_indices, golden[case + "slice"]), case
        assert np.array_equal(blocks.block_to_dataset_index, golden[case + "b2d"]), case
        assert np.array_equal(blocks.sizes, golden[case + "sizes"]), case
        assert np.array_equal(torch.cat(list(blocks)), golden[case + "items"]), case
        if case + "source" not in golden:
            continue
        triples = list(TokenBlockDataset(*arguments, **options, include_targets=True))
        for name, parts in zip(
            ("source", "future_target", "past_target"), zip(*triples, strict=True), strict=True
        ):
            if name == "past_target" and any(len(part) == 1 for part in parts):
                # There the original's past is longer than the block.
                assert len(golden[case + name]) > blocks.sizes.sum()
                continue
            assert np.array_equal(torch.cat(parts), golden[case + name]), (case, name)


def reference_blocks(sizes, mode, block_size, separator):
    """Read sentences one by one, as the rules of each mode say."""
    total = sum(sizes)
    if mode == "none":
        return [(i, min(i + block_size, total)) for i in range(0, total, block_size)]
    blocks, begin, end = [], 0, 0
    for size in sizes:
        is_separator = mode == "complete_doc" and size == separator
        if mode == "eos" or is_separator or (end > begin and end + size - begin > block_size):
            blocks.append((begin, end))
            begin = end
        end += size
        if is_separator:
            begin = end
    blocks.append((begin, end))
    if mode == "eos":
        return blocks[1:]
    return [(b, e) for b, e in blocks if e - b > (mode == "complete_doc")]


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    mode=st.sampled_from(BREAK_MODES),
    block_size=st.integers(1, 12),
    separator=st.integers(0, 3),
)
def test_equals_the_rules(sizes, mode, block_size, separator):
    found = block_slices(np.array(sizes), mode, block_size, separator)
    assert found.dtype == np.int64
    assert [tuple(pair) for pair in found.tolist()] == reference_blocks(
        sizes, mode, block_size, separator
    )


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any),
    mode=st.sampled_from(BREAK_MODES),
    block_size=st.integers(1, 9),
    targets=st.booleans(),
)
def test_stream_and_sentences_give_the_same(sizes, mode, block_size, targets):
    sizes = np.array(sizes)
    flat = np.arange(10, 10 + sizes.sum())
    options = {"break_mode": mode, "include_targets": targets}
    one, two = (
        TokenBlockDataset(make(flat, sizes), sizes, block_size, PAD, EOS, **options)
        for make in (sentences, FlatDataset)
    )
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        if targets:
            assert all(map(torch.equal, left, right))
            assert {len(part) for part in left} == {len(left[1])}
        else:
            assert torch.equal(left, right)


def test_shifted_targets():
    data = ListDataset([torch.tensor([5, 6, 7, 8, 9]), torch.tensor([4])])
    blocks = TokenBlockDataset(data, [5, 1], 2, PAD, EOS, include_targets=True)
    assert [[part.tolist() for part in item] for item in blocks] == [
        [[EOS, 5], [5, 6], [PAD, EOS]],
        [[6, 7], [7, 8], [5, 6]],
        [[8, 9], [9, 4], [7, 8]],
    ]
    single = TokenBlockDataset(data, [5, 1], 1, PAD, EOS, include_targets=True)
    assert [part.tolist() for part in single[0]] == [[EOS], [5], [PAD]]


@pytest.mark.parametrize("mode", ["complete", "eos", "none"])
def test_more_than_four_billion_tokens(mode):
    data = [torch.arange(10_000)] * 430_000
    blocks = TokenBlockDataset(data, [10_000] * 430_000, 10_000, PAD, EOS, break_mode=mode)
    assert torch.equal(blocks[-1], data[0])
    assert blocks.slice_indices[-1].tolist() == [4_299_990_000, 4_300_000_000]


def test_sizes_do_not_overflow_sixteen_bits():
    data = [torch.arange(70_000), torch.arange(3)]
    blocks = TokenBlockDataset(data, [70_000, 3], None, PAD, EOS, break_mode="eos")
    assert blocks.sizes.tolist() == [70_000, 3]
    assert blocks.num_tokens(0) == len(blocks[0]) == 70_000


def test_binary_file_and_pickle(tmp_path):
    items = [[4, 5, 6], [7], [8, 9, 10, 11], [12, 13]]
    with make_builder(tmp_path / "train.bin", "mmap", vocab_size=100) as builder:
        for item in items:
            builder.add_item(torch.tensor(item))
        builder.finalize(tmp_path / "train.idx")
    data = MMapIndexedDataset(tmp_path / "train")
    blocks = TokenBlockDataset(data, data.sizes, 4, PAD, EOS)
    expected = [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    assert [block.tolist() for block in blocks] == expected
    assert blocks[0].dtype == torch.int64
    packed = pickle.dumps(blocks)
    assert [block.tolist() for block in pickle.loads(packed)] == expected


def test_old_files_store_every_token_plus_one(tmp_path):
    from fairseq.data.storage.indexed_dataset import IndexedDataset

    with make_builder(tmp_path / "train.bin", "cached") as builder:
        builder.add_item(torch.tensor([4, 5, 6]))
        builder.add_item(torch.tensor([7, 8]))
        builder.finalize(tmp_path / "train.idx")
    data = IndexedDataset(tmp_path / "train", fix_lua_indexing=True)
    blocks = TokenBlockDataset(data, data.sizes, 4, PAD, EOS)
    assert [block.tolist() for block in blocks] == [[4, 5, 6, 7], [8]]


def test_prefetch_names_the_sentences():
    asked = []
    data = ListDataset([torch.arange(3)] * 6)
    data.dataset = SimpleList(data.dataset, asked)
    blocks = TokenBlockDataset(data, [3] * 6, 4, PAD, EOS)
    assert blocks.supports_prefetch
    blocks.prefetch([0, 3])  # tokens 0 to 3 and 12 to 15
    assert [array.tolist() for array in asked] == [[0, 1, 4, 5]]


class SimpleList(list):
    supports_prefetch = True

    def __init__(self, items, asked):
        super().__init__(items)
        self.asked = asked

    def prefetch(self, indices):
        self.asked.append(indices)


def test_refusals():
    data = ListDataset([torch.arange(3)])
    with pytest.raises(DataError, match="2 sizes for a dataset of 1"):
        TokenBlockDataset(data, [3, 1], 4, PAD, EOS)
    with pytest.raises(DataError, match="0 sizes"):
        TokenBlockDataset(ListDataset([]), [], 4, PAD, EOS)
    with pytest.raises(DataError, match="add up to 3 tokens, the dataset has 4"):
        TokenBlockDataset(FlatDataset(np.arange(4), np.array([3])), [3], 4, PAD, EOS)
    with pytest.raises(ConfigError, match="did you mean 'complete_doc'"):
        TokenBlockDataset(data, [3], 4, PAD, EOS, break_mode="complete-doc")
    with pytest.raises(ConfigError, match="positive block size"):
        TokenBlockDataset(data, [3], None, PAD, EOS)
    with pytest.raises(UnsupportedError, match="plasma"):
        TokenBlockDataset(data, [3], 4, PAD, EOS, use_plasma_view=True)


def test_attributes_come_from_the_wrapped_dataset():
    inner = ListDataset([torch.arange(3)])
    inner.attr = lambda name, index: (name, index)
    assert TokenBlockDataset(inner, [3], 4, PAD, EOS).attr("lang", 0) == ("lang", 0)
    assert TokenBlockDataset([torch.arange(3)], [3], 4, PAD, EOS).attr("lang", 0) is None
