"""Binary datasets: the documented bytes, round trips, and refusal of anything damaged."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import make_corpus

from fairseq.data.batches.read import BatchLoader
from fairseq.data.datasets.token_blocks import TokenBlockDataset
from fairseq.data.storage import indexed_dataset
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import (
    IndexedCachedDataset,
    IndexedDataset,
    IndexedDatasetBuilder,
    IndexedRawTextDataset,
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    best_fitting_int_dtype,
    data_file_path,
    dataset_exists,
    index_file_path,
    infer_dataset_impl,
    make_builder,
    make_dataset,
)
from fairseq.data.storage.load import load_lines
from fairseq.errors import ConfigError, DataError, MissingFileError, UnsupportedError

ITEMS = [[4, 5, 2], [6, 2]]
MMAP_BIN = "04000500020006000200"
MMAP_IDX = (
    "4d4d49444944580000 0100000000000000 08 0200000000000000"
    "03000000 02000000 0000000000000000 0600000000000000"
)
LEGACY_BIN = "05000000 06000000 03000000 07000000 03000000"
LEGACY_IDX = b"TNTIDX\0\0" + struct.pack("<5Q8q", 1, 4, 4, 2, 2, 0, 1, 2, 0, 3, 5, 3, 2)

corpora = st.lists(st.lists(st.integers(0, 65498), max_size=6), max_size=12)


def write(prefix, items, impl="mmap", vocab_size=24):
    with make_builder(data_file_path(prefix), impl, vocab_size) as builder:
        for item in items:
            builder.add_item(torch.tensor(item, dtype=torch.int32))
        builder.finalize(index_file_path(prefix))
    return prefix


def open_fixed(prefix, impl):
    dataset = make_dataset(prefix, impl, fix_lua_indexing=True)
    assert dataset is not None
    return dataset


def test_documented_bytes(tmp_path):
    prefix = write(tmp_path / "a", ITEMS)
    assert (tmp_path / "a.bin").read_bytes() == bytes.fromhex(MMAP_BIN)
    assert (tmp_path / "a.idx").read_bytes() == bytes.fromhex(MMAP_IDX)
    for impl in ("lazy", "cached"):
        write(tmp_path / impl, ITEMS, impl)
        assert (tmp_path / f"{impl}.bin").read_bytes() == bytes.fromhex(LEGACY_BIN)
        assert (tmp_path / f"{impl}.idx").read_bytes() == LEGACY_IDX
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{end}" for name in ("a", "lazy", "cached") for end in ("bin", "idx")
    )
    assert infer_dataset_impl(prefix) == "mmap"


@pytest.mark.parametrize("impl", ["mmap", "lazy", "cached"])
def test_reading(tmp_path, impl):
    dataset = open_fixed(write(tmp_path / "a", ITEMS, impl), impl)
    assert [item.tolist() for item in dataset] == ITEMS and len(dataset) == 2
    assert all(item.dtype == torch.int64 for item in dataset)
    assert isinstance(dataset.sizes, np.ndarray) and dataset.sizes.tolist() == [3, 2]
    assert dataset[-1].tolist() == [6, 2] and dataset.get_array(0).tolist() == [4, 5, 2]
    assert dataset.size(0) == dataset.num_tokens(0) == 3
    assert dataset.supports_prefetch == (impl == "cached")
    with pytest.raises(IndexError):
        dataset[2]


def test_arrays_are_views_of_the_file(tmp_path):
    dataset = MMapIndexedDataset(write(tmp_path / "a", ITEMS))
    assert dataset.flat.tolist() == [4, 5, 2, 6, 2] and dataset.flat.dtype == np.uint16
    assert dataset.get_array(1).base is not None and not dataset.flat.flags.writeable
    item = dataset[0]
    item += 1
    assert dataset[0].tolist() == [4, 5, 2]


def test_legacy_tokens_are_shifted_unless_fixed(tmp_path):
    prefix = write(tmp_path / "a", ITEMS, "lazy")
    assert IndexedDataset(prefix)[0].tolist() == [5, 6, 3]
    cached = IndexedCachedDataset(prefix, fix_lua_indexing=True)
    cached.prefetch([0, 1])
    assert cached[1].tolist() == [6, 2]


@pytest.mark.parametrize("impl", ["mmap", "lazy"])
@settings(deadline=None)  # syncing files takes as long as the disk is busy
@given(items=corpora, others=corpora)
def test_round_trips_and_merges(tmp_path_factory, impl, items, others):
    folder = tmp_path_factory.mktemp("data")
    write(folder / "b", others, impl, 65499)
    with make_builder(data_file_path(folder / "a"), impl, 65499) as builder:
        tokens = np.array([t for item in items for t in item], np.int64)
        builder.add_array(tokens, np.array([len(item) for item in items], np.int64))
        builder.merge_file_(folder / "b")
        builder.finalize(index_file_path(folder / "a"))
    dataset = open_fixed(folder / "a", impl)
    assert [item.tolist() for item in dataset] == items + others
    assert builder.num_items == len(items + others)
    assert builder.max_id == max(tokens, default=-1)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (None, np.uint32),
        (24, np.uint16),
        (65499, np.uint16),
        (65500, np.uint32),
        (4294967294, np.uint32),
        (4294967295, np.int64),
    ],
)
def test_dtype_rule(size, dtype):
    assert best_fitting_int_dtype(size) is dtype


CODES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f8", 8: "u2", 9: "u4", 10: "u8"}


@pytest.mark.parametrize("code", CODES)
def test_every_dtype_code_is_read(tmp_path, code):
    stored = np.array([4, 5, 2, 6, 2], "<" + CODES[code])
    (tmp_path / "a.bin").write_bytes(stored.tobytes())
    starts = np.array([0, 3]) * stored.itemsize
    index = struct.pack("<9sQBQ2i2q", b"MMIDIDX", 1, code, 2, 3, 2, *starts)
    (tmp_path / "a.idx").write_bytes(index)
    assert [item.tolist() for item in MMapIndexedDataset(tmp_path / "a")] == ITEMS


def test_empty_dataset(tmp_path):
    for impl in ("mmap", "lazy"):
        dataset = open_fixed(write(tmp_path / impl, [], impl), impl)
        assert len(dataset) == 0 and list(dataset) == []
    assert len(MMapIndexedDataset(write(tmp_path / "b", [[], []]))[1]) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.int8])
def test_tokens_that_do_not_fit_are_refused(tmp_path, dtype):
    with MMapIndexedDatasetBuilder(tmp_path / "a.bin", dtype) as builder:
        with pytest.raises(DataError, match="do not fit"):
            builder.add_item(torch.tensor([1, 70000]))
        with pytest.raises(DataError, match="do not fit"):
            builder.add_item(torch.tensor([-1 if dtype is np.uint16 else -200]))
        with pytest.raises(DataError, match="do not fit"):
            builder.add_item(torch.tensor([1.5]))
        with pytest.raises(DataError, match="one dimension"):
            builder.add_item(torch.tensor([[1]]))
    with pytest.raises(DataError, match="float32"):
        MMapIndexedDatasetBuilder(tmp_path / "a.bin", np.float32)
    assert not list(tmp_path.iterdir())


def test_merge_wants_one_dtype(tmp_path):
    write(tmp_path / "a", ITEMS, vocab_size=70000)
    with (
        MMapIndexedDatasetBuilder(tmp_path / "b.bin", np.uint16) as builder,
        pytest.raises(DataError, match="uint32.*uint16"),
    ):
        builder.merge_file_(tmp_path / "a")


@pytest.mark.parametrize("impl", ["mmap", "lazy"])
def test_unfinished_dataset_leaves_the_old_one(tmp_path, impl):
    prefix = write(tmp_path / "a", ITEMS, impl)
    with pytest.raises(ZeroDivisionError), make_builder(data_file_path(prefix), impl) as builder:
        builder.add_item(torch.tensor([1]))
        raise ZeroDivisionError
    assert [item.tolist() for item in open_fixed(prefix, impl)] == ITEMS
    assert len(list(tmp_path.iterdir())) == 2


def test_crash_between_the_two_files_leaves_no_wrong_pair(tmp_path, monkeypatch):
    prefix = write(tmp_path / "a", ITEMS)
    replace, calls = os.replace, []

    def crash(source, target):
        calls.append(target)
        if str(target).endswith(".idx"):
            raise OSError("crash")
        replace(source, target)

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="crash"):
        write(tmp_path / "a", [[1, 2], [3, 4, 5]])
    assert [str(c)[-4:] for c in calls] == [".bin", ".idx"]
    with pytest.raises(MissingFileError):
        MMapIndexedDataset(prefix)


@pytest.mark.parametrize("impl", ["mmap", "cached"])
def test_pickles_small_and_spawned_workers_read(tmp_path, impl):
    dataset = open_fixed(write(tmp_path / "a", [[i] * 50 for i in range(20)] * 20, impl), impl)
    state = pickle.dumps(dataset)
    assert len(state) < 500
    assert torch.equal(pickle.loads(state)[7], dataset[7])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(dataset.get_array, [3])[0].tolist() == [3] * 50


def mutations(good: bytes, count: int, seed: int):
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(good)
        kind = draw.randrange(4)
        at = draw.randrange(len(data))
        if kind == 0:
            data[at] = draw.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + draw.randrange(1, 12)]
        else:
            data[at:at] = draw.randbytes(draw.randrange(1, 12))
        yield bytes(data)


@pytest.mark.parametrize("impl", ["mmap", "lazy"])
@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_mutated_files_raise_or_keep_their_structure(tmp_path, impl, suffix):
    items = [[i, i + 1, 2] if i % 3 else [2] for i in range(3, 23)]
    prefix = write(tmp_path / "a", items, impl)
    path = tmp_path / f"a{suffix}"
    good, sizes = path.read_bytes(), [len(item) for item in items]
    refused = 0
    for data in mutations(good, 400, seed=len(impl)):
        path.write_bytes(data)
        try:
            dataset = open_fixed(prefix, impl)
            read = [item.tolist() for item in dataset]
        except DataError as error:
            refused += 1
            assert str(tmp_path / "a") in str(error)
            continue
        # Whatever still opens has the right shape; only the values of tokens can be wrong, or
        # their dtype if two of one width are confused.
        assert [len(item) for item in read] == sizes
        assert read == items or suffix == ".bin" or data[17] != good[17] or data[16] != good[16]
    assert refused > 250


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"X", "magic"),
        (9, b"\x02", "version"),
        (17, b"\x0b", "dtype code 11"),
        (18, b"\x03", "do not hold 3 items"),
        (25, b"\xff", "items"),
        (26, b"\x04", "item 1"),
        (29, b"\x80", "item 0"),
        (34 + 8, b"\x08", "item 1"),
    ],
)
def test_damage_of_the_index_is_told(tmp_path, place, value, message):
    prefix = write(tmp_path / "a", ITEMS)
    data = bytearray((tmp_path / "a.idx").read_bytes())
    data[place : place + 1] = value
    (tmp_path / "a.idx").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.idx is damaged: .*{message}"):
        MMapIndexedDataset(prefix)


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_short_token_file_is_told(tmp_path, cut):
    prefix = write(tmp_path / "a", ITEMS)
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(data[:-cut])
    with pytest.raises(DataError, match=r"a\.bin is damaged"):
        MMapIndexedDataset(prefix)


def test_missing_and_unknown(tmp_path):
    assert make_dataset(tmp_path / "a", "mmap") is None and not dataset_exists(
        tmp_path / "a", "raw"
    )
    assert infer_dataset_impl(tmp_path / "a") is None
    with pytest.raises(MissingFileError, match=r"a\.idx"):
        MMapIndexedDataset(tmp_path / "a")
    with pytest.raises(UnsupportedError, match="huffman"):
        make_builder(tmp_path / "a.bin", "huffman")
    with pytest.raises(ConfigError, match="did you mean 'lazy'"):
        make_dataset(tmp_path / "a", "lasy")
    write(tmp_path / "b", ITEMS)
    with pytest.raises(DataError, match="of --dataset-impl mmap, not of cached"):
        make_dataset(tmp_path / "b", "lazy")
    (tmp_path / "b").mkdir()
    assert infer_dataset_impl(tmp_path / "b") == "mmap"
    assert set(indexed_dataset.get_available_dataset_impl()) == {"raw", "lazy", "cached", "mmap"}


def test_raw_text(tmp_path):
    (tmp_path / "train").write_bytes("a b\r\n\n caf\u00e9\u2028b".encode())
    dictionary = Dictionary()
    for word in "ab":
        dictionary.add_symbol(word)
    dataset = make_dataset(tmp_path / "train", "raw", dictionary=dictionary)
    assert isinstance(dataset, IndexedRawTextDataset)
    assert [dataset[i].tolist() for i in range(3)] == [[4, 5, 2], [2], [3, 5, 2]]
    assert dataset[0].dtype == torch.int64 and dataset.sizes.tolist() == [3, 1, 3]
    assert dataset.get_original_text(2) == " caf\u00e9\u2028b" and len(dataset) == 3
    assert infer_dataset_impl(tmp_path / "train") == "raw" and len(dictionary) == 6
    turned = IndexedRawTextDataset(
        tmp_path / "train", dictionary, append_eos=False, reverse_order=True
    )
    assert turned[0].tolist() == [5, 4]
    with pytest.raises(DataError, match="dictionary"):
        make_dataset(tmp_path / "train", "raw")


def test_builder_memory_does_not_grow_with_items(tmp_path):
    import tracemalloc

    sizes = np.full(50_000, 1)
    tokens = np.zeros(50_000, np.uint16)
    with IndexedDatasetBuilder(tmp_path / "a.bin") as builder:
        builder.add_array(tokens, sizes)
        tracemalloc.start()
        for _ in range(20):
            builder.add_array(tokens, sizes)
        builder.finalize(tmp_path / "a.idx")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(IndexedDataset(tmp_path / "a")) == 1_050_000
    # One list of all sizes would hold 8.4 MB; what is held is a window of 2 MB, in a few copies.
    assert peak < 8.4e6


@pytest.mark.parametrize("impl", ["mmap", "cached"])
@pytest.mark.parametrize("file", ["bin", "idx"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_cut_while_it_is_in_use_is_an_error_and_no_bus_error(
    tmp_path, impl, file, num_workers
):
    dataset = open_fixed(write(tmp_path / "d", [[4] * 8192] * 8, impl), impl)
    blocks = TokenBlockDataset(dataset, dataset.sizes, 8192, pad=1, eos=2)
    loader = BatchLoader(blocks, list, num_workers, 0, False)
    batches = loader.read([(None, [block]) for block in range(8)])
    assert next(batches)[0].tolist() == [4] * 8192
    os.truncate(tmp_path / f"d.{file}", 100)  # far below a page, which the system would miss
    match = rf"d\.{file} is damaged: .* cut to 100 while it was in use"
    if file == "bin":
        with pytest.raises(DataError, match=match):
            list(batches)
    with pytest.raises(DataError, match=match if file == "idx" else "while it was in use"):
        dataset[7]


def test_a_copy_in_a_worker_is_of_the_same_file(tmp_path):
    copy = pickle.dumps(MMapIndexedDataset(write(tmp_path / "d", ITEMS)))
    os.truncate(tmp_path / "d.bin", 6)
    with pytest.raises(DataError, match="held 5 tokens when it was opened first and now holds 3"):
        pickle.loads(copy)


@pytest.mark.parametrize("impl", ["lazy", "cached", "raw"])
def test_data_of_another_format_are_not_called_damaged(impl: str, tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "data")
    dictionary = Dictionary.load(str(data / "dict.txt"))
    with pytest.raises(DataError, match=f"of --dataset-impl mmap, not of .*{impl}.*: leave"):
        load_lines(str(data), "valid", dictionary, dataset_impl=impl)
