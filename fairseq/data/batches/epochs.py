"""``EpochBatchIterator``: the batches of each epoch, sharded, in order, resumable at any point.

Position. ``state_dict`` has the original's keys ``version``, ``epoch``, ``iterations_in_epoch``
(batches of one shard) and ``shuffle``, and two of our own, which it ignores:

- ``order_epoch``: the epoch in which the batches were cut, where their order depends on it.
- ``segments``: what was read of which sequence of batches, see
  :class:`~fairseq.data.batches.order.Segment`. There is one, until a resume re-maps the position.

Loading such a state continues the sequence where it stopped, dealt to however many shards there are
now. If batches were cut or shuffled otherwise than now (another batch size or seed), the samples
consumed are found by building the old sequences again, and the others are batched with today's
settings: no sample of the epoch is lost or repeated. Other cuts need ``batching`` and ``rebatch``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fairseq.aliases import NAMES
from fairseq.config.sections import FairseqConfig
from fairseq.data.batches.counting import (
    BufferedIterator,
    CountingIterator,
    GroupedIterator,
    ShardedIterator,
    check_shard,
    read_ahead,
)
from fairseq.data.batches.order import (
    RESET,
    Batches,
    EpochOrder,
    Segment,
    sample_ids,
    without_samples,
)
from fairseq.data.batches.protocol import EpochBatchIterating
from fairseq.data.batches.read import BatchLoader, Request, set_epoch
from fairseq.data.datasets.base import FairseqDataset
from fairseq.errors import CheckpointError, ConfigError, DataError, check_choice
from fairseq.lazy import lazy_names
from fairseq.rng import DATA_RNGS

__all__ = [
    "BufferedIterator",
    "CountingIterator",
    "EpochBatchIterating",
    "EpochBatchIterator",
    "GroupedIterator",
    "ShardedIterator",
]

logger = logging.getLogger("fairseq.data.iterators")

__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


@dataclasses.dataclass
class _Plan:
    """One epoch from some position on.

    Attributes:
        order: of the sequence being read.
        sequence: all batches of all shards.
        earlier: what was read of other sequences before, in this epoch.
        consumed: how many batches of this sequence were read before.
        start: value of ``iterations_in_epoch`` there.
    """

    order: EpochOrder
    sequence: Batches
    earlier: list[Segment] = dataclasses.field(default_factory=list)
    consumed: int = 0
    start: int = 0


class _Loaded:
    """The batches that a loader reads for some requests."""

    def __init__(self, loader: BatchLoader, requests: list[Request]) -> None:
        self.loader = loader
        self.requests = requests

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Any]:
        return self.loader.read(self.requests)

    def take(self, n: int) -> None:
        """Read the first ``n`` batches only."""
        del self.requests[n:]


class EpochBatchIterator(EpochBatchIterating):
    """Iterates over a dataset, epoch by epoch, one shard of it; see the module's docstring."""

    def __init__(
        self,
        dataset: FairseqDataset,
        collate_fn: Callable[[list[Any]], Any],
        batch_sampler: Batches | Callable[[FairseqDataset, int], Batches],
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        buffer_size: int = 0,
        timeout: int = 0,
        disable_shuffling: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        reuse_dataloader: bool = False,
        persistent_workers: bool = False,
        *,
        data_rng: str = "philox",
        batching: Mapping[str, Any] | None = None,
        rebatch: Callable[[Mapping[str, Any], np.ndarray], Batches] | None = None,
        keeps_batches: bool = False,
        dataset_seed: int | None = None,
    ) -> None:
        """Iterate over ``dataset``.

        Args:
            dataset: any dataset with an index.
            collate_fn: merges a list of items; an empty list must give an empty batch.
            batch_sampler: all batches, each a list of indices; or a function (dataset, epoch) that
                returns them, called for each epoch.
            seed: the run's seed.
            num_shards: number of shards, usually of data-parallel processes.
            shard_id: this shard.
            num_workers: processes that read data; 0 to read in this one.
            epoch: the first epoch.
            buffer_size: batches to keep ready in a thread of this process.
            timeout: seconds after which a worker counts as stuck; 0 for never.
            disable_shuffling: never shuffle.
            skip_remainder_batch: leave out the last batch of each shard, even a full one.
            grouped_shuffling: shuffle groups of ``num_shards`` batches, to keep neighbours
                together.
            reuse_dataloader: ignored; see ``persistent_workers``.
            persistent_workers: keep the workers from one epoch to the next.
            data_rng: ``philox``, or ``fairseq-...`` for the original's order.
            batching: how ``batch_sampler`` was cut, as plain values such as limits.
            rebatch: function (such a description, int64 sample numbers) that returns the batches
                cut in that way from the same data, the given samples left out; those of another
                run, if the description has its ``seed`` or ``dataset_seed``.
            keeps_batches: the same batches serve all epochs; if the epoch in which they were cut
                matters (``batching["order_epoch"]``), the state keeps it.
            dataset_seed: of the dataset's own order; the state keeps it.

        Raises:
            ConfigError: if there is no such shard or ``data_rng``.
        """
        check_shard(num_shards, shard_id)
        check_choice("--data-rng", data_rng, DATA_RNGS)
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.num_shards = num_shards
        self.shard_id = shard_id
        self.epoch = max(epoch, 1)  # older callers say 0 where the first is meant
        self.buffer_size = buffer_size
        self.disable_shuffling = disable_shuffling
        self.skip_remainder_batch = skip_remainder_batch
        self.grouped_shuffling = grouped_shuffling
        self.data_rng = data_rng
        self.batching = None if batching is None else dict(batching)
        self.rebatch = rebatch
        self.keeps_batches = keeps_batches
        self.dataset_seed = dataset_seed
        self.shuffle = not disable_shuffling
        # a sampler that is a function cuts anew in each epoch, a list serves all
        self._frozen_batches = None if callable(batch_sampler) else list(batch_sampler)
        self._plan: _Plan | None = None
        self._cur_epoch_itr: CountingIterator | None = None
        self._loader = BatchLoader(dataset, collate_fn, num_workers, timeout, persistent_workers)

    @property
    def frozen_batches(self) -> Batches:
        """All batches of this epoch, as they were cut."""
        if self._frozen_batches is None:
            assert callable(self.batch_sampler)
            self._frozen_batches = list(self.batch_sampler(self.dataset, self.epoch))
        return self._frozen_batches

    @property
    def first_batch(self) -> Any:
        """Return the batch that was cut first.

        Raises:
            DataError: if there are no batches.
        """
        if not self.frozen_batches:
            raise DataError(
                "The dataset is empty: every sample was too long, or there were none. "
                "Raise --max-tokens or --max-positions, or check the data"
            )
        # old datasets may not be read in this process: the trainer takes the word for an empty
        # batch
        if not getattr(self.dataset, "supports_fetch_outside_dataloader", True):
            return "DUMMY"
        return self.collate_fn([self.dataset[int(i)] for i in self.frozen_batches[0]])

    def __len__(self) -> int:
        return self._n_steps(len(self.frozen_batches))

    def _n_steps(self, n_batches: int) -> int:
        """Return in how many steps the shards together read ``n_batches``."""
        return -(-n_batches // self.num_shards)

    @property
    def n(self) -> int:
        """The number of batches read in this epoch."""
        return self.iterations_in_epoch

    @property
    def iterations_in_epoch(self) -> int:
        """The number of batches that this shard has read in this epoch."""
        if self._cur_epoch_itr is not None:
            return self._cur_epoch_itr.n
        return self._plan.start if self._plan is not None else 0

    def end_of_epoch(self) -> bool:
        return self._cur_epoch_itr is not None and not self._cur_epoch_itr.has_next()

    def next_epoch_itr(
        self,
        shuffle: bool = True,
        fix_batches_to_gpus: bool = False,
        set_dataset_epoch: bool = True,
    ) -> CountingIterator:
        # a plan without an iterator was loaded from a checkpoint: go on with it, in its own order
        if self._plan is None or self._cur_epoch_itr is not None:
            self._go_to_epoch(self.next_epoch_idx)
            self.shuffle = shuffle and not self.disable_shuffling
            order = self._order(self.shuffle, fix_batches_to_gpus)
            self._plan = _Plan(order, order.sequence(self.frozen_batches, self.epoch))
        if set_dataset_epoch:
            set_epoch(self.dataset, self.epoch)
        self._cur_epoch_itr = self._iterate(self._plan, self.epoch if set_dataset_epoch else None)
        return self._cur_epoch_itr

    def _go_to_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the current one."""
        if callable(self.batch_sampler) and epoch != self.epoch:
            self._frozen_batches = None
        self.epoch = epoch

    def _order(self, shuffle: bool, fix_batches_to_gpus: bool) -> EpochOrder:
        """Return the order that today's settings ask for."""
        return EpochOrder(
            seed=self.seed,
            data_rng=self.data_rng,
            shuffle=shuffle,
            grouped=self.grouped_shuffling,
            fixed_shards=fix_batches_to_gpus and getattr(self.dataset, "supports_prefetch", False),
            num_shards=self.num_shards,
            batching=self.batching,
            dataset_seed=self.dataset_seed,
        )

    def _iterate(self, plan: _Plan, epoch: int | None) -> CountingIterator:
        """Return an iterator over this shard's part of the plan."""
        # what all shards together have read is cut off first, so that the rest can be dealt to
        # another number of shards than the run began with
        left = plan.sequence[plan.consumed :]
        mine: Batches = list(left[self.shard_id :: self.num_shards])
        # empty batches fill up the last step; the trainer turns them into batches without weight
        mine = [*mine, *[[]] * (self._n_steps(len(left)) - len(mine))]
        if getattr(self.dataset, "supports_prefetch", False):
            self.dataset.prefetch(sample_ids(mine).tolist())
        batches: Any = _Loaded(self._loader, [(epoch, batch) for batch in mine])
        batches = read_ahead(batches, self.buffer_size, self._loader.num_workers)
        itr = CountingIterator(batches, start=plan.start)
        if self.skip_remainder_batch:
            itr.take(len(itr) - 1)
        return itr

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "version": 2,
            "epoch": self.epoch,
            "iterations_in_epoch": self.iterations_in_epoch,
            "shuffle": self.shuffle,
        }
        if self.keeps_batches and self.batching and "order_epoch" in self.batching:
            state["order_epoch"] = self.batching["order_epoch"]
        if self.end_of_epoch():
            return {**state, "epoch": self.epoch + 1, "iterations_in_epoch": 0}
        if self._plan is not None:
            plan = self._plan
            steps = self.iterations_in_epoch - plan.start
            # the last step may hold empty batches, which were never part of the sequence
            consumed = min(plan.consumed + steps * self.num_shards, len(plan.sequence))
            here = Segment(plan.order, consumed, len(plan.sequence))
            state["segments"] = [dataclasses.asdict(part) for part in [*plan.earlier, here]]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a position returned by :meth:`state_dict`, or written by the original fairseq.

        Raises:
            CheckpointError: if the data has changed, or the position cannot be re-mapped.
        """
        self._plan = self._cur_epoch_itr = None
        self._go_to_epoch(state_dict["epoch"])
        self._cut_in_epoch(state_dict.get("order_epoch"))
        self.shuffle = state_dict.get("shuffle", True)
        segments = [Segment.from_state(part) for part in state_dict.get("segments", [])]
        steps = state_dict.get("iterations_in_epoch", 0)
        # checkpoints of the original tell only the step: their order follows from the settings
        if not segments and steps > 0:
            order = self._order(self.shuffle, False)
            total = len(order.sequence(self.frozen_batches, self.epoch))
            segments = [Segment(order, steps * self.num_shards, total)]
        if not any(part.consumed for part in segments):
            return
        plan = self._resume(segments)
        if plan.consumed < len(plan.sequence):
            self._plan = plan
        # nothing is left: so it is where other batches held more, and in files of the original,
        # which write the epoch that ended
        elif plan.earlier or state_dict.get("version", 1) == 1:
            self.epoch += 1
        else:
            raise CheckpointError(
                f"the checkpoint stopped after {steps} batches of epoch {self.epoch}, but the data "
                f"has {len(self)}: dataloader mismatch; {RESET}"
            )

    def _cut_in_epoch(self, order_epoch: int | None) -> None:
        """Cut the batches as the run did that wrote ``order_epoch``, if that matters today."""
        batching = self.batching or {}
        if order_epoch is None or order_epoch == batching.get("order_epoch", order_epoch):
            return
        self.batching = {**batching, "order_epoch": order_epoch}
        assert self.rebatch is not None, "order_epoch without a way to cut batches"
        self._frozen_batches = list(self.rebatch(self.batching, np.empty(0, np.int64)))

    def _resume(self, segments: list[Segment]) -> _Plan:
        """Return the plan of the rest of an epoch of which ``segments`` were read."""
        *earlier, last = segments
        order = self._order(last.order.shuffle, last.order.fixed_shards)
        total, consumed = None, 0
        goes_on = last.order.same_sequence(order)
        if goes_on:
            order, total, consumed = last.order, last.total, last.consumed
        else:
            earlier = [part for part in segments if part.consumed]
        read = self._samples_read(earlier)
        sequence = self._sequence(order, read, total)
        if not goes_on:
            logger.info(
                f"epoch {self.epoch}: {len(read)} samples were read with other settings; the other "
                f"{len(sample_ids(sequence))} follow, batched and shuffled with today's"
            )
        elif order.num_shards != self.num_shards:
            logger.info(
                f"epoch {self.epoch} began on {order.num_shards} shards and goes on with "
                f"{self.num_shards} after {consumed} of {len(sequence)} batches"
            )
        # So that the count ends where it would have ended with today's settings from the start.
        n_steps = self._n_steps(len(self.frozen_batches) if earlier else len(sequence))
        start = max(0, n_steps - self._n_steps(len(sequence) - consumed))
        return _Plan(order, sequence, earlier, consumed, start)

    def _samples_read(self, segments: list[Segment]) -> np.ndarray:
        """Return the sample numbers of all segments, int64."""
        read = np.empty(0, np.int64)
        for part in segments:
            sequence = self._sequence(part.order, read, part.total)
            read = np.concatenate([read, sample_ids(sequence[: part.consumed])])
        return read

    def _sequence(self, order: EpochOrder, read: np.ndarray, total: int | None) -> Batches:
        """Return the sequence of the batches of all samples that were not ``read`` before.

        Raises:
            CheckpointError: if it cannot be built, or has not the length ``total``.
        """
        # samples of equal length lie in batches as seeds have it
        seeds = {} if order.seed == self.seed else {"seed": order.seed}
        if order.dataset_seed not in (None, self.dataset_seed):
            seeds["dataset_seed"] = order.dataset_seed
        if order.batching == self.batching and not seeds and not len(read):
            batches = self.frozen_batches
        elif self.rebatch is not None and order.batching is not None:
            batches = self.rebatch({**order.batching, **seeds}, read)
        elif order.batching == self.batching:
            batches = without_samples(self.frozen_batches, read)
        else:
            raise CheckpointError(
                f"the checkpoint stopped within an epoch of batches cut with {order.batching}, "
                f"now they are cut with {self.batching}: the position cannot be found; {RESET}"
            )
        sequence = order.sequence(batches, self.epoch)
        if total is not None and len(sequence) != total:
            raise CheckpointError(
                f"the checkpoint stopped within an epoch of {total} batches, but the data now "
                f"gives {len(sequence)}: the data or its filtering has changed; {RESET}"
            )
        return sequence


def update_groups(cfg: FairseqConfig, epoch_itr: EpochBatchIterating) -> GroupedIterator:
    """Return the rest of an epoch, in lists of the batches of one update each.

    Args:
        cfg: its settings say how many batches an update has.
        epoch_itr: where the run stands in the data.

    Raises:
        ConfigError: if a whole epoch has not enough batches for one update.
    """
    batches = epoch_itr.next_epoch_itr(
        fix_batches_to_gpus=cfg.distributed_training.fix_batches_to_gpus,
        # the first epochs of a curriculum read the batches as they were cut, short ones first
        shuffle=epoch_itr.next_epoch_idx > cfg.dataset.curriculum,
    )
    frequencies = cfg.optimization.update_freq
    # the last one stated holds for all later epochs
    update_freq = frequencies[min(epoch_itr.epoch, len(frequencies)) - 1]
    # the rest of an epoch may be empty after a restart; a whole one must not
    begins = batches.n == 0
    groups = GroupedIterator(
        batches, update_freq, skip_remainder_batch=cfg.optimization.skip_remainder_batch
    )
    if begins and len(groups) == 0:
        raise ConfigError(
            f"an epoch has fewer batches than --update-freq {update_freq}, and "
            "--skip-remainder-batch leaves out the rest: nothing would ever be learned"
        )
    return groups
