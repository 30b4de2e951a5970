"""Sentence ranking: which of several options belongs to a sentence.

The data folder holds ``input0``, the sentences, and ``input1`` to ``inputN``, the options, each
made by fairseq-preprocess, and the text file ``label/SPLIT.label`` with the number of the right
option, from 0, in each line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq.config.references import settled_alone
from fairseq.config.schema import II, option
from fairseq.data.datasets.wrappers import (
    IdDataset,
    NumelDataset,
    NumSamplesDataset,
    RawLabelDataset,
    RightPadDataset,
)
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.files.io import require_text
from fairseq.protocols import Settings
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask


@dataclass
class SentenceRankingConfig(SentencePredictionConfig):
    """Settings of sentence ranking."""

    num_classes: int = option(
        -1, "number of options of a sentence (-1: none given, an error)", minimum=-1
    )
    max_option_length: int | None = option(
        None, "longest option; the rest of it is cut off", minimum=1
    )
    regression_target: bool = II("criterion.regression_target")
    classification_head_name: str = II("criterion.ranking_head_name")


@register_task("sentence_ranking", dataclass=SentenceRankingConfig)
class SentenceRankingTask(SentencePredictionTask):
    """Score every option with its sentence, ``[init] option [separator] sentence``."""

    cfg: SentenceRankingConfig

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> SentenceRankingTask:
        cfg = settled_alone(cfg)
        if cfg.num_classes < 2:
            raise ConfigError(f"--num-classes is {cfg.num_classes}; give the number of options")
        return cls(cfg, cls.load_dictionary(os.path.join(str(cfg.data), "input0", "dict.txt")))

    def load_dataset(
        self,
        split: str,
        combine: bool = False,
        task_cfg: Settings | None = None,
        epoch: int = 1,
        **kwargs: Any,
    ) -> None:
        """See the base class; batches have ``net_input1``, ``net_input2``, ... for the options."""
        names = [f"input{number}" for number in range(self.cfg.num_classes + 1)]
        parts = {name: self._inputs(name, split, combine) for name in names}
        absent = [name for name, part in parts.items() if part is None]
        if absent:
            raise MissingFileError(
                f"Dataset not found: {split} ({self.cfg.data}/{absent[0]}/{split})"
            )
        lengths = {name: len(part) for name, part in parts.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{self.cfg.data}: {split} has different numbers of lines: {lengths}")
        pad, longest = self.dictionary.pad(), self.cfg.max_option_length
        defn: dict[str, Any] = {"id": IdDataset(), "nsentences": NumSamplesDataset()}
        joined = []
        for number, name in enumerate(names[1:], 1):
            tokens, segments = self._joined(parts[name], parts["input0"], split, longest)
            net_input = {
                "src_tokens": RightPadDataset(tokens, pad_idx=pad),
                "src_lengths": NumelDataset(tokens, reduce=False),
            }
            if segments is not None:
                net_input["segments"] = RightPadDataset(segments, pad_idx=0)
            defn[f"net_input{number}"] = net_input
            joined.append(tokens)
        defn["ntokens"] = NumelDataset(joined[0], reduce=True)
        target = self._right_options(split, len(joined[0]))
        if target is not None:
            defn["target"] = target
        # all options of a sentence go through the model: it is as long as the longest of them
        longest_S = np.maximum.reduce([np.asarray(tokens.sizes) for tokens in joined])
        self.datasets[split] = self._in_order(defn, longest_S, split)

    def _right_options(self, split: str, samples: int) -> RawLabelDataset | None:
        """Return the numbers of the right options, None where there is no such file."""
        path = os.path.join(str(self.cfg.data), "label", f"{split}.label")
        if not os.path.exists(path):
            return None
        lines = require_text(path, "label file", "").splitlines()
        if len(lines) != samples:
            raise DataError(f"{path} has {len(lines)} lines, but there are {samples} sentences")
        allowed = {str(number) for number in range(self.cfg.num_classes)}
        for number, line in enumerate(lines, 1):
            if line.strip() not in allowed:
                raise DataError(
                    f"{path}, line {number}: expected 0 to {self.cfg.num_classes - 1}, found "
                    f"{line!r}"
                )
        return RawLabelDataset([int(line) for line in lines])

    def outputs_of_head(self) -> int:
        return 1
