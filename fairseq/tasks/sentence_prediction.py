"""Sentence prediction: a class or numbers for a sentence, or for a pair of sentences.

The data folder holds ``input0`` (and ``input1`` for pairs) and ``label``, each made by
fairseq-preprocess; a regression reads the text file ``label/SPLIT.label`` instead. Class ids follow
the label dictionary: the most frequent label is class 0.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fairseq.config.references import settled_alone
from fairseq.config.schema import II, FairseqDataclass, option, with_values
from fairseq.data import collate
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.concat import ConcatSentencesDataset
from fairseq.data.datasets.nested_dictionary import NestedDictionaryDataset
from fairseq.data.datasets.shorten import TruncateDataset
from fairseq.data.datasets.wrappers import (
    BaseWrapperDataset,
    ConstantTokensDataset,
    IdDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RawLabelDataset,
    RightPadDataset,
    RollDataset,
)
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import shift_of
from fairseq.errors import ConfigError, DataError, MissingFileError, UnsupportedError
from fairseq.files.io import require_text
from fairseq.protocols import Settings
from fairseq.tasks import register_task
from fairseq.tasks.blocks import shortened
from fairseq.tasks.one_dictionary import MaskTask

logger = logging.getLogger(__name__)


@dataclass
class SentencePredictionConfig(FairseqDataclass):
    """Settings of sentence prediction."""

    data: str | None = option(None, "folder with input0, input1 (for pairs) and label", path=True)
    num_classes: int = option(
        -1, "number of classes, or of numbers in a regression (-1: none given, an error)", minimum=1
    )
    init_token: int | None = option(None, "id of a token put in front, 0 for RoBERTa", minimum=0)
    separator_token: int | None = option(
        None, "id of a token put before input1, 2 for RoBERTa", minimum=0
    )
    no_shuffle: bool = option(False, "keep the order of the files")
    shorten_method: Literal["none", "truncate", "random_crop"] = option(
        "none", "what to do with inputs that are too long"
    )
    shorten_data_split_list: str = option("", "splits to shorten, separated by commas (all)")
    add_prev_output_tokens: bool = option(False, "also give the tokens shifted by one")
    max_positions: int = option(512, "longest input", minimum=1)
    regression_target: bool = II("criterion.regression_target")
    classification_head_name: str = II("criterion.classification_head_name")
    seed: int = II("common.seed")
    d2v2_multi: bool = option(False, "refused: only the original has data2vec")
    omit_mask: bool = option(
        False, "keep <mask> out of the dictionary; set by --mask-embedding zero"
    )
    data_rng: str = option(II("dataset.data_rng"), new=True)
    train_subset: str = option(II("dataset.train_subset"), new=True)
    dataset_impl: str | None = option(II("dataset.dataset_impl"), new=True)


class _Shuffled(BaseWrapperDataset):
    """The items in an order that a seed decides, the same in every epoch."""

    def __init__(self, dataset: FairseqDataset, seed: int) -> None:
        super().__init__(dataset)
        self.seed = seed

    def ordered_indices(self) -> np.ndarray:
        # numpy takes seeds of 32 bits
        random = np.random.RandomState(self.seed % 2**32)
        return np.argsort(random.permutation(len(self)))


@register_task("sentence_prediction", dataclass=SentencePredictionConfig)
class SentencePredictionTask(MaskTask):
    """Predict a class, or numbers, from one or two sentences.

    Args:
        cfg: the settings.
        data_dictionary: of the inputs.
        label_dictionary: of the labels; None in a regression.

    Raises:
        ConfigError: if a token to put in front is not in the dictionary.
        UnsupportedError: for ``d2v2_multi``.
    """

    cfg: SentencePredictionConfig

    def __init__(
        self,
        cfg: SentencePredictionConfig,
        data_dictionary: Dictionary,
        label_dictionary: Dictionary | None = None,
    ) -> None:
        super().__init__(cfg)
        if cfg.d2v2_multi:
            raise UnsupportedError("--d2v2-multi belongs to data2vec, which is not supported")
        self._label_dictionary = label_dictionary
        self.segments = 0  # of the model, once it is built
        self.use_dictionary(data_dictionary)
        for name in ("init_token", "separator_token"):
            token = getattr(cfg, name)
            if token is not None and not 0 <= token < len(data_dictionary):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {token} is not in the dictionary of the data, "
                    f"which has {len(data_dictionary)} entries"
                )

    @classmethod
    def setup_task(cls, cfg: SentencePredictionConfig, **kwargs: Any) -> SentencePredictionTask:
        """Load both dictionaries and set up the task.

        Raises:
            ConfigError: if ``--num-classes`` is missing.
            MissingFileError: if a dictionary is absent.
        """
        cfg = settled_alone(cfg)
        if cfg.num_classes < 1:
            raise ConfigError(
                f"--num-classes is {cfg.num_classes}; give the number of classes (1 for a "
                "regression with one number)"
            )
        folder = str(cfg.data)
        data_dictionary = cls.load_dictionary(os.path.join(folder, "input0", "dict.txt"))
        label_dictionary = None
        if not cfg.regression_target:
            label_dictionary = cls.load_dictionary(os.path.join(folder, "label", "dict.txt"))
            # preprocessing pads dictionaries with madeupwords, which are no classes
            names = label_dictionary.symbols[label_dictionary.nspecial :]
            labels = [name for name in names if not name.startswith("madeupword")]
            if len(labels) > cfg.num_classes:
                raise ConfigError(
                    f"{folder}/label/dict.txt has {len(labels)} labels ({', '.join(labels[:5])}, "
                    f"...), but --num-classes is {cfg.num_classes}"
                )
        task = cls(cfg, data_dictionary, label_dictionary, **kwargs)
        logger.info("[input] dictionary: %s types", f"{len(task.dictionary):,}")
        return task

    # -- data ------------------------------------------------------------------------------------

    def load_dataset(
        self,
        split: str,
        combine: bool = False,
        task_cfg: Settings | None = None,
        epoch: int = 1,
        **kwargs: Any,
    ) -> None:
        cfg = self.cfg
        first = self._inputs("input0", split, combine)
        if first is None:
            raise MissingFileError(
                f"Dataset not found: {split} ({cfg.data}/input0/{split}); make it with "
                "fairseq-preprocess"
            )
        second = self._inputs("input1", split, combine)
        if second is not None and len(first) != len(second):
            raise DataError(
                f"{cfg.data}: {split} has {len(first)} sentences in input0 and {len(second)} "
                "in input1"
            )
        tokens, segments = self._joined(first, second, split)
        defn = self._batch_parts(tokens, split, combine)
        if segments is not None:
            defn["net_input"]["segments"] = RightPadDataset(segments, pad_idx=0)
        self.datasets[split] = self._in_order(defn, tokens.sizes, split)

    def _joined(
        self,
        first: FairseqDataset,
        second: FairseqDataset,
        split: str,
        longest_first: int | None = None,
    ) -> tuple[Any, Any]:
        """Return tokens of single sentences or pairs, shortened, and segments if the model has any.

        ``longest_first`` binds the first sentence with the token that is put in front of it.

        Both are shortened alike: where a crop starts depends on the sample's number.
        """
        cfg = self.cfg
        tokens = first if cfg.init_token is None else PrependTokenDataset(first, cfg.init_token)
        if longest_first is not None:
            tokens = TruncateDataset(tokens, longest_first)
        segments: Any = ConstantTokensDataset(tokens, 0)
        if second is not None:
            if cfg.separator_token is not None:
                second = PrependTokenDataset(second, cfg.separator_token)
            tokens = ConcatSentencesDataset(tokens, second)
            # a model with one segment calls both sentences 0
            segment = min(1, self.segments - 1)
            segments = ConcatSentencesDataset(segments, ConstantTokensDataset(second, segment))
        longest = self.max_positions()
        cut = shortened(self, segments, split, longest) if self.segments else None
        return shortened(self, tokens, split, longest), cut

    def _in_order(self, defn: dict[str, Any], sizes_S: np.ndarray, split: str) -> Any:
        """Return the dataset of these parts, in the order of the files or in a drawn one."""
        cfg = self.cfg
        dataset: Any = NestedDictionaryDataset(defn, sizes=[sizes_S])
        if not cfg.no_shuffle:
            dataset = _Shuffled(dataset, cfg.seed)
        logger.info("Loaded %s with #samples: %s", split, f"{len(sizes_S):,}")
        return dataset

    def _batch_parts(self, tokens: FairseqDataset, split: str, combine: bool) -> dict[str, Any]:
        """Return the parts of a batch by name."""
        pad = self.dictionary.pad()
        net_input: dict[str, Any] = {
            "src_tokens": RightPadDataset(tokens, pad_idx=pad),
            "src_lengths": NumelDataset(tokens, reduce=False),
        }
        if self.cfg.add_prev_output_tokens:
            net_input["prev_output_tokens"] = RightPadDataset(RollDataset(tokens, 1), pad_idx=pad)
        parts: dict[str, Any] = {
            "id": IdDataset(),
            "net_input": net_input,
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(tokens, reduce=True),
        }
        target = self._targets(split, combine)
        if target is not None:
            if len(target) != len(tokens):
                raise DataError(
                    f"{self.cfg.data}: {split} has {len(tokens)} inputs, but {len(target)} labels"
                )
            parts["target"] = target
        return parts

    def _inputs(self, kind: str, split: str, combine: bool) -> Any:
        """Return the sentences of ``input0`` or ``input1``, None if there are none."""
        path = os.path.join(str(self.cfg.data), kind, split)
        sentences = collate.load_indexed_dataset(
            path, self.dictionary, self.cfg.dataset_impl, combine
        )
        if sentences is None:
            return None
        # only what is mapped into memory can be checked as a whole: reading every item would take
        # as long as an epoch
        flat = getattr(sentences, "flat", np.empty(0, np.int64))
        size = len(self.dictionary) - self._adds_mask
        largest = int(flat.max(initial=0)) - shift_of(sentences)
        if largest >= size:
            raise DataError(
                f"{path} holds token id {largest}, but {self.cfg.data}/input0/dict.txt "
                f"has {size} entries: they come from different runs of fairseq-preprocess"
            )
        return sentences

    def _targets(self, split: str, combine: bool) -> Any:
        """Return the labels of a split: class ids, or rows of numbers; None if there are none."""
        path = os.path.join(str(self.cfg.data), "label", split)
        if self.cfg.regression_target:
            name = f"{path}.label"
            return RawLabelDataset(self._numbers(name)) if os.path.exists(name) else None
        dictionary = self.label_dictionary
        labels = collate.load_indexed_dataset(path, dictionary, self.cfg.dataset_impl, combine)
        if labels is None:
            return None
        sizes = np.asarray(labels.sizes)
        # preprocessing ends every line with </s>, so a line of one label has two tokens
        if len(sizes) and (int(sizes.min()) < 2 or int(sizes.max()) > 2):
            line = int(np.flatnonzero(sizes != 2)[0]) + 1
            raise DataError(f"{path}: line {line} does not hold exactly one label")
        ids = np.array([int(labels[i][0]) for i in range(len(labels))], np.int64)
        # as in the original, class 0 is the first entry behind the special symbols
        classes = ids - dictionary.nspecial
        unknown = np.flatnonzero((ids == dictionary.unk()) | (classes < 0))
        if len(unknown):
            raise DataError(
                f"{path}: the label in line {unknown[0] + 1} is not in label/dict.txt; binarize "
                "all splits with the dictionary of the training labels (--srcdict)"
            )
        too_large = np.flatnonzero(classes >= self.cfg.num_classes)
        if len(too_large):
            line = int(too_large[0])
            raise DataError(
                f"{path}: the label in line {line + 1} ({dictionary[int(ids[line])]}) is class "
                f"{classes[line]}, but --num-classes is {self.cfg.num_classes}"
            )
        return RawLabelDataset([[int(number)] for number in classes])

    def _numbers(self, path: str) -> list[Any]:
        """Read ``num_classes`` numbers from each line of a label file."""
        rows = []
        for number, line in enumerate(require_text(path, "label file", "").splitlines(), 1):
            try:
                row = [float(word) for word in line.split()]
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            if len(row) != self.cfg.num_classes or not all(map(math.isfinite, row)):
                raise DataError(
                    f"{path}, line {number}: expected {self.cfg.num_classes} numbers, found "
                    f"{line!r}"
                )
            rows.append(row)
        return rows

    # -- the model -------------------------------------------------------------------------------

    def build_model(self, cfg: Settings, from_checkpoint: bool = False) -> Any:
        """Build the model for this task's lengths and give it the classification head."""
        from fairseq import models

        if hasattr(cfg, "max_positions") and not from_checkpoint:
            cfg = with_values(cfg, max_positions=self.cfg.max_positions)
        model = models.build_model(cfg, self, from_checkpoint)
        self.segments = getattr(cfg, "segments", None) or 0
        if not hasattr(model, "register_classification_head"):
            raise ConfigError(
                f"{type(model).__name__} has no classification heads; use --arch roberta"
            )
        if self.cfg.classification_head_name not in getattr(model, "classification_heads", {}):
            model.register_classification_head(
                self.cfg.classification_head_name, num_classes=self.outputs_of_head()
            )
        return model

    def outputs_of_head(self) -> int:
        """Return how many numbers the classification head puts out."""
        return self.cfg.num_classes

    def max_positions(self) -> int:
        return self.cfg.max_positions

    def dictionaries(self) -> dict[str, Any]:
        # the order of the labels is that of the classes
        return {"source": self.dictionary, "labels": self._label_dictionary}

    @property
    def label_dictionary(self) -> Dictionary:
        """Return the dictionary of the labels.

        Raises:
            ConfigError: in a regression.
        """
        if self._label_dictionary is None:
            raise ConfigError("a regression has no label dictionary")
        return self._label_dictionary
