"""Causal language modelling: blocks of text, each token to be predicted from those before it.

text lines -> token blocks, each with its source shifted by one -> batches. The source of a block
begins with the token before it, end-of-sentence at the start of the text. Source: Radford et al.
2018, section 3.1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fairseq.config.schema import II, ChoiceEnum, option
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.causal_lm import MonolingualDataset
from fairseq.data.datasets.context_window import LMContextWindowDataset
from fairseq.data.datasets.nested_dictionary import NestedDictionaryDataset
from fairseq.data.datasets.token_blocks import TokenBlockDataset
from fairseq.data.datasets.wrappers import (
    AppendTokenDataset,
    IdDataset,
    NumelDataset,
    PrependTokenDataset,
    RightPadDataset,
    StripTokenDataset,
)
from fairseq.data.line_dataset import ShiftedLineDataset
from fairseq.data.storage.dictionary import Dictionary, TruncatedDictionary
from fairseq.data.storage.load import load_lines
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.models.base import BaseFairseqModel
from fairseq.protocols import Limits, Sample, Settings
from fairseq.tasks import register_task
from fairseq.tasks.blocks import BlocksConfig, shortened
from fairseq.tasks.one_dictionary import OneDictionaryTask

if TYPE_CHECKING:
    from fairseq.decoding.beams import SequenceGenerator
    from fairseq.decoding.scorer import SequenceScorer


logger = logging.getLogger(__name__)

# types of the fields of plug-ins, which the original keeps here
SAMPLE_BREAK_MODE_CHOICES = ChoiceEnum(["none", "complete", "complete_doc", "eos"])
SHORTEN_METHOD_CHOICES = ChoiceEnum(["none", "truncate", "random_crop"])


@dataclass
class LanguageModelingConfig(BlocksConfig):
    """Settings of causal language modelling."""

    output_dictionary_size: int = option(
        -1, "predict the first N entries of the dictionary only (-1: all)", minimum=1
    )
    self_target: bool = option(False, "predict the token itself")
    future_target: bool = option(False, "predict the next token (the default)")
    past_target: bool = option(False, "predict the token before")
    add_bos_token: bool = option(False, "begin blocks with <s>")
    max_target_positions: int | None = option(
        None, "positions of the model (--tokens-per-sample if not given)", minimum=1
    )
    pad_to_fixed_length: bool = option(False, "pad every batch to --tokens-per-sample")
    pad_to_fixed_bsz: bool = option(False, "pad every batch to --batch-size rows")
    batch_size: int | None = II("dataset.batch_size")
    batch_size_valid: int | None = II("dataset.batch_size_valid")
    dataset_impl: str | None = II("dataset.dataset_impl")


@register_task("language_modeling", dataclass=LanguageModelingConfig)
class LanguageModelingTask(OneDictionaryTask):
    """Predict the next token.

    Args:
        cfg: the settings.
        dictionary: of the sources.
        output_dictionary: of the targets, a first part of the other; the same if None.
        targets: which of ``self``, ``future`` and ``past`` are predicted; ``future`` if None.
    """

    cfg: LanguageModelingConfig

    def __init__(
        self,
        cfg: LanguageModelingConfig,
        dictionary: Dictionary | None = None,
        output_dictionary: Dictionary | None = None,
        targets: list[str] | None = None,
    ) -> None:
        super().__init__(cfg)
        if dictionary is None:
            dictionary = self.dictionary_of_data()
        self.dictionary = dictionary
        self.output_dictionary = output_dictionary or self._outputs(dictionary)
        self.targets = targets or ["future"]

    def _outputs(self, dictionary: Dictionary) -> Dictionary:
        size = self.cfg.output_dictionary_size
        return dictionary if size < 0 else TruncatedDictionary(dictionary, size)

    @classmethod
    def setup_task(cls, cfg: LanguageModelingConfig, **kwargs: Any) -> LanguageModelingTask:
        """Load ``dict.txt`` from the (first) data folder and set up the task."""
        names = ("self", "future", "past")
        targets = [name for name in names if getattr(cfg, f"{name}_target", False)]
        task = cls(cfg, targets=targets or None, **kwargs)
        logger.info("dictionary: %s types", f"{len(task.dictionary):,}")
        return task

    def build_model(self, cfg: Settings, from_checkpoint: bool = False) -> Any:
        """Build the model that ``cfg`` describes.

        Raises:
            ConfigError: if it cannot predict the targets.
        """
        model = super().build_model(cfg, from_checkpoint)
        cannot = set(self.targets) - set(model.supported_targets)
        if cannot:
            advice = f"drop --{min(cannot)}-target"
            if "future" in cannot:  # which is asked for without a flag
                advice = "name a causal --arch, such as transformer_lm, or another --task"
            raise ConfigError(
                f"this model cannot predict {sorted(cannot)} targets, only "
                f"{sorted(model.supported_targets)}; {advice}"
            )
        return model

    # -- data ------------------------------------------------------------------------------------

    def load_dataset(
        self,
        split: str,
        combine: bool = False,
        task_cfg: Settings | None = None,
        epoch: int = 1,
        **kwargs: Any,
    ) -> None:
        cfg, dictionary = self.cfg, self.dictionary
        folder = self.data_folder(split, epoch)
        lines = load_lines(
            folder, split, dictionary, dataset_impl=cfg.dataset_impl, combine=combine
        )
        lines = shortened(self, lines, split, cfg.tokens_per_sample)
        blocks = self._blocks(lines)
        logger.info("loaded %s blocks from: %s/%s", f"{len(blocks):,}", folder, split)
        batch_size = cfg.batch_size if split == self.train_split else cfg.batch_size_valid
        self.datasets[split] = MonolingualDataset(
            blocks,
            blocks.sizes,
            dictionary,
            self.output_dictionary,
            add_eos_for_other_targets=cfg.sample_break_mode not in (None, "none"),
            shuffle=True,
            targets=self.targets,
            add_bos_token=cfg.add_bos_token,
            fixed_pad_length=cfg.tokens_per_sample if cfg.pad_to_fixed_length else None,
            pad_to_bsz=batch_size if cfg.pad_to_fixed_bsz else None,
            document_mask=cfg.document_mask,
        )

    def _blocks(self, lines: FairseqDataset) -> TokenBlockDataset | ShiftedLineDataset:
        """Return blocks of lines, with their targets."""
        cfg, dictionary = self.cfg, self.dictionary
        if cfg.sample_break_mode == "line":
            if self.targets != ["future"] or cfg.add_bos_token:
                raise ConfigError(
                    "--sample-break-mode line predicts the next token of <s> line </s>: drop "
                    "--self-target, --past-target and --add-bos-token"
                )
            # one token more than the model sees: the source lacks the last, the target the first
            return ShiftedLineDataset(lines, lines.sizes, dictionary, cfg.tokens_per_sample + 1)
        return TokenBlockDataset(
            lines,
            lines.sizes,
            cfg.tokens_per_sample,
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            break_mode=cfg.sample_break_mode,
            include_targets=True,
        )

    def build_dataset_for_inference(
        self, src_tokens: Sequence[Any], src_lengths: Sequence[Any], **kwargs: Any
    ) -> NestedDictionaryDataset:
        """Return a dataset of prompts, each with the first token that sources have in front.

        Args:
            src_tokens: dataset or list of int64 tensors (T,); an end-of-sentence at their end is
                stripped, since the text goes on.
            src_lengths: their lengths.
            **kwargs: ignored.
        """
        dictionary = self.dictionary
        prompts = StripTokenDataset(
            TokenBlockDataset(
                src_tokens,
                src_lengths,
                None,
                pad=dictionary.pad(),
                eos=dictionary.eos(),
                break_mode="eos",
            ),
            dictionary.eos(),
        )
        sources = PrependTokenDataset(prompts, self.first_token())
        # behind the prompt nothing is known: the pad is a target that does not count
        targets = AppendTokenDataset(prompts, dictionary.pad())
        return NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(sources, dictionary.pad()),
                    "src_lengths": NumelDataset(sources),
                },
                "target": RightPadDataset(targets, dictionary.pad()),
            },
            sizes=[np.asarray(src_lengths)],
        )

    def inference_step(
        self,
        generator: SequenceGenerator | SequenceScorer,
        models: Sequence[BaseFairseqModel],
        sample: Sample,
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> Any:
        """Continue the sources of a batch, or score them if the generator is a scorer.

        What the outputs begin with, ``prefix_tokens`` (B, T), is the sources if None.
        """
        if constraints is not None:
            raise UnsupportedError("constrained generation exists in the original only")
        first = self.first_token()
        src_tokens_BT = sample["net_input"]["src_tokens"]
        if prefix_tokens is None and src_tokens_BT.nelement():
            # the generator puts the first token in front of every prefix by itself
            begins = bool(src_tokens_BT[:, 0].eq(first).all())
            prefix_tokens = src_tokens_BT[:, 1:] if begins else src_tokens_BT
        return generator.generate(models, sample, prefix_tokens=prefix_tokens, bos_token=first)

    def eval_lm_dataloader(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = 36000,
        batch_size: int | None = None,
        max_positions: Limits = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ) -> Any:
        """Return the batches of an evaluation, in order; blocks that are too long are left out.

        Args:
            dataset: a ``MonolingualDataset``.
            max_tokens: most tokens of a batch, padding included.
            batch_size: most blocks of a batch.
            max_positions: longest block.
            num_shards: processes that share the batches.
            shard_id: this process.
            num_workers: processes that prepare batches.
            data_buffer_size: batches prepared ahead.
            context_window: tokens of context that are put in front of each block.
        """
        if context_window > 0:
            dataset = LMContextWindowDataset(
                dataset, self.cfg.tokens_per_sample, context_window, self.dictionary.pad()
            )
        return self.get_batch_iterator(
            dataset=dataset,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            max_positions=max_positions,
            ignore_invalid_inputs=True,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size,
        ).next_epoch_itr(shuffle=False)

    def fit_dictionary(self, rows: int) -> bool:
        fitted = self.dictionary.resized(rows)
        if fitted is None or self.cfg.output_dictionary_size >= 0:
            return False
        self.dictionary = self.output_dictionary = fitted
        return True

    @property
    def target_dictionary(self) -> Dictionary:
        return self.output_dictionary
