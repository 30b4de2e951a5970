"""What a task is: it loads dictionaries and data, and builds what is trained on them."""

from __future__ import annotations

import argparse
import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fairseq.config.references import settled_alone
from fairseq.criterions.base import log_aggregated
from fairseq.data.batches.epochs import EpochBatchIterator
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import DataError
from fairseq.files.io import require_file
from fairseq.files.text_blocks import tokenize_line
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from fairseq.models.base import BaseFairseqModel
from fairseq.optim.base import FairseqOptimizer
from fairseq.protocols import Criterion, Limits, LoggingOutput, Model, Sample, Settings, StateDict
from fairseq.tasks.cutting import Fits, cut_batches, own_seed
from fairseq.tasks.stateful import StatefulContainer
from fairseq.utils import split_paths

if TYPE_CHECKING:
    from fairseq.decoding.beams import SequenceGenerator
    from fairseq.decoding.scorer import SequenceScorer


logger = logging.getLogger(__name__)


class FairseqTask:
    """Base of every task.

    A plug-in overrides what differs; the signatures are those of the original. References to other
    sections that nobody has settled become the defaults they refer to.

    Attributes:
        cfg: the task's configuration.
        datasets: loaded splits by name.
        state: saved and restored with checkpoints.
        only_evaluates: no batch is dropped, whatever the original does; set when a checkpoint is
            loaded for use.
        uses_ema: whether the steps take the averaged model of ``--store-ema`` as ``ema_model``.
    """

    if TYPE_CHECKING:  # what only some tasks have: ask with hasattr first
        mask_idx: int
        eval_lm_dataloader: Callable[..., Any]

    only_evaluates = False
    uses_ema = False

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        self.cfg = settled_alone(cfg)
        self.datasets: dict[str, Any] = {}
        self.dataset_to_epoch_iter: dict[Any, Any] = {}
        self.state = StatefulContainer()

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add flags to ``parser``; tasks with a configuration dataclass need not."""

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> FairseqTask:
        """Return an instance; most tasks load their dictionary here."""
        return cls(cfg, **kwargs)

    @staticmethod
    def logging_outputs_can_be_summed(criterion: Criterion) -> bool:
        """Tell whether logging outputs of several processes may be added up."""
        return criterion.logging_outputs_can_be_summed()

    @classmethod
    def load_dictionary(cls, filename: str) -> Dictionary:
        """Load a dictionary file."""
        require_file(filename, "dictionary", "It is written by fairseq-preprocess.")
        return Dictionary.load(filename)

    @classmethod
    def build_dictionary(
        cls,
        filenames: Sequence[str],
        workers: int = 1,
        threshold: int = -1,
        nwords: int = -1,
        padding_factor: int = 8,
    ) -> Dictionary:
        """Count the words of text files.

        Args:
            filenames: text files.
            workers: processes.
            threshold: drop words that occur less often.
            nwords: keep this many, special symbols included.
            padding_factor: pad the size to a multiple of this.
        """
        dictionary = Dictionary()
        for filename in filenames:
            Dictionary.add_file_to_dictionary(filename, dictionary, tokenize_line, workers)
        dictionary.finalize(threshold=threshold, nwords=nwords, padding_factor=padding_factor)
        return dictionary

    def has_sharded_data(self, split: str) -> bool:
        """Tell whether the data are spread over several folders, one per epoch."""
        return len(split_paths(getattr(self.cfg, "data", None) or "")) > 1

    def data_folder(self, split: str, epoch: int = 1) -> str:
        """Return the folder a split is read from in an epoch (from 1).

        Raises:
            DataError: if no folder is given or it does not exist.
        """
        paths = [path for path in split_paths(getattr(self.cfg, "data", None) or "") if path]
        if not paths:
            raise DataError("no data folder is given; name the output of fairseq-preprocess")
        folder = paths[(epoch - 1) % len(paths)] if split == self.train_split else paths[0]
        if not os.path.isdir(folder):
            raise DataError(f"data folder not found: {folder}; make it with fairseq-preprocess")
        return folder

    @property
    def train_split(self) -> str:
        """Return the name of the training split."""
        return getattr(self.cfg, "train_subset", None) or "train"

    @property
    def data_rng(self) -> str:
        """Return the source of randomness in masks and batches, one of ``DATA_RNGS``."""
        stated = getattr(self.cfg, "data_rng", None)
        return "philox" if stated in (None, "auto") else stated

    def load_dataset(
        self, split: str, combine: bool = False, task_cfg: Settings | None = None, **kwargs: Any
    ) -> None:
        """Load a split into ``self.datasets``.

        Args:
            split: its name, also that of its files.
            combine: also read ``split1``, ``split2``, ...
            task_cfg: other settings than those of the task; no task of the house reads it.
            **kwargs: ``epoch`` chooses the folder of data that are spread over several.

        Raises:
            DataError: if files are missing, damaged, or do not fit each other or the dictionary.
        """
        raise NotImplementedError

    def dataset(self, split: str) -> Any:
        """Return a loaded split.

        Raises:
            KeyError: if it was not loaded.
            TypeError: if it is no ``FairseqDataset``.
        """
        if split not in self.datasets:
            raise KeyError("Dataset not loaded: " + split)
        if not isinstance(self.datasets[split], (FairseqDataset, torch.utils.data.IterableDataset)):
            raise TypeError("Datasets are expected to be of type FairseqDataset")
        return self.datasets[split]

    def filter_indices_by_size(
        self,
        indices: np.ndarray,
        dataset: FairseqDataset,
        max_positions: Limits = None,
        ignore_invalid_inputs: bool = False,
    ) -> np.ndarray:
        """Drop samples that are too long, or refuse them.

        Args:
            indices: samples, in order.
            dataset: where they come from.
            max_positions: the limit or limits.
            ignore_invalid_inputs: drop with a warning instead of raising.

        Raises:
            DataError: naming the first samples that are too long.
        """
        indices, ignored = dataset.filter_indices_by_size(indices, max_positions)
        if len(ignored) == 0:
            return indices
        if not ignore_invalid_inputs:
            raise DataError(
                f"Size of sample #{ignored[0]} is invalid (={dataset.size(ignored[0])}) since "
                f"max_positions={max_positions}; {len(ignored)} samples are. Skip them with "
                "--skip-invalid-size-inputs-valid-test"
            )
        logger.warning(
            "%s samples have invalid sizes and will be skipped, max_positions=%s, first few "
            "sample ids=%s",
            f"{len(ignored):,}",
            max_positions,
            ignored[:10],
        )
        return indices

    def can_reuse_epoch_itr(self, dataset: FairseqDataset) -> bool:
        """Tell whether the batches of a dataset stay the same in every epoch."""
        return getattr(dataset, "can_reuse_epoch_itr_across_epochs", False)

    def get_batch_iterator(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: Limits = None,
        ignore_invalid_inputs: bool = False,
        required_batch_size_multiple: int = 1,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        disable_iterator_cache: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        update_epoch_batch_itr: bool = False,
    ) -> Any:
        """Return an iterator over the batches of a dataset.

        Args:
            dataset: what to iterate over.
            max_tokens: most tokens of a batch, padding included.
            max_sentences: most samples of a batch.
            max_positions: longest sample.
            ignore_invalid_inputs: drop longer ones instead of raising.
            required_batch_size_multiple: batch sizes are multiples of this if they can be.
            seed: of order and shuffling.
            num_shards: processes that share the batches.
            shard_id: this process.
            num_workers: processes that prepare batches.
            epoch: first epoch, from 1.
            data_buffer_size: batches prepared ahead.
            disable_iterator_cache: cut the batches anew, as ``update_epoch_batch_itr`` does.
            skip_remainder_batch: drop the last batch of an epoch.
            grouped_shuffling: shuffle groups of ``num_shards`` batches.
            update_epoch_batch_itr: see ``disable_iterator_cache``.
        """
        anew = disable_iterator_cache or update_epoch_batch_itr
        reuse = not anew and self.can_reuse_epoch_itr(dataset)
        if reuse and dataset in self.dataset_to_epoch_iter:
            return self.dataset_to_epoch_iter[dataset]
        dataset.set_epoch(epoch)

        fits = Fits(max_positions, max_tokens, ignore_invalid_inputs)
        cut = functools.partial(cut_batches, self, dataset, seed, fits)
        batching = {
            "max_tokens": max_tokens,
            "max_sentences": max_sentences,
            "required_batch_size_multiple": required_batch_size_multiple,
        }
        # the original's main branch orders by seed + the epoch it cuts batches in
        if self.data_rng == "fairseq-main":
            batching["order_epoch"] = epoch
        iterator = EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collater,
            batch_sampler=cut(batching, np.empty(0, dtype=np.int64)),
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
            grouped_shuffling=grouped_shuffling,
            data_rng=self.data_rng,
            batching=batching,
            rebatch=cut,
            keeps_batches=reuse,
            dataset_seed=own_seed(dataset),
        )
        if reuse:
            self.dataset_to_epoch_iter[dataset] = iterator
        return iterator

    def fit_dictionary(self, rows: int) -> bool:
        """Give the dictionary ``rows`` entries by adding or dropping unused ``madeupword`` ones.

        Returns:
            False if that is impossible; the dictionary is then as it was.
        """
        return False

    def documents_of(self, tokens_BT: torch.Tensor) -> torch.Tensor | None:
        """Return the number of each token's document, int64 (B, T); None if a row is all one."""
        return None

    # -- models and criterions -------------------------------------------------------------------

    def build_model(self, cfg: Settings, from_checkpoint: bool = False) -> Any:
        """Build the model that ``cfg`` describes."""
        from fairseq import models

        return models.build_model(cfg, self, from_checkpoint)

    def build_criterion(self, cfg: Settings, from_checkpoint: bool = False) -> Any:
        """Build the criterion that ``cfg`` describes."""
        from fairseq import criterions

        return criterions.build_criterion(cfg, self)

    def build_bpe(self, args: Settings) -> Any:
        """Build the subword encoder that ``args`` describes."""
        from fairseq.data import encoders

        return encoders.build_bpe(args)

    def build_tokenizer(self, args: Settings) -> Any:
        """Build the tokenizer that ``args`` describes."""
        from fairseq.data import encoders

        return encoders.build_tokenizer(args)

    def build_generator(
        self,
        models: Sequence[BaseFairseqModel],
        args: Settings,
        seq_gen_cls: Callable[..., Any] | None = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Callable[..., Any] | None = None,
    ) -> Any:
        """Build the generator or scorer; see :func:`fairseq.decoding.beams.build_generator`."""
        from fairseq.decoding.beams import build_generator

        ways = (seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn)
        return build_generator(self.target_dictionary, models, args, *ways)

    def inference_step(
        self,
        generator: SequenceGenerator | SequenceScorer,
        models: Sequence[BaseFairseqModel],
        sample: Sample,
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> Any:
        """Generate from a batch, or score it; arguments are those of the generator."""
        return generator.generate(
            models, sample, prefix_tokens=prefix_tokens, constraints=constraints
        )

    def train_step(
        self,
        sample: Sample,
        model: Model,
        criterion: Criterion,
        optimizer: FairseqOptimizer,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Run one batch forward and backward; of a filler batch (``ignore_grad``) the loss is 0.

        Returns:
            ``(loss, sample_size, logging_output)``: the loss is a sum, ``sample_size`` the
            denominator of the gradient.
        """
        model.train()
        model.set_num_updates(update_num)
        loss, sample_size, logging_output = criterion(model, sample)
        if ignore_grad:
            loss = loss * 0
        with torch.autocast(loss.device.type, enabled=False):  # mixed precision is for the forward
            optimizer.backward(loss)
        return loss, sample_size, logging_output

    def valid_step(
        self, sample: Sample, model: Model, criterion: Criterion
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Run one batch forward; returns as :meth:`train_step`."""
        model.eval()
        with torch.no_grad():
            return criterion(model, sample)

    def optimizer_step(self, optimizer: FairseqOptimizer, model: Model, update_num: int) -> None:
        """Take one step."""
        optimizer.step()

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Prepare for an epoch."""

    def begin_valid_epoch(self, epoch: int, model: Model) -> None:
        """Prepare for a validation."""

    def post_validate(self, model: Model, stats: dict[str, Any], agg: MetersDict) -> None:
        """See the figures of a validation before they are printed, and add to ``stats``."""

    def post_save(self, path: str, num_updates: int) -> None:
        """Learn that a checkpoint was written, under all of its names."""

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep besides the state, such as ``{class name: values}``."""
        return {}

    def set_checkpoint_dict(self, state_dict: StateDict) -> None:
        """Restore what a checkpoint kept under the name of the class."""

    def reduce_metrics(self, logging_outputs: list[LoggingOutput], criterion: Criterion) -> None:
        """Log what all processes reported: tokens, speed, sentences, then the criterion's own."""
        if not any("ntokens" in log for log in logging_outputs):
            logger.warning("ntokens not found in Criterion logging outputs, cannot log wpb or wps")
        else:
            ntokens = sum(log.get("ntokens", 0) for log in logging_outputs)
            metrics.log_scalar("wpb", ntokens, priority=180, round=1)
            metrics.log_speed("wps", ntokens, priority=90, round=1)
        if any("nsentences" in log for log in logging_outputs):
            nsentences = sum(log.get("nsentences", 0) for log in logging_outputs)
            metrics.log_scalar("bsz", nsentences, priority=190, round=1)
        aggregate = getattr(self, "aggregate_logging_outputs", None)  # of old plug-ins
        if aggregate is not None:
            log_aggregated(aggregate(logging_outputs, criterion))
        else:
            criterion.__class__.reduce_metrics(logging_outputs)

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep of the task."""
        return self.state.state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self.state.merge_state_dict(state_dict)

    def max_positions(self) -> Any:
        """Return the longest sample, None for no limit of the task."""
        return None

    @property
    def source_dictionary(self) -> Any:
        """Return the dictionary of the model's input."""
        raise NotImplementedError

    @property
    def target_dictionary(self) -> Any:
        """Return the dictionary of the model's output."""
        raise NotImplementedError

    def first_token(self) -> int:
        """Return the id of what texts begin with, as causal models of the task are trained."""
        begins = getattr(self.cfg, "add_bos_token", False) or (
            getattr(self.cfg, "sample_break_mode", None) == "line"
        )
        dictionary = self.source_dictionary
        return int(dictionary.bos() if begins else dictionary.eos())

    def dictionaries(self) -> dict[str, Any]:
        """Return what gives the ids of the model a meaning, by part; checkpoints keep digests."""
        try:
            return {"source": self.source_dictionary}
        except NotImplementedError:
            return {}


class LegacyFairseqTask(FairseqTask):
    """A task configured by a Namespace, for old plug-ins."""

    def __init__(self, args: Settings) -> None:
        super().__init__(args)
        self.args = args
