"""Epochs of batches: their order, and resuming at every position and under other settings."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_epochs import Cached, Numbers, epochs, ids, three_each

from fairseq.data import EpochBatchIterator, GroupedIterator, TokenBlockDataset
from fairseq.data.batches import epochs as iterators
from fairseq.data.collate import batch_by_size
from fairseq.errors import CheckpointError, ConfigError, DataError
from fairseq.rng import DATA_RNGS

# ---- order, as the original and as ours ----------------------------------------------------------


@pytest.mark.parametrize("version", ["fb", "eify"])
@pytest.mark.parametrize("data_rng", ["fairseq-main", "fairseq-0.12"])
def test_order_equals_the_original(shared, version, data_rng):
    golden = np.load(shared / f"compat/train_log/{version}_misc.npz")
    for shards in (1, 2, 3):
        for shard in range(shards):
            itr = epochs(num_shards=shards, shard_id=shard, seed=1, data_rng=data_rng)
            for epoch in (1, 2):
                first = [batch[0] if batch else -1 for batch in ids(itr.next_epoch_itr())]
                expected = golden[f"epoch_itr_nsh{shards}_sh{shard}_ep{epoch}"]
                assert first == expected.tolist()
    itr = epochs(data_rng=data_rng).next_epoch_itr()
    assert [len(g) for g in GroupedIterator(itr, 4)] == golden["grouped4_counts"].tolist()


def test_ten_batches_in_the_order_of_the_original():
    itr = epochs(Numbers(10), [[i] for i in range(10)], data_rng="fairseq-main")
    assert sum(ids(itr.next_epoch_itr()), []) == [4, 1, 5, 0, 7, 2, 3, 6, 9, 8]
    assert sum(ids(itr.next_epoch_itr()), []) == [5, 4, 1, 2, 9, 6, 7, 0, 3, 8]


@pytest.mark.parametrize("data_rng", ["philox", "fairseq-main"])
def test_order_does_not_depend_on_the_number_of_shards(data_rng):
    whole = ids(epochs(data_rng=data_rng).next_epoch_itr())
    for shards in (2, 3, 5):
        parts = [
            ids(epochs(data_rng=data_rng, num_shards=shards, shard_id=i).next_epoch_itr())
            for i in range(shards)
        ]
        assert len({len(part) for part in parts}) == 1
        dealt = [batch for step in zip(*parts, strict=True) for batch in step]
        assert [batch for batch in dealt if batch] == whole
        assert len(dealt) - len(whole) == -len(whole) % shards


def test_shuffling_depends_on_seed_and_epoch():
    itr = epochs(seed=5)
    one, two = ids(itr.next_epoch_itr()), ids(itr.next_epoch_itr())
    assert one != two and sorted(one) == sorted(two) == three_each()
    assert ids(epochs(seed=6).next_epoch_itr()) != one
    assert ids(epochs(seed=5, epoch=2).next_epoch_itr()) == two
    assert ids(epochs(seed=5).next_epoch_itr(shuffle=False)) == three_each()
    assert ids(epochs(disable_shuffling=True).next_epoch_itr()) == three_each()
    # Pinned, so that a run can be resumed after an update of this project or of numpy.
    small = epochs(Numbers(8), [[i] for i in range(8)], seed=1)
    assert sum(ids(small.next_epoch_itr()), []) == [4, 6, 2, 1, 7, 5, 0, 3]


def test_grouped_shuffling():
    for data_rng, kept in (("philox", 14), ("fairseq-main", 12)):
        itr = epochs(num_shards=4, grouped_shuffling=True, data_rng=data_rng)
        itr.next_epoch_itr()
        shards = [
            ids(
                epochs(
                    num_shards=4, shard_id=i, grouped_shuffling=True, data_rng=data_rng
                ).next_epoch_itr()
            )
            for i in range(4)
        ]
        steps = list(zip(*shards, strict=True))
        groups = [[batch[0] // 3 for batch in step if batch] for step in steps]
        assert sum(map(len, groups)) == kept
        assert all(group == list(range(group[0], group[0] + len(group))) for group in groups)
        assert [group[0] for group in groups[:3]] != [0, 4, 8]


@pytest.mark.parametrize("data_rng", ["philox", "fairseq-main"])
def test_batches_fixed_to_shards(data_rng):
    for shard in range(3):
        dataset = Cached()
        itr = epochs(dataset, num_shards=3, shard_id=shard, data_rng=data_rng)
        one = ids(itr.next_epoch_itr(fix_batches_to_gpus=True))
        assert sorted(dataset.asked) == sorted(sum(one, []))
        two = ids(itr.next_epoch_itr(fix_batches_to_gpus=True))
        own = [*three_each()[shard::3], *[[]] * (shard == 2)]
        assert sorted(one) == sorted(two) == sorted(own) and one != two
        if data_rng != "philox":
            rng = np.random.RandomState(1 + 1 + shard)
            rng.shuffle(own)
            assert one == own


# ---- position ------------------------------------------------------------------------------------


def test_state_is_that_of_the_original():
    itr = epochs(num_shards=2)
    fresh = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
    assert itr.state_dict() == fresh
    assert not itr.end_of_epoch() and itr.next_epoch_idx == 1
    batches = itr.next_epoch_itr(shuffle=False)
    batches.skip(3)
    state = itr.state_dict()
    assert state.pop("segments")
    assert state == fresh | {"iterations_in_epoch": 3, "shuffle": False}
    assert itr.n == itr.iterations_in_epoch == batches.n == 3
    list(batches)
    assert itr.end_of_epoch() and itr.next_epoch_idx == 2
    assert itr.state_dict() == fresh | {"epoch": 2, "shuffle": False}


def plain(state):
    """Return the state as the original would have written it, by way of a pickle."""
    return {k: v for k, v in pickle.loads(pickle.dumps(state)).items() if k != "segments"}


@pytest.mark.parametrize("strip", [lambda state: state, plain], ids=["ours", "original's"])
@pytest.mark.parametrize("data_rng", ["philox", "fairseq-main"])
@pytest.mark.parametrize("shards", [1, 3])
def test_resume_at_every_position(data_rng, strip, shards):
    for shard in range(shards):
        options = {"num_shards": shards, "shard_id": shard, "data_rng": data_rng}
        whole = epochs(**options)
        reference = [ids(whole.next_epoch_itr()) for _ in range(3)]
        for stop in range(2 * len(whole) + 1):
            first, second = epochs(**options), epochs(**options)
            seen = []
            for _ in range(stop):
                if first._cur_epoch_itr is None or first.end_of_epoch():
                    batches = first.next_epoch_itr()
                seen.append(next(batches)["ids"])
            second.load_state_dict(strip(first.state_dict()))
            assert second.state_dict() == first.state_dict() or "segments" in first.state_dict()
            assert second.iterations_in_epoch == stop % len(whole)
            while len(seen) < 3 * len(whole):
                seen += ids(second.next_epoch_itr())
            assert seen == sum(reference, [])


def cut(length, batching, without=(), seed=1):
    """Cut samples of different lengths in the way described, some samples left out.

    Equal lengths lie as the seed has it, that of the description if it has one.
    """
    limits = dict(batching)
    seed = limits.pop("dataset_seed", seed)
    ties = np.random.RandomState(limits.pop("seed", seed)).permutation(length)
    lengths = np.arange(length) % 7 + 1
    order = np.lexsort([ties, lengths])
    order = order[~np.isin(order, without)]
    return batch_by_size(order, None, lengths[order], **limits)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), length=st.integers(1, 60))
def test_any_chain_of_resumes_reads_every_sample_once(data, length):
    """Stop anywhere and go on with other shards, batch sizes, seeds and kinds of shuffling."""
    seen, state = [], None
    for round_ in range(data.draw(st.integers(1, 5))):
        shards = data.draw(st.integers(1, 4))
        batching = {
            "max_tokens": data.draw(st.sampled_from([None, 7, 20])),
            "max_sentences": data.draw(st.sampled_from([None, 1, 3])),
            "required_batch_size_multiple": data.draw(st.sampled_from([1, 4])),
        }
        seed = data.draw(st.integers(1, 2))
        options = {
            "num_shards": shards,
            "seed": seed,
            "dataset_seed": seed,
            "data_rng": data.draw(st.sampled_from(DATA_RNGS)),
            "batching": batching,
            "rebatch": lambda *how, seed=seed: cut(length, *how, seed),
        }
        # The original drops batches when it groups them.
        options["grouped_shuffling"] = options["data_rng"] == "philox" and data.draw(st.booleans())
        runs = [
            epochs(Cached(length), cut(length, batching, seed=seed), shard_id=i, **options)
            for i in range(shards)
        ]
        for run in runs:
            if state is not None:
                run.load_state_dict(pickle.loads(pickle.dumps(state)))
        if state is not None and runs[0].epoch == 2:
            break
        how = {"shuffle": data.draw(st.booleans()), "fix_batches_to_gpus": data.draw(st.booleans())}
        parts = [run.next_epoch_itr(**how) for run in runs]
        assert len({(part.n, len(part)) for part in parts}) == 1
        left = len(parts[0]) - parts[0].n
        last = round_ == 4
        steps = left if last else data.draw(st.integers(0, left))
        for part in parts:
            seen += [i for _ in range(steps) for i in next(part)["ids"]]
        states = [run.state_dict() for run in runs]
        assert all(other == states[0] for other in states)
        assert len(seen) == len(set(seen))
        state = states[0]
        if runs[0].end_of_epoch():
            assert state["epoch"] == 2 and "segments" not in state
            break
    else:
        for part in parts:
            seen += sum(ids(part), [])
    assert sorted(seen) == list(range(length))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (4, 3), (3, 7)])
def test_other_shards_read_the_rest_in_the_same_order(before, after, caplog):
    whole = ids(epochs().next_epoch_itr())
    first = epochs(num_shards=before)
    first.next_epoch_itr().skip(2)
    state = first.state_dict()
    runs = [epochs(num_shards=after, shard_id=i) for i in range(after)]
    with caplog.at_level(logging.INFO):
        for run in runs:
            run.load_state_dict(state)
    line = f"began on {before} shards and goes on with {after} after {2 * before} of 14 batches"
    assert [record.message for record in caplog.records] == [f"epoch 1 {line}"] * after
    steps = zip(*(ids(run.next_epoch_itr()) for run in runs), strict=True)
    assert [batch for step in steps for batch in step if batch] == whole[2 * before :]


def test_another_batch_size(caplog):
    def run(max_sentences):
        limits = {"max_sentences": max_sentences}
        rebatch = lambda batching, without: cut(42, batching, without)  # noqa: E731
        batches = cut(42, limits)
        return epochs(Numbers(), batches, num_shards=2, batching=limits, rebatch=rebatch)

    first = run(3)
    first.next_epoch_itr().skip(4)
    second = run(5)
    with caplog.at_level(logging.INFO):
        second.load_state_dict(first.state_dict())
    assert len(caplog.records) == 1
    assert "24 samples were read with other settings; the other 18 follow" in caplog.text
    # 42 samples make 9 batches of 5 and 5 steps; 18 samples make 4 batches and 2 steps.
    assert second.iterations_in_epoch == 3
    assert len(list(second.next_epoch_itr())) == 2
    assert second.end_of_epoch()
    again = run(5)
    again.load_state_dict(first.state_dict())
    again.next_epoch_itr().skip(1)
    third = run(5)
    third.load_state_dict(again.state_dict())
    assert third.iterations_in_epoch == again.iterations_in_epoch == 4
    assert ids(third.next_epoch_itr()) == ids(again._cur_epoch_itr)


def test_another_seed_needs_no_rebatching():
    first = epochs(seed=1)
    seen = ids(first.next_epoch_itr().take(5))
    state = epochs(seed=1)
    itr = state.next_epoch_itr()
    itr.skip(5)
    second = epochs(seed=2)
    second.load_state_dict(state.state_dict())
    rest = ids(second.next_epoch_itr())
    assert sorted(seen + rest) == three_each()
    assert rest != ids(itr)


def test_positions_that_cannot_be_found():
    first = epochs(batching={"max_tokens": 8})
    first.next_epoch_itr().skip(4)
    state = first.state_dict()
    with pytest.raises(CheckpointError, match=r"tokens': 8.*tokens': 9.*--reset-dataloader"):
        epochs(batching={"max_tokens": 9}).load_state_dict(state)
    with pytest.raises(CheckpointError, match="epoch of 14 batches, but the data now gives 10"):
        epochs(Numbers(30), batching={"max_tokens": 8}).load_state_dict(state)
    state["segments"][0]["order"]["colour"] = "red"
    with pytest.raises(CheckpointError, match="unknown kind"):
        epochs(batching={"max_tokens": 8}).load_state_dict(state)
    # Restoring the beginning of an epoch asks nothing of the data.
    fresh = epochs(Numbers(30), batching={"max_tokens": 9})
    begun = epochs(batching={"max_tokens": 8})
    begun.next_epoch_itr()
    fresh.load_state_dict(begun.state_dict())
    assert len(ids(fresh.next_epoch_itr())) == 10


def test_states_of_the_original_beyond_the_end():
    state = {"epoch": 2, "iterations_in_epoch": 14, "shuffle": False}
    itr = epochs()
    itr.load_state_dict(state)
    assert (itr.epoch, itr.iterations_in_epoch, itr.next_epoch_idx) == (3, 0, 3)
    with pytest.raises(CheckpointError, match=r"14 batches of epoch 2.*--reset-dataloader"):
        epochs().load_state_dict(state | {"version": 2})


def test_partial_epoch_of_blocks():
    tokens = torch.arange(150).view(1, -1)
    blocks = TokenBlockDataset(tokens, [150], 1, pad=0, eos=1)
    itr = EpochBatchIterator(blocks, torch.cat, [[i] for i in range(150)])
    itr.load_state_dict({"epoch": 2, "iterations_in_epoch": 50, "shuffle": False})
    assert (itr.epoch, itr.iterations_in_epoch) == (2, 50)
    batches = itr.next_epoch_itr(shuffle=False)
    assert (itr.epoch, itr.iterations_in_epoch) == (2, 50)
    assert next(batches).tolist() == [50]
    assert itr.iterations_in_epoch == 51
    batches.skip(98)
    assert itr.iterations_in_epoch == 149 and batches.has_next()
    next(batches)
    assert not batches.has_next() and itr.end_of_epoch()
    assert next(itr.next_epoch_itr(shuffle=False)).tolist() == [0]
    assert itr.epoch == 3


def test_skip_remainder_batch():
    for per_batch, skip, expected in [(2, True, 1), (2, False, 2), (1, True, 2), (4, True, 0)]:
        batches = [list(range(3))[i : i + per_batch] for i in range(0, 3, per_batch)]
        itr = epochs(Numbers(3), batches, skip_remainder_batch=skip)
        found = itr.next_epoch_itr()
        assert len(found) == expected and found.has_next() == bool(expected)
        assert len(list(found)) == expected
        assert itr.end_of_epoch() and len(itr) == len(batches)
    for grouped, expected in ((True, [2]), (False, [2])):
        itr = epochs(Numbers(9), num_shards=1, skip_remainder_batch=True).next_epoch_itr()
        assert [len(g) for g in GroupedIterator(itr, 2, grouped)] == expected


def test_batches_made_anew_for_each_epoch():
    calls = []

    def sampler(dataset, epoch):
        calls.append(epoch)
        return [[epoch], [epoch + 1]]

    itr = epochs(batches=sampler)
    assert len(itr) == 2 and itr.first_batch["ids"] == [1]
    assert sorted(ids(itr.next_epoch_itr())) == [[1], [2]]
    assert sorted(ids(itr.next_epoch_itr())) == [[2], [3]]
    assert calls == [1, 2]
    other = epochs(batches=sampler)
    other.load_state_dict({"epoch": 3, "iterations_in_epoch": 1, "version": 2, "shuffle": False})
    assert ids(other.next_epoch_itr()) == [[4]]


def test_first_batch():
    itr = epochs()
    assert itr.first_batch["ids"] == [0, 1, 2]
    itr.dataset.supports_fetch_outside_dataloader = False
    assert itr.first_batch == "DUMMY"
    with pytest.raises(DataError, match="The dataset is empty"):
        epochs(batches=[]).first_batch  # noqa: B018
    assert ids(epochs(batches=[]).next_epoch_itr()) == []


def test_unknown_shard_or_data_rng():
    for shard in (-1, 3):
        with pytest.raises(ConfigError, match="shard_id must be between 0 and 2"):
            epochs(num_shards=3, shard_id=shard)
    with pytest.raises(ConfigError, match="did you mean 'philox'"):
        epochs(data_rng="phillox")


def test_base_class_is_abstract():
    base = iterators.EpochBatchIterating()
    for call in (
        lambda: len(base),
        lambda: base.next_epoch_idx,
        base.next_epoch_itr,
        base.end_of_epoch,
        lambda: base.iterations_in_epoch,
        base.state_dict,
        lambda: base.load_state_dict({}),
    ):
        with pytest.raises(NotImplementedError):
            call()
