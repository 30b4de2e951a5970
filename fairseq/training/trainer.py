"""The trainer: batches in, one update at a time, and the figures that come out.

The gradient of an update is the sum over all micro-batches of all processes divided by their total
``sample_size``; it does not matter how the samples were split. Every random draw of an update
follows from (seed, update, rank, micro-batch), so nothing but counters needs to be saved.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq import utils
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.base import FairseqCriterion
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import FairseqError
from fairseq.logging import metrics
from fairseq.models.base import BaseFairseqModel
from fairseq.optim.amp_optimizer import amp_dtype
from fairseq.optim.loss_scaler import LowestScaleError
from fairseq.protocols import LoggingOutput, Sample
from fairseq.rng import derive_seed
from fairseq.tasks import validation
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.precision import autocast, to_device
from fairseq.training.effort import Effort, peak_of
from fairseq.training.nan_detector import look_for_cause
from fairseq.training.smaller_batches import cells_of, halves, is_out_of_memory
from fairseq.training.spikes import SpikePolicy
from fairseq.training.state import OfState, TrainingState
from fairseq.training.update_log import Report, UpdateLog

logger = logging.getLogger("fairseq.trainer")

MAX_BAD_UPDATES = 10  # in a row, whose gradient is not finite, before a run stops


class NotFiniteError(FairseqError, FloatingPointError):
    """Gradients are not finite, again and again."""


class Trainer:
    """Trains a model on a task; the arguments are those of :class:`TrainingState`.

    What the state knows is found under the same name here, as plug-ins expect.

    Attributes:
        state: what is saved and restored.
        epoch: the one at work, from 1.
        skipped: why the latest update changed nothing, None if it did, or nobody knows yet.
        bad_updates: how many updates in a row had a gradient that is not finite.
        update_log: what updates report; those that a device judged are in it later.
        spiked: whether that is because its loss jumped.
    """

    cfg = OfState()
    task = OfState()
    device = OfState()
    world = OfState()
    rank = OfState()
    weights_dtype = OfState()
    model = OfState()
    criterion = OfState()
    optimizer = OfState()
    lr_scheduler = OfState()
    ema = OfState()
    parameters = OfState()
    get_model = OfState()
    best = OfState()
    progress = OfState()
    lineage = OfState()
    should_save_checkpoint_on_current_rank = OfState()
    lr_step = OfState()
    lr_step_begin_epoch = OfState()
    lr_step_update = OfState()
    get_lr = OfState()
    get_num_updates = OfState()
    set_num_updates = OfState()
    cumulative_training_time = OfState()
    hours = OfState()
    state_dict = OfState()
    save_checkpoint = OfState()
    load_checkpoint = OfState()
    rewind = OfState()

    def __init__(
        self,
        cfg: FairseqConfig,
        task: FairseqTask,
        model: BaseFairseqModel,
        criterion: FairseqCriterion,
    ) -> None:
        self.state = TrainingState(cfg, task, model, criterion)
        self.skipped: str | None = None
        self._grad_norm: Tensor = torch.tensor(0.0)
        self.bad_updates, self._judged_late = 0, False
        self.update_log = UpdateLog(self)
        self.spikes, self.spiked = SpikePolicy(cfg.optimization), False
        self.epoch = 1
        self._cells = 0  # of the micro-batch at work
        self._dummy_batch: Any = None
        # training loads this split anew: a validation on it must not move what training reads
        loaded = getattr(task, "datasets", {})
        self._to_validate_on = {k: x for k, x in loaded.items() if k == cfg.dataset.train_subset}
        self.effort = Effort(model, criterion, self._peak())
        if self.world > 1 and not task.logging_outputs_can_be_summed(criterion):
            logger.warning(
                "%s does not say that its logging outputs can be added up; over several processes "
                "they are",
                type(criterion).__name__,
            )

    # -- data ------------------------------------------------------------------------------------

    def get_train_iterator(
        self,
        epoch: int,
        combine: bool = True,
        load_dataset: bool = True,
        data_selector: object = None,
        shard_batch_itr: bool = True,
        disable_iterator_cache: bool = False,
    ) -> Any:
        """Return the iterator over the training split for ``epoch`` (from 1).

        Args:
            epoch: selects the folder of sharded data.
            combine: also read ``train1``, ``train2``, ...
            load_dataset: read the files; otherwise they were read before.
            data_selector: unused.
            shard_batch_itr: give every process its own batches.
            disable_iterator_cache: cut the batches anew.
        """
        data = self.cfg.dataset
        if load_dataset:
            self.task.load_dataset(data.train_subset, epoch=epoch, combine=combine)
        seed = self.cfg.common.seed
        if data.update_ordered_indices_seed:
            seed += epoch
        # a sample longer than max_tokens fits no batch: left out like one the model cannot read
        limits = self.task.max_positions(), self.get_model().max_positions(), data.max_tokens
        iterator = self.task.get_batch_iterator(
            dataset=self.task.dataset(data.train_subset),
            max_tokens=data.max_tokens,
            max_sentences=data.batch_size,
            max_positions=utils.resolve_max_positions(*limits),
            ignore_invalid_inputs=True,
            required_batch_size_multiple=data.required_batch_size_multiple,
            seed=seed,
            num_shards=self.world if shard_batch_itr else 1,
            shard_id=self.rank if shard_batch_itr else 0,
            num_workers=data.num_workers,
            epoch=epoch,
            data_buffer_size=data.data_buffer_size,
            disable_iterator_cache=disable_iterator_cache or data.update_ordered_indices_seed,
            skip_remainder_batch=self.cfg.optimization.skip_remainder_batch,
            grouped_shuffling=data.grouped_shuffling,
            update_epoch_batch_itr=bool(data.update_epoch_batch_itr),
        )
        # a process that runs out of batches must still join the others' reductions: it runs this
        # one, with its loss times zero
        self._dummy_batch = self._dummy_batch or iterator.first_batch
        return iterator

    def get_valid_iterator(self, subset: str, disable_iterator_cache: bool = False) -> Any:
        """Return the iterator over a validation split, sharded, never shuffled."""
        iterator = validation.valid_batches(
            self.cfg,
            self.task,
            self.get_model(),
            subset,
            dataset=self._to_validate_on.get(subset),
            num_shards=self.world,
            shard_id=self.rank,
            disable_iterator_cache=disable_iterator_cache,
        )
        self._dummy_batch = self._dummy_batch or iterator.first_batch
        return iterator

    @property
    def first_batch(self) -> Any:
        """Return the batch that was cut first; no dict where that is impossible."""
        return self._dummy_batch

    def begin_epoch(self, epoch: int) -> None:
        """Tell schedule and task that an epoch begins."""
        self.lr_step_begin_epoch(epoch)
        self.epoch = epoch
        self.task.begin_epoch(epoch, self.get_model())

    def begin_valid_epoch(self, epoch: int) -> None:
        """Seed torch if the settings say so, and tell the task that a validation begins."""
        validation.begin_validation(self.cfg, self.task, self.get_model(), epoch)

    def _prepare_sample(self, sample: Sample) -> tuple[Any, bool]:
        """Move a batch to the device, after the criterion has seen it.

        An empty one is replaced by the first batch of the run.

        Returns:
            ``(batch, whether it is such a filler)``.
        """
        is_filler = sample is None or len(sample) == 0
        if is_filler:
            assert self._dummy_batch not in (None, "DUMMY"), "no batch was seen yet"
            sample = self._dummy_batch
        sample = self.criterion.prepare_sample(sample)
        return to_device(sample, self.device, self.weights_dtype), is_filler

    # -- one update ------------------------------------------------------------------------------

    def _peak(self) -> float:
        common = self.cfg.common
        dtype = amp_dtype(self.cfg, self.device) if common.amp else self.weights_dtype
        return peak_of(common.peak_tflops, self.device, dtype or torch.float32, self.world)

    def _seed(self, micro: int) -> None:
        """Seed all generators for a micro-batch; the original's modes repeat its one seed.

        Nothing here draws from Python's or numpy's global generator, but plug-ins may.
        """
        seed = self.cfg.common.seed
        if self.cfg.dataset.data_rng == "philox":
            # after a return to an earlier checkpoint the same dropout would lead to the same spike
            shift = self.spikes.seed_shift(self.progress)
            purpose = f"update after return {shift}" if shift else "update"
            value = derive_seed(seed, purpose, self.get_num_updates(), self.rank, micro)
            torch.manual_seed(value)
            random.seed(value)
            np.random.seed(value % 2**32)  # numpy takes no more bits
        elif micro == 0:
            torch.manual_seed(seed + self.get_num_updates())

    @metrics.aggregate("train")
    def train_step(self, samples: Sequence[Any], raise_oom: bool = False) -> dict[str, Any] | None:
        """Take one optimizer step on the given micro-batches.

        Args:
            samples: this process's share of the update.
            raise_oom: unused; memory that does not suffice for a single row always raises.

        Returns:
            the logging output, empty if nobody has looked at it yet; None if nothing was changed
            (overflow, gradient not finite), see :attr:`skipped`.

        Raises:
            NotFiniteError: if that happens again and again.
        """
        metrics.log_start_time("train_wall", priority=800, round=0)
        self.get_model().train()
        self.criterion.train()
        self.optimizer.zero_grad()
        prepared = [self._prepare_sample(sample) for sample in samples]
        self.criterion.prepare_update([sample for sample, filler in prepared if not filler])
        logs, sample_size = self._share(*self._accumulate(self._small_enough(prepared)))
        self.effort.add(logs, self.progress)
        bad_before = self.bad_updates
        # a spike is judged before the step, since a step cannot be taken back
        self.skipped = self._spike(logs, sample_size) or self._step(sample_size)
        if self.skipped is not None:
            logger.warning(self.skipped)
            if self.bad_updates > bad_before == 1:  # one may be a freak; two are worth a look
                look_for_cause(self.get_model(), lambda: self._run_again(prepared))
                self.optimizer.zero_grad()
        output = self._report(logs) if self.skipped is None else None
        metrics.log_stop_time("train_wall")
        return output

    def _accumulate(self, prepared: list[tuple[Any, bool]]) -> tuple[list[dict[str, Any]], Any]:
        """Run all micro-batches forward and backward, in smaller ones if memory runs out.

        Returns:
            ``(logging outputs, sum of their sample sizes)``.
        """
        while True:
            try:
                # the gradients of one need not wait for those of others
                with self.model.formed_once() if len(prepared) > 1 else contextlib.nullcontext():
                    return self._accumulate_once(prepared)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.world > 1 and not self._averages_late:  # others wait inside a reduction
                    raise FairseqError(
                        f"out of memory: {error}. Several processes divide a batch only under "
                        "--ddp-backend legacy_ddp, which averages gradients after the backward "
                        "pass; or lower --batch-size or --max-tokens, and raise --update-freq"
                    ) from error
                logger.warning("out of memory: %s", error)
                prepared = self._smaller(prepared, error)
            self.optimizer.zero_grad()  # a backward pass that failed has left a part of itself
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate_once(
        self, prepared: list[tuple[Any, bool]]
    ) -> tuple[list[dict[str, Any]], Any]:
        logs: list[dict[str, Any]] = []
        sample_size: Any = 0
        for micro, (sample, is_filler) in enumerate(prepared):
            self._cells = cells_of(sample)
            with self._no_sync_unless(micro == len(prepared) - 1):
                size, log = self._forward_backward(micro, sample, is_filler)
            if not is_filler:
                logs.append({**log, **self.effort.of_batch(sample, log)})
                sample_size = sample_size + size
        return logs, sample_size

    def _forward_backward(
        self, micro: int, sample: Sample, is_filler: bool
    ) -> tuple[Any, dict[str, Any]]:
        """Run a micro-batch forward and backward; return its sample size and logging output."""
        self._seed(micro)
        with autocast(self.cfg, self.device):
            _, size, log = self.task.train_step(
                sample,
                self.model,
                self.criterion,
                self.optimizer,
                self.get_num_updates(),
                is_filler,
                **validation.averaged_model(self.task, self.ema),
            )
        return size, log

    def _run_again(self, prepared: list[tuple[Any, bool]]) -> None:
        """Run an update forward and backward once more; no process waits for another."""
        with self._no_sync_unless(False):
            for micro, (sample, is_filler) in enumerate(self._small_enough(prepared)):
                self._forward_backward(micro, sample, is_filler)

    def _smaller(
        self, prepared: list[tuple[Any, bool]], error: RuntimeError
    ) -> list[tuple[Any, bool]]:
        """Divide the batches that are at least as large as the one that did not fit.

        Raises:
            FairseqError: if that is impossible.
        """
        self.progress["most_cells"] = self._cells
        smaller = self._small_enough(prepared)
        if len(smaller) == len(prepared):
            raise FairseqError(
                f"out of memory, and the batch cannot be divided: {error}. Lower --batch-size or "
                "--max-tokens, and raise --update-freq to keep the update"
            ) from error
        return smaller

    def _small_enough(self, prepared: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        """Return micro-batches that are smaller than what did not fit into memory, if any did."""
        most = self.progress.get("most_cells")
        if most is None or not self.criterion.sums_over_rows:
            return prepared
        parts: list[tuple[Any, bool]] = []
        dataset = self.task.dataset(self.cfg.dataset.train_subset)
        for sample, is_filler in prepared:
            divided = halves(sample, dataset, self.epoch) if cells_of(sample) >= most else None
            pairs = [(self._prepare_sample(part)[0], is_filler) for part in divided or ()]
            parts += self._small_enough(pairs) if pairs else [(sample, is_filler)]
        return parts

    def _spike(self, logs: list[Any], sample_size: float) -> str | None:
        """Drop an update whose loss jumps, if a policy says so; return why."""
        self.spiked = False
        if self.spikes.kind == "none":
            return None
        total = sum(float(utils.item(log.get("loss", 0.0))) for log in logs)
        loss = total / float(utils.item(sample_size) or 1.0)
        reason = self.spikes.verdict(loss, self.get_num_updates(), self.progress)
        if reason is not None:
            self.spiked = True
            self.optimizer.zero_grad()
        return reason

    @property
    def _averages_late(self) -> bool:
        """Tell whether gradients are averaged after the backward pass; DDP does it during that."""
        return not hasattr(self.model, "module")

    @contextlib.contextmanager
    def _no_sync_unless(self, is_last: bool) -> Iterator[None]:
        """Let DDP average gradients in the last micro-batch only."""
        inner: Any = getattr(self.model, "module", None)
        if self.world > 1 and not is_last and hasattr(inner, "no_sync"):
            with inner.no_sync():
                yield
        else:
            yield

    def _share(self, logs: list[LoggingOutput], sample_size: float) -> tuple[list[Any], Any]:
        """Add up logging outputs and sample sizes over micro-batches and processes.

        See :func:`fairseq.distributed.utils.shared`. One process can keep what cannot be added.
        """
        summable = self.task.logging_outputs_can_be_summed(self.criterion)
        if self.world == 1 and not (summable and distributed_utils.can_be_added(logs)):
            return logs, sample_size
        return distributed_utils.shared(logs, sample_size, self.device)

    def _step(self, sample_size: float) -> str | None:
        """Normalise, clip and apply the gradients; return why not, if they were not."""
        # an update without a target has a gradient of zeros, and 0/0 would break the weights
        denominator = utils.item(sample_size) or 1.0
        optimizer = self.optimizer
        try:
            if self.world > 1 and self._averages_late:
                optimizer.all_reduce_grads(self.model)
            # the criterion's parameters are outside of DDP
            if self.world > 1:
                distributed_utils.average_gradients(self.criterion)
            # gradients are averages over processes of sums over samples, and the denominator counts
            # the samples of all: times world makes it the mean over all of them
            optimizer.multiply_grads(self.world / denominator)
            self._grad_norm = self._clip()
            finite = torch.isfinite(self._grad_norm)
            self._judged_late = self.update_log.can_wait()
            if self._judged_late:
                optimizer.skip_unless(finite)
            elif not bool(finite):
                return self._skip_bad_update(None)
            self.task.optimizer_step(optimizer, self.get_model(), self.get_num_updates())
        except OverflowError as overflow:
            return self._skip_bad_update(overflow)
        except FloatingPointError as error:
            if isinstance(error, FairseqError):  # which says itself what is wrong
                raise
            raise NotFiniteError(str(error)) from error
        self.bad_updates = 0
        self.effort.count(self.progress)
        self.set_num_updates(self.get_num_updates() + 1)
        if self.ema is not None:
            self.ema.step(self.get_model(), self.get_num_updates())
        every = self.cfg.common.empty_cache_freq
        if every > 0 and self.get_num_updates() % every == 0 and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _clip(self) -> Tensor:
        """Clip the gradients; return their norm, which all processes have found."""
        norm = torch.tensor(math.nan)
        try:
            norm = torch.as_tensor(self.optimizer.clip_grad_norm(self.cfg.optimization.clip_norm))
        finally:  # an overflow on one of them alone: the others wait for what it found
            if self.world > 1:
                distributed_utils.refuse_other_norms(norm, self.device)
        return norm

    def _skip_bad_update(self, overflow: OverflowError | None) -> str:
        """Drop an update whose gradient is not finite; many in a row end the run.

        Those that have lowered a loss scale do not count: the lowest scale ends the run instead.
        """
        update, optimizer = self.get_num_updates(), self.optimizer
        optimizer.zero_grad()
        lowered = overflow is not None and not isinstance(overflow, LowestScaleError)
        if self.cfg.common.amp and optimizer.scaler.is_enabled():
            scale = optimizer.scaler.get_scale()
            optimizer.step()  # lowers the loss scale, which ends the run when it gets too low
            lowered = optimizer.scaler.get_scale() < scale
        # a norm that fp32 cannot hold, of finite gradients, is no matter of the scale
        self.bad_updates += not lowered
        if self.bad_updates >= MAX_BAD_UPDATES:
            raise NotFiniteError(
                f"the gradient was not finite in {MAX_BAD_UPDATES} updates in a row (update "
                f"{update}); lower --lr, set --clip-norm, or use --bf16, not --fp16"
            )
        if overflow is not None:
            return f"NOTE: gradient overflow detected, ignoring gradient, {overflow}"
        norm = utils.item(self._grad_norm)
        return f"update {update}: the gradient norm is {norm}; the weights stay as they are"

    def _report(self, logs: list[Any]) -> dict[str, Any]:
        """Log the update that was just taken, now or later; return what was logged."""
        report = Report(self.get_num_updates(), self._grad_norm, logs, self.effort.latest)
        if not self._judged_late:
            return self.update_log.write(report)
        self.update_log.keep(report)
        return {}

    def valid_step(self, sample: Sample, raise_oom: bool = False) -> dict[str, Any] | None:
        """Evaluate one batch and log its figures; return them."""
        sample, is_filler = self._prepare_sample(sample)
        if is_filler and isinstance(sample, dict):  # for criterions that write what they see
            sample = {**sample, "is_filler": True}
        size, log = validation.valid_step(
            self.cfg, self.task, self.model, self.criterion, sample, self.device, self.ema
        )
        logs, _ = self._share([] if is_filler else [log], 0 if is_filler else size)
        return validation.log_figures(self.task, self.criterion, logs)
