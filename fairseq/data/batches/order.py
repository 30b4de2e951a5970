"""The order of an epoch's batches over all shards, and which samples a part of it holds.

The batches of an epoch form ONE sequence, whatever the number of shards: in step t, shard r reads
element ``t * num_shards + r``. A position is therefore the number of elements consumed, and stays
valid when the number of shards changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairseq.errors import CheckpointError
from fairseq.rng import philox

RESET = "relaunch with --reset-dataloader to begin the epoch anew"

Batches = Sequence[Sequence[int] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """Everything that decides the order of batches, apart from the epoch.

    Attributes:
        seed: the run's seed.
        data_rng: one of ``fairseq.rng.DATA_RNGS``.
        shuffle: whether there is any shuffling.
        grouped: keep batches ``i * num_shards ... (i + 1) * num_shards - 1`` together.
        fixed_shards: deal the batches to the shards first, then shuffle within each shard.
        num_shards: the number of shards, which matters for the last two only.
        batching: how the batches were cut, as the owner of the iterator describes it.
        dataset_seed: of the order in which a dataset that has a seed puts samples of equal length;
            None if it has none, or the state does not say it.
    """

    seed: int
    data_rng: str
    shuffle: bool
    grouped: bool
    fixed_shards: bool
    num_shards: int
    batching: Mapping[str, Any] | None
    dataset_seed: int | None = dataclasses.field(default=None, compare=False)

    def same_sequence(self, other: EpochOrder) -> bool:
        """Tell whether both describe one sequence, if only it is dealt to other shards."""
        return dataclasses.replace(self, num_shards=other.num_shards) == other

    def sequence(self, batches: Batches, epoch: int) -> list[Sequence[int] | np.ndarray]:
        """Return the batches in their order of this epoch.

        Args:
            batches: all batches, as they were cut.
            epoch: the epoch, from 1.

        Returns:
            Every batch once. With ``fixed_shards`` also empty batches, where a shard has one less
            than others; with ``grouped`` in the modes that reproduce the original, without the
            last batches that form no whole group.
        """
        # shuffled are places, not batches: an order can then be stated without its samples
        places = np.arange(len(batches))
        if self.fixed_shards:
            places = self._within_shards(places, epoch)
        elif self.shuffle and self.grouped:
            places = self._by_groups(places, epoch)
        elif self.shuffle:
            places = places[self._permutation(len(places), epoch)]
        return [batches[place] if place >= 0 else [] for place in places.tolist()]

    def _within_shards(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Return the places, -1 for an empty batch, with each shard's part shuffled."""
        # rounded up: every shard must take the same number of steps, or the others wait for ever
        n_steps = -(-len(places) // self.num_shards)
        padded = np.full(n_steps * self.num_shards, -1)
        padded[: len(places)] = places
        # column i is the part of shard i, the deal of [i::num_shards]; shuffling a column keeps
        # a sample in the shard whose memory it was loaded into
        rows = padded.reshape(n_steps, self.num_shards)
        if self.shuffle:
            for shard in range(self.num_shards):
                rows[:, shard] = rows[self._permutation(n_steps, epoch, shard), shard]
        return rows.ravel()

    def _by_groups(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Return the places with whole groups shuffled, and the rest behind them."""
        n_groups = len(places) // self.num_shards
        whole = places[: n_groups * self.num_shards].reshape(n_groups, self.num_shards)
        shuffled = whole[self._permutation(n_groups, epoch)].ravel()
        # the original forgets the batches behind the last whole group, and its modes must as well
        rest = places[len(shuffled) :] if self.data_rng == "philox" else places[:0]
        return np.concatenate([shuffled, rest])

    def _permutation(self, n: int, epoch: int, *shard: int) -> np.ndarray:
        """Return a random order of n things for this epoch (and shard)."""
        if self.data_rng == "philox":
            # Sorting raw words, as they are the same in every version of numpy.
            rng = philox(self.seed, "batch-order", epoch, *shard)
            return np.argsort(rng.bit_generator.random_raw(n), kind="stable")
        # the original's own recipe: numpy's legacy generator, seeded with a sum
        order, seed = np.arange(n), (self.seed + epoch + sum(shard)) % 2**32
        np.random.RandomState(seed).shuffle(order)
        return order


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of an epoch: the beginning of a sequence of batches.

    Attributes:
        order: of the sequence.
        consumed: batches of it that all shards together have read.
        total: its length.
    """

    order: EpochOrder
    consumed: int
    total: int

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Segment:
        """Undo ``dataclasses.asdict``.

        Raises:
            CheckpointError: if it was written by another version that keeps other things.
        """
        try:
            return cls(EpochOrder(**state["order"]), state["consumed"], state["total"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the data position in the checkpoint is of an unknown kind ({error}); {RESET}"
            ) from error


def sample_ids(batches: Batches) -> np.ndarray:
    """Return the samples of these batches one after the other, int64."""
    arrays = [np.asarray(batch, dtype=np.int64) for batch in batches]
    return np.concatenate([np.empty(0, np.int64), *arrays])


def without_samples(batches: Batches, consumed: np.ndarray) -> list[np.ndarray]:
    """Return the batches without the samples consumed, and without batches left empty."""
    arrays = [np.asarray(batch, dtype=np.int64) for batch in batches]
    left = ~np.isin(sample_ids(arrays), consumed)
    ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
    masks = np.split(left, ends[:-1]) if len(ends) else []
    kept = [array[mask] for array, mask in zip(arrays, masks, strict=True)]
    return [array for array in kept if len(array)]
