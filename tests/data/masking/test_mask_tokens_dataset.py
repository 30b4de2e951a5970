"""``MaskTokensDataset``: its public signature, and the same tokens as batched masking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq.data.datasets.wrappers import ListDataset
from fairseq.data.masking.item_by_item import MaskSpec, MaskTokensDataset, mask_tokens
from fairseq.data.masking.mask import mask_item
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError


def dictionary() -> Dictionary:
    vocab = Dictionary()
    for number in range(30):
        vocab.add_symbol(f"word{number}", n=30 - number)
    vocab.finalize(padding_factor=8)
    vocab.add_symbol("<mask>")
    return vocab


VOCAB = dictionary()
MASK = VOCAB.index("<mask>")
RNG = np.random.default_rng(0)
ITEMS = [
    torch.tensor([0, *RNG.integers(3, 34, size), 2]) for size in RNG.integers(1, 40, 20).tolist()
]
DATASET = ListDataset(ITEMS, [len(item) for item in ITEMS])
WORDS = torch.arange(len(VOCAB)) % 2


def apply_mask(**kwargs) -> tuple[MaskTokensDataset, MaskTokensDataset]:
    return MaskTokensDataset.apply_mask(DATASET, VOCAB, pad_idx=1, mask_idx=MASK, **kwargs)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"mask_prob": 0.5, "leave_unmasked_prob": 0.2, "random_token_prob": 0.5},
        {"freq_weighted_replacement": True, "random_token_prob": 0.9},
        {"mask_whole_words": WORDS},
        {"mask_multiple_length": 3, "mask_stdev": 1.0},
    ],
)
def test_items_equal_batched_masking(knobs):
    source, target = apply_mask(seed=7, **knobs)
    lengths = np.array([len(item) for item in ITEMS])
    tokens = torch.nn.utils.rnn.pad_sequence(ITEMS, batch_first=True, padding_value=1).numpy()
    for epoch in (1, 5):
        source.set_epoch(epoch)
        target.set_epoch(epoch)
        sources, targets = mask_tokens(
            tokens, lengths, np.arange(20), spec=source.spec, seed=7, epoch=epoch
        )
        for i, n in enumerate(lengths):
            assert source[i].dtype == target[i].dtype == torch.int64
            assert source[i].tolist() == sources[i, :n].tolist()
            assert target[i].tolist() == targets[i, :n].tolist()


@pytest.mark.parametrize("data_rng", ["fairseq-main", "fairseq-0.12"])
def test_recorded_masks_of_the_original(shared: Path, data_rng: str):
    vocab = Dictionary.load(str(shared / "compat/checkpoints/data-bin/dict.txt"))
    mask = vocab.add_symbol("<mask>")
    name = {"fairseq-main": "fb", "fairseq-0.12": "eify"}[data_rng]
    record = np.load(shared / f"compat/train_log/{name}_mask_tokens.npz")
    items = np.split(record["flat"], np.cumsum(record["lens"])[:-1])
    dataset = ListDataset([torch.from_numpy(item) for item in items], record["lens"])
    variants = {
        "default": {},
        "seed5": {"seed": 5},
        "freq": {"freq_weighted_replacement": True},
        "ww": {"mask_whole_words": torch.from_numpy(record["word_begin"])},
        "mult3std": {"mask_multiple_length": 3, "mask_stdev": 1.0},
    }
    for variant, knobs in variants.items():
        for side, key in zip(
            MaskTokensDataset.apply_mask(dataset, vocab, 1, mask, data_rng=data_rng, **knobs),
            ("src", "tgt"),
            strict=True,
        ):
            for epoch in (1, 2):
                side.set_epoch(epoch)
                found = torch.cat([side[i] for i in range(len(items))]).numpy()
                np.testing.assert_array_equal(found, record[f"{variant}_ep{epoch}_{key}"])


def test_the_positional_order_of_the_constructor():
    whole = MaskTokensDataset(
        DATASET, VOCAB, 1, MASK, True, 3, 0.4, 0.2, 0.3, True, WORDS, 2, 0.5, False
    )
    spec = whole.spec
    assert (whole.return_masked_tokens, whole.seed, whole.skip_masking) == (True, 3, False)
    assert (spec.mask_prob, spec.leave_unmasked_prob, spec.random_token_prob) == (0.4, 0.2, 0.3)
    assert (spec.mask_multiple_length, spec.mask_stdev) == (2, 0.5)
    assert spec.counts_V.tolist() == VOCAB.count and spec.word_begin_V.tolist() == WORDS.tolist()


def test_epochs_change_the_masks_and_reach_the_wrapped_dataset():
    class Listener(ListDataset):
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    listener = Listener(ITEMS, DATASET.sizes)
    _, target = MaskTokensDataset.apply_mask(listener, VOCAB, 1, MASK)
    first = [target[i].tolist() for i in range(20)]
    target.set_epoch(2)
    assert listener.epoch == 2
    second = [target[i].tolist() for i in range(20)]
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 10
    assert len(target) == 20 and list(target.sizes) == [len(item) for item in ITEMS]


def test_skipping_returns_copies_of_the_items():
    source, target = apply_mask(skip_masking=True)
    for i, item in enumerate(ITEMS):
        assert source[i].tolist() == target[i].tolist() == item.tolist()
    source[0][0] = 9
    assert ITEMS[0][0] == 0


def test_fillers_of_the_dictionary_are_never_drawn():
    assert VOCAB.index("madeupword0000") == 34
    source, _ = apply_mask(mask_prob=1.0, leave_unmasked_prob=0.0, random_token_prob=1.0)
    drawn = torch.cat([source[i][1:-1] for i in range(20)])
    assert drawn.min() == 4 and drawn.max() == 33


def test_an_unknown_generator_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="'fairseq-12' .did you mean 'fairseq-0.12'"):
        apply_mask(data_rng="fairseq-12")


def test_one_item_with_any_generator():
    spec = MaskSpec.from_dictionary(VOCAB, mask=MASK)
    item = ITEMS[3].numpy()
    masks = [
        mask_item(item, 3, spec=spec, seed=1, epoch=1, data_rng=name)[1].tolist()
        for name in ("philox", "fairseq-main", "fairseq-0.12")
    ]
    assert len({tuple(mask) for mask in masks}) == 3
