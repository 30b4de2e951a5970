"""The trainer: one update, its precision and its statistics, and the state that resumes it.

The gradient of an update is the sum over all micro-batches of all processes divided by their total
``sample_size``; it does not matter how the samples were split. Every random draw of an update
follows from (seed, update, rank, micro-batch), so nothing but counters needs to be saved.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairseq import checkpoint_files, utils
from fairseq.checkpoint_state import OURS, explain, original_cfg, our_record
from fairseq.checkpoint_utils import load_newest
from fairseq.config.sections import FairseqConfig
from fairseq.device import choose_device
from fairseq.distributed import utils as distributed_utils
from fairseq.distributed.wrap import wrap_model
from fairseq.errors import CheckpointError, FairseqError
from fairseq.file_io import PathManager
from fairseq.logging import meters, metrics
from fairseq.models.base import count_parameters
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.rng import derive_seed

logger = logging.getLogger(__name__)

# Updates in a row whose gradient is not finite before a run stops.
MAX_BAD_UPDATES = 10


class Trainer:
    """Trains a model on a task.

    Args:
        cfg: the whole configuration, settled.
        task: the task.
        model: built by it, on the CPU.
        criterion: built by it.

    Attributes:
        best: best validation metric so far, None before the first.
    """

    def __init__(self, cfg: FairseqConfig, task: Any, model: Any, criterion: Any) -> None:
        self.cfg, self.task = cfg, task
        self.device = choose_device(cfg)
        self.world = distributed_utils.get_world_size()
        self.rank = distributed_utils.get_rank()
        dtype = self._weights_dtype()
        self._model = model.to(device=self.device, dtype=dtype)
        self._criterion = criterion.to(device=self.device, dtype=dtype)
        self._wrapped: Any = None
        self._optimizer: Any = None
        self._lr_scheduler: Any = None
        self._num_updates = 0
        self._bad_updates = 0
        self._optim_history: list[dict[str, Any]] = []
        self._dummy_batch: Any = None
        self._started = time.time()
        self._previous_training_time = 0.0
        self.best: float | None = None
        self._loaded: tuple[str, dict[str, Any]] | None = None
        self._start_wall_clock()
        logger.info(
            "num. shared model params: %s (num. trained: %s)",
            f"{count_parameters(model):,}",
            f"{count_parameters(model, trained_only=True):,}",
        )

    @staticmethod
    def _start_wall_clock() -> None:
        metrics.log_start_time("wall", priority=790, round=0)

    def _weights_dtype(self) -> torch.dtype | None:
        common = self.cfg.common
        if common.fp16 and self.device.type == "cpu":
            logger.warning("half precision is slow on a CPU; bf16 (--bf16) or fp32 is faster")
        return torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else None

    # -- parts -----------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """Return the model, wrapped if there are several processes."""
        if self._wrapped is None:
            self._wrapped = wrap_model(self.cfg.distributed_training, self._model, self.device)
        return self._wrapped

    @property
    def criterion(self) -> Any:
        """Return the criterion."""
        return self._criterion

    def get_model(self) -> Any:
        """Return the model itself, never wrapped."""
        return self._model

    @property
    def optimizer(self) -> Any:
        """Return the optimizer; it is built on first use."""
        if self._optimizer is None:
            self._build_optimizer()
        return self._optimizer

    @property
    def lr_scheduler(self) -> Any:
        """Return the learning-rate schedule; it is built with the optimizer."""
        if self._lr_scheduler is None:
            self._build_optimizer()
        return self._lr_scheduler

    @property
    def should_save_checkpoint_on_current_rank(self) -> bool:
        """Tell whether this process writes checkpoints."""
        return self.rank == 0

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained, the criterion's parameters last."""
        modules = (self._model, self._criterion)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def _build_optimizer(self) -> None:
        cfg, params = self.cfg, self.parameters()
        common = cfg.common
        if common.fp16 or common.bf16:
            from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer

            frugal = common.memory_efficient_fp16 or common.memory_efficient_bf16
            kind = MemoryEfficientFP16Optimizer if frugal else FP16Optimizer
            self._optimizer = kind.build_optimizer(cfg, params)
        elif common.amp:
            from fairseq.optim import AMPOptimizer

            self._optimizer = AMPOptimizer.build_optimizer(cfg, params)
        else:
            self._optimizer = build_optimizer(cfg.optimizer, params)
        self._lr_scheduler = build_lr_scheduler(cfg.lr_scheduler, self._optimizer)
        self._lr_scheduler.step_update(0)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        """Run the forward pass in mixed precision if ``--amp`` asks for it."""
        if not self.cfg.common.amp:
            yield
            return
        from fairseq.optim.amp_optimizer import amp_dtype

        with torch.autocast(self.device.type, dtype=amp_dtype(self.cfg, self.device)):
            yield

    # -- data ------------------------------------------------------------------------------------

    def _max_positions(self) -> Any:
        return utils.resolve_max_positions(self.task.max_positions(), self._model.max_positions())

    def get_train_iterator(
        self,
        epoch: int,
        combine: bool = True,
        load_dataset: bool = True,
        data_selector: Any = None,
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
        limits = (self._max_positions(), data.max_tokens)
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
        self._dummy_batch = self._dummy_batch or iterator.first_batch
        return iterator

    def get_valid_iterator(self, subset: str, disable_iterator_cache: bool = False) -> Any:
        """Return the iterator over a validation split, sharded, never shuffled."""
        data = self.cfg.dataset
        iterator = self.task.get_batch_iterator(
            dataset=self.task.dataset(subset),
            max_tokens=data.max_tokens_valid,
            max_sentences=data.batch_size_valid,
            max_positions=utils.resolve_max_positions(self._max_positions(), data.max_tokens_valid),
            ignore_invalid_inputs=data.skip_invalid_size_inputs_valid_test,
            required_batch_size_multiple=data.required_batch_size_multiple,
            seed=self.cfg.common.seed,
            num_shards=self.world,
            shard_id=self.rank,
            num_workers=data.num_workers,
            epoch=1,
            data_buffer_size=data.data_buffer_size,
            disable_iterator_cache=disable_iterator_cache,
        )
        self._dummy_batch = self._dummy_batch or iterator.first_batch
        return iterator

    def begin_epoch(self, epoch: int) -> None:
        """Tell schedule and task that an epoch begins."""
        self.lr_step_begin_epoch(epoch)
        self.task.begin_epoch(epoch, self.get_model())

    def begin_valid_epoch(self, epoch: int) -> None:
        """Tell the task that a validation begins."""
        self.task.begin_valid_epoch(epoch, self.get_model())

    def _prepare_sample(self, sample: Any) -> tuple[Any, bool]:
        """Move a batch to the device; an empty one is replaced by the first batch of the run.

        Returns:
            ``(batch, whether it is such a filler)``.
        """
        is_filler = sample is None or len(sample) == 0
        if is_filler:
            assert self._dummy_batch not in (None, "DUMMY"), "no batch was seen yet"
            sample = self._dummy_batch
        sample = utils.move_to_device(sample, self.device)
        dtype = self._model_dtype()
        if dtype is not None:
            sample = utils.apply_to_sample(
                lambda t: t.to(dtype) if t.dtype == torch.float32 else t, sample
            )
        return sample, is_filler

    def _model_dtype(self) -> torch.dtype | None:
        common = self.cfg.common
        return torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else None

    # -- one update ------------------------------------------------------------------------------

    def _seed(self, purpose: str, micro: int = 0) -> None:
        """Seed torch for what comes next; the original's modes repeat the original's seeds."""
        seed = self.cfg.common.seed
        if self.cfg.dataset.data_rng == "philox":
            value = derive_seed(seed, purpose, self._num_updates, self.rank, micro)
        elif micro == 0:
            value = seed + self._num_updates
        else:
            return
        torch.manual_seed(value)

    @metrics.aggregate("train")
    def train_step(self, samples: Sequence[Any], raise_oom: bool = False) -> dict[str, Any] | None:
        """Take one optimizer step on the given micro-batches.

        Args:
            samples: this process's share of the update.
            raise_oom: unused; running out of memory always raises.

        Returns:
            the logging output, or None if the step was skipped (overflow, gradient not finite).
        """
        metrics.log_start_time("train_wall", priority=800, round=0)
        self._model.train()
        self._criterion.train()
        self.optimizer.zero_grad()
        prepared = [self._prepare_sample(sample) for sample in samples]
        self._criterion.prepare_update([sample for sample, filler in prepared if not filler])
        logs: list[dict[str, Any]] = []
        sample_size: Any = 0
        for micro, (sample, is_filler) in enumerate(prepared):
            self._seed("update", micro)
            with self._no_sync_unless(micro == len(prepared) - 1), self._precision():
                _, size, log = self.task.train_step(
                    sample,
                    self.model,
                    self._criterion,
                    self.optimizer,
                    self._num_updates,
                    is_filler,
                )
            if not is_filler:
                logs.append(log)
                sample_size = sample_size + size
        logs, sample_size = self._share(logs, sample_size)
        skipped = self._step(sample_size)
        if skipped is not None:
            logger.warning(skipped)
            metrics.log_stop_time("train_wall")
            return None
        output = self._log_update(logs, self._grad_norm)
        metrics.log_stop_time("train_wall")
        return output

    @contextlib.contextmanager
    def _no_sync_unless(self, is_last: bool) -> Iterator[None]:
        """Let DDP average gradients in the last micro-batch only."""
        inner: Any = getattr(self.model, "module", None)
        if self.world > 1 and not is_last and hasattr(inner, "no_sync"):
            with inner.no_sync():
                yield
        else:
            yield

    def _share(self, logs: list[dict[str, Any]], sample_size: Any) -> tuple[list[Any], Any]:
        """Add up logging outputs and sample sizes over micro-batches and processes."""
        if self.world == 1 and not self.task.logging_outputs_can_be_summed(self._criterion):
            return logs, sample_size
        keys = logs[0].keys() if logs else ()
        total: dict[str, Any] = {key: sum(log[key] for log in logs) for key in keys}
        if self.world > 1:
            total = distributed_utils.sum_over_processes(
                {**total, "_sample_size": sample_size}, self.device
            )
            sample_size = total.pop("_sample_size", 0)
        return [total], sample_size

    def _step(self, sample_size: Any) -> str | None:
        """Normalise, clip and apply the gradients; return why not, if they were not."""
        denominator = utils.item(sample_size) or 1.0
        optimizer = self.optimizer
        self._grad_norm: Tensor = torch.tensor(0.0)
        try:
            if self.world > 1 and not hasattr(self.model, "module"):
                optimizer.all_reduce_grads(self.model)
            optimizer.multiply_grads(self.world / denominator)
            self._grad_norm = optimizer.clip_grad_norm(self.cfg.optimization.clip_norm)
            if not bool(torch.isfinite(torch.as_tensor(self._grad_norm))):
                return self._skip_bad_update()
            self._bad_updates = 0
            self.task.optimizer_step(optimizer, self._model, self._num_updates)
        except OverflowError as overflow:
            optimizer.zero_grad()
            return f"NOTE: gradient overflow detected, ignoring gradient, {overflow}"
        self.set_num_updates(self._num_updates + 1)
        return None

    def _skip_bad_update(self) -> str:
        """Drop an update whose gradient is not finite; many in a row end the run."""
        self.optimizer.zero_grad()
        if self.cfg.common.amp:  # the scaler must see the overflow to lower its scale
            self.optimizer.step()
        self._bad_updates += 1
        if self._bad_updates >= MAX_BAD_UPDATES:
            raise FloatingPointError(
                f"the gradient was not finite in {MAX_BAD_UPDATES} updates in a row (update "
                f"{self._num_updates}); lower --lr, set --clip-norm, or use --bf16, not --fp16"
            )
        return (
            f"update {self._num_updates}: the gradient norm is {utils.item(self._grad_norm)}; the "
            "weights stay as they are"
        )

    @torch.no_grad()
    def valid_step(self, sample: Any, raise_oom: bool = False) -> dict[str, Any] | None:
        """Evaluate one batch; returns its logging output."""
        self._model.eval()
        self._criterion.eval()
        sample, is_filler = self._prepare_sample(sample)
        with self._precision():
            _, sample_size, log = self.task.valid_step(sample, self.model, self._criterion)
        logs = [] if is_filler else [log]
        logs, _ = self._share(logs, 0 if is_filler else sample_size)
        return self._reduce_logs(logs)

    # -- statistics ------------------------------------------------------------------------------

    def _reduce_logs(self, logs: list[Any]) -> dict[str, Any]:
        if not any(logs):
            return {}
        with metrics.aggregate() as aggregated:
            self.task.reduce_metrics(logs, self._criterion)
        return dict(aggregated.get_smoothed_values())

    def _log_update(self, logs: list[Any], grad_norm: Any) -> dict[str, Any]:
        metrics.log_speed("ups", 1.0, priority=100, round=2)
        metrics.log_scalar("gnorm", grad_norm, priority=400, round=3)
        clip = self.cfg.optimization.clip_norm
        if clip > 0:
            clipped = (torch.as_tensor(grad_norm) > clip) * 100.0
            metrics.log_scalar("clip", clipped, priority=500, round=1)
        with metrics.aggregate() as aggregated:
            if logs:
                self.task.reduce_metrics(logs, self._criterion)
        scaler = getattr(self.optimizer, "scaler", None)
        if scaler is not None:
            scale = scaler.loss_scale if hasattr(scaler, "loss_scale") else scaler.get_scale()
            metrics.log_scalar("loss_scale", scale, priority=700, round=4, weight=0)
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0] / 1024**3
            metrics.log_scalar("gb_free", free, priority=1500, round=1, weight=0)
        return dict(aggregated)

    def lr_step_begin_epoch(self, epoch: int) -> float:
        """Set the learning rate of an epoch."""
        self.lr_scheduler.step_begin_epoch(epoch)
        return self.lr_step_update()

    def lr_step(self, epoch: int, val_loss: float | None = None) -> float:
        """Adjust the learning rate at the end of an epoch."""
        self.lr_scheduler.step(epoch, val_loss)
        return self.lr_step_update()

    def lr_step_update(self) -> float:
        """Adjust the learning rate after an update; it is logged."""
        lr = self.lr_scheduler.step_update(self.get_num_updates())
        rates = lr if isinstance(lr, Mapping) else {"lr": lr}
        for name, rate in rates.items():
            key = "lr" if name in ("lr", "default") else f"lr_{name}"
            metrics.log_scalar(key, rate, weight=0, priority=300)
        return rates.get("default", next(iter(rates.values())))

    def get_lr(self) -> float:
        """Return the learning rate of the next update."""
        return self.optimizer.get_lr()

    def get_num_updates(self) -> int:
        """Return the number of updates done."""
        return self._num_updates

    def set_num_updates(self, num_updates: int) -> None:
        """Set the number of updates done, and the learning rate that follows."""
        self._num_updates = num_updates
        self.lr_step_update()
        metrics.log_scalar("num_updates", num_updates, weight=0, priority=200)

    def cumulative_training_time(self) -> float:
        """Return the seconds trained so far, restarts added up."""
        return time.time() - self._started + self._previous_training_time

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs, in the original's layout, on the CPU."""
        history = {
            "criterion_name": self._criterion.__class__.__name__,
            "optimizer_name": self.optimizer.__class__.__name__,
            "lr_scheduler_state": self.lr_scheduler.state_dict(),
            "num_updates": self.get_num_updates(),
        }
        criterion_state = self._criterion.state_dict()
        state = {
            "args": None,
            "cfg": original_cfg(self.cfg),
            "model": self._model.state_dict(),
            "criterion": criterion_state if utils.has_parameters(self._criterion) else None,
            "optimizer_history": [*self._optim_history, history],
            "task_state": self.task.state_dict(),
            "extra_state": {
                "metrics": metrics.state_dict(),
                "previous_training_time": self.cumulative_training_time(),
                OURS: our_record(self.cfg),
            },
        }
        if not self.cfg.checkpoint.no_save_optimizer_state:
            state["last_optimizer_state"] = self.optimizer.state_dict()
        return utils.apply_to_sample(lambda tensor: tensor.detach().cpu(), state)

    def save_checkpoint(
        self, filename: str, extra_state: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write the state to ``filename``.

        Args:
            filename: where to.
            extra_state: position in the data, validation metric and the like.
            facts: what the side file says.
        """
        state = self.state_dict()
        state["extra_state"].update(extra_state)
        checkpoint_files.write_checkpoint(state, filename, facts or {})

    def use_loaded(self, loaded: tuple[str, dict[str, Any]] | None) -> None:
        """Hand over a checkpoint that was read already, as ``(path, content)``."""
        self._loaded = loaded

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Mapping[str, Any] | None = None,
        reset_meters: bool = False,
    ) -> dict[str, Any] | None:
        """Restore a run.

        Args:
            filename: the checkpoint; a damaged one is replaced by the newest good one beside it.
            reset_optimizer: take the weights only; updates count from 0.
            reset_lr_scheduler: do not restore the schedule.
            optimizer_overrides: replace values of the optimizer's groups.
            reset_meters: do not restore the meters.

        Returns:
            its ``extra_state``, None if there is no such file.

        Raises:
            CheckpointError: if it does not fit.
        """
        if not PathManager.exists(filename):
            logger.info("No existing checkpoint found %s", filename)
            return None
        filename, state = self._loaded or load_newest(filename)
        self._loaded = None
        try:
            self._model.load_state_dict(state["model"], model_cfg=self.cfg.model)
            if utils.has_parameters(self._criterion) and state.get("criterion"):
                self._criterion.load_state_dict(state["criterion"])
        except FairseqError as error:
            raise explain(error, filename) from error
        extra_state = state["extra_state"]
        self._optim_history = state["optimizer_history"]
        optimizer_state = state.get("last_optimizer_state")
        self._optimizer = self._lr_scheduler = None  # masters are copied from the loaded weights
        if optimizer_state is not None and not reset_optimizer:
            self._restore_optimizer(
                filename, optimizer_state, reset_lr_scheduler, optimizer_overrides
            )
        self.task.load_state_dict(state["task_state"] or {})
        if not reset_meters and "previous_training_time" in extra_state:
            self._previous_training_time = extra_state["previous_training_time"]
            self._started = time.time()
        self._restore_meters(extra_state, reset_meters)
        logger.info(
            "Loaded checkpoint %s (epoch %s @ %s updates)",
            filename,
            (extra_state.get("train_iterator") or {}).get("epoch"),
            self.get_num_updates(),
        )
        return extra_state

    def _restore_optimizer(
        self,
        filename: str,
        optimizer_state: Mapping[str, Any],
        reset_lr_scheduler: bool,
        overrides: Mapping[str, Any] | None,
    ) -> None:
        last = self._optim_history[-1]
        for what, own in (("criterion", self._criterion), ("optimizer", self.optimizer)):
            name = own.__class__.__name__
            if last[f"{what}_name"] != name:
                raise CheckpointError(
                    f"{filename} was written with the {what} {last[f'{what}_name']}, this run has "
                    f"{name}; please reset the optimizer (--reset-optimizer)"
                )
        if not reset_lr_scheduler:
            self.lr_scheduler.load_state_dict(last["lr_scheduler_state"])
        self.optimizer.load_state_dict(optimizer_state, optimizer_overrides=dict(overrides or {}))
        self.set_num_updates(last["num_updates"])

    def _restore_meters(self, extra_state: Mapping[str, Any], reset_meters: bool) -> None:
        position = (extra_state.get("train_iterator") or {}).get("iterations_in_epoch", 0)
        if "metrics" not in extra_state or reset_meters:
            return
        metrics.load_state_dict(extra_state["metrics"])
        self._start_wall_clock()
        if position == 0:
            metrics.reset_meters("train")
        for meter in metrics.get_meters("default") or {}:
            found = metrics.get_meter("default", meter)
            if isinstance(found, meters.TimeMeter):
                found.reset()
