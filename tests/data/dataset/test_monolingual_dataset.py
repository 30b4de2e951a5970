"""Causal language model items: shifted targets, special tokens, batches and context windows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq.data import (
    EpochBatchIterator,
    ListDataset,
    LMContextWindowDataset,
    MonolingualDataset,
    TokenBlockDataset,
)
from fairseq.data.collate import numpy_seed
from fairseq.data.datasets.causal_lm import collate
from fairseq.errors import ConfigError

BOS, PAD, EOS, UNK = 0, 1, 2, 3


class Vocab:
    def __init__(self, length=100):
        self.length = length

    def __len__(self):
        return self.length

    def bos(self):
        return BOS

    def pad(self):
        return PAD

    def eos(self):
        return EOS

    def unk(self):
        return UNK


ROWS = [[5, 6, 7, EOS], [8, 9, EOS], [50, 11]]
SIZES = [len(row) for row in ROWS]


def tokens(rows=ROWS):
    return ListDataset([torch.tensor(row) for row in rows], [len(row) for row in rows])


def blocks(mode="none", size=4):
    return TokenBlockDataset(tokens(), SIZES, size, PAD, EOS, break_mode=mode, include_targets=True)


def monolingual(**options):
    data = blocks()
    return MonolingualDataset(data, data.sizes, Vocab(), **options)


def plain(item):
    target = item["target"]
    if isinstance(target, list):
        return item["source"].tolist(), [part.tolist() for part in target]
    return item["source"].tolist(), None if target is None else target.tolist()


def test_targets():
    future = [plain(item) for item in monolingual(targets=["future"])]
    assert future == [
        ([EOS, 5, 6, 7], [5, 6, 7, EOS]),
        ([EOS, 8, 9, EOS], [8, 9, EOS, 50]),
        ([50], [11]),
    ]
    assert plain(monolingual(targets=["past"])[0])[1] == [PAD, EOS, 5, 6]
    assert plain(monolingual(targets=["self", "future"])[2]) == ([50], [[50], [11]])
    assert plain(MonolingualDataset(tokens(), SIZES, Vocab())[2]) == ([50, 11], None)
    with pytest.raises(ConfigError, match=r"invalid targets \['next'\]"):
        monolingual(targets=["next"])


def test_end_of_sentence_for_other_targets():
    options = {"targets": ["self", "future", "past"], "add_eos_for_other_targets": True}
    assert plain(monolingual(**options)[0]) == (
        [EOS, 5, 6, 7, EOS],
        [[EOS, 5, 6, 7, EOS], [5, 6, 7, EOS, PAD], [PAD, EOS, 5, 6, 7]],
    )
    # It ends with that token already.
    assert plain(monolingual(**options)[1])[0] == [EOS, 8, 9, EOS]
    # Nothing is added for the future alone.
    only = monolingual(targets=["future"], add_eos_for_other_targets=True)
    assert plain(only[0])[0] == [EOS, 5, 6, 7]


def test_beginning_of_sentence():
    assert plain(monolingual(targets=["future"], add_bos_token=True)[2]) == ([BOS, 50], [BOS, 11])
    both = monolingual(targets=["self", "future"], add_bos_token=True)
    assert plain(both[2]) == ([BOS, 50], [[BOS, 50], [BOS, 11]])
    plain_text = MonolingualDataset(tokens(), SIZES, Vocab(), add_bos_token=True)
    assert plain(plain_text[2]) == ([BOS, 50, 11], None)


def test_smaller_target_vocabulary():
    data = blocks()
    dataset = MonolingualDataset(data, data.sizes, Vocab(), Vocab(50), targets=["future", "self"])
    assert plain(dataset[1])[1] == [[8, 9, EOS, UNK], [EOS, 8, 9, EOS]]
    assert plain(dataset[2]) == ([50], [[11], [UNK]])


def test_batches():
    dataset = monolingual(targets=["future"])
    batch = dataset.collater([dataset[2], dataset[0]])
    assert batch["id"].tolist() == [2, 0]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 5)
    assert batch["net_input"]["src_tokens"].tolist() == [[50, PAD, PAD, PAD], [EOS, 5, 6, 7]]
    assert batch["net_input"]["src_lengths"].tolist() == [1, 4]
    assert batch["target"].tolist() == [[11, PAD, PAD, PAD], [5, 6, 7, EOS]]
    assert dataset.collater([]) == {}
    both = monolingual(targets=["future", "self"])
    assert [part.tolist() for part in both.collater([both[2]])["target"]] == [[[11]], [[50]]]
    without = MonolingualDataset(tokens(), SIZES, Vocab())
    batch = without.collater([without[2]])
    assert batch["target"] is batch["net_input"]["src_tokens"]
    padded = monolingual(targets=["future"], fixed_pad_length=6, pad_to_bsz=3)
    batch = padded.collater([padded[0]])
    assert batch["target"].shape == batch["net_input"]["src_tokens"].shape == (3, 6)
    assert collate([], PAD, EOS) == {}


def test_order_and_sizes():
    dataset = MonolingualDataset(tokens(), SIZES, Vocab())
    assert dataset.ordered_indices().tolist() == [2, 1, 0]
    assert [dataset.size(i) for i in range(3)] == [dataset.num_tokens(i) for i in range(3)] == SIZES
    equal = MonolingualDataset(tokens([[5]] * 30), [1] * 30, Vocab(), shuffle=True)
    with numpy_seed(1):
        once = equal.ordered_indices()
    with numpy_seed(1):
        assert np.array_equal(equal.ordered_indices(), once)
    assert sorted(once) == list(range(30)) and not np.array_equal(once, np.arange(30))


def test_hands_on_epoch_and_prefetch():
    told = []
    inner = SimpleNamespace(
        supports_prefetch=True,
        set_epoch=lambda epoch: told.append(epoch),
        prefetch=lambda indices: told.append(indices),
    )
    dataset = MonolingualDataset(inner, [], Vocab())
    dataset.set_epoch(3)
    dataset.prefetch([1])
    assert dataset.supports_prefetch and told == [3, [1]]


def windows(rows, context, size=4):
    inner = MonolingualDataset(tokens(rows), [len(row) for row in rows], Vocab())
    return LMContextWindowDataset(inner, size, context, PAD)


def test_context_window():
    dataset = windows([[4, 5, 6, 7], [8, 9, 10, 11], [12, 13]], context=2)
    assert dataset.ordered_indices().tolist() == [0, 1, 2]
    expected = [
        ([4, 5, 6, 7, PAD, PAD], [4, 5, 6, 7, PAD, PAD], 0, 4),
        ([6, 7, 8, 9, 10, 11], [PAD, PAD, 8, 9, 10, 11], 2, 6),
        ([10, 11, 12, 13], [PAD, PAD, 12, 13], 2, 4),
    ]
    for index in (2, 0, 1):  # the order does not matter
        batch = dataset.collater([dataset[index]])
        source, target, start, length = expected[index]
        assert batch["net_input"]["src_tokens"].tolist() == [source]
        assert batch["target"].tolist() == [target]
        assert batch["start_indices"] == [start]
        assert batch["net_input"]["src_lengths"].tolist() == [length]
        assert batch["ntokens"] == len(dataset[index]["source"])
    assert dataset.collater([]) == {}


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    context=st.integers(1, 9),
    batch_size=st.integers(1, 4),
)
def test_context_windows_score_every_token_once(sizes, context, batch_size):
    stream = list(range(10, 10 + sum(sizes)))
    ends = np.cumsum(sizes).tolist()
    rows = [stream[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    dataset = windows(rows, context, size=6)
    order = list(range(len(rows)))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found = []
    for batch in EpochBatchIterator(dataset, dataset.collater, batches).next_epoch_itr():
        for row, i in enumerate(batch["id"].tolist()):
            source = batch["net_input"]["src_tokens"][row]
            begin = ends[i] - sizes[i]
            kept = stream[max(0, begin - context) : ends[i]]
            assert source[source != PAD].tolist() == kept
            assert batch["start_indices"][row] == min(begin, context)
            found += batch["target"][row][batch["target"][row] != PAD].tolist()
    assert sorted(found) == stream


def test_context_shrinks_before_an_item_that_is_too_long():
    dataset = windows([[4, 5, 6], [7, 8, 9, 10, 11], [12]], context=3, size=4)
    batch = dataset.collater([dataset[1], dataset[2]])
    assert batch["start_indices"] == [2, 3]
    assert batch["net_input"]["src_tokens"].tolist() == [
        [5, 6, 7, 8, 9, 10, 11, PAD],
        [9, 10, 11, 12, PAD, PAD, PAD, PAD],
    ]
    dataset.prefetch([0])  # does nothing
