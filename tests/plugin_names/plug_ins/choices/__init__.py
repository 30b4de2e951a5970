"""Questions with several answers, in the style of the original's fine-tuning tasks."""

import json
import os

import numpy as np
import torch

from fairseq.criterions import LegacyFairseqCriterion, register_criterion
from fairseq.data import (
    Dictionary,
    IdDataset,
    ListDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    RawLabelDataset,
    RightPadDataset,
    SortDataset,
    data_utils,
)
from fairseq.tasks import LegacyFairseqTask, register_task


@register_task("answer_choice")
class AnswerChoiceTask(LegacyFairseqTask):
    @staticmethod
    def add_args(parser):
        parser.add_argument("data", metavar="DIR")
        parser.add_argument("--init-token", type=int, default=None)
        parser.add_argument("--num-classes", type=int, default=3)

    def __init__(self, args, vocab):
        super().__init__(args)
        self.vocab, self.mask = vocab, vocab.add_symbol("<mask>")

    @classmethod
    def load_dictionary(cls, filename):
        dictionary = Dictionary.load(filename)
        dictionary.add_symbol("<mask>")
        return dictionary

    @classmethod
    def setup_task(cls, args, **kwargs):
        assert args.criterion in ("sentence_ranking", "margin"), "Must set --criterion"
        return cls(args, cls.load_dictionary(os.path.join(args.data, "dict.txt")))

    def load_dataset(self, split, epoch=1, combine=False, data_path=None, return_only=False, **kw):
        def binarize(text):
            tokens = self.vocab.encode_line(text, append_eos=True, add_if_not_exist=False).long()
            if self.args.init_token is not None:
                tokens = torch.cat([tokens.new([self.args.init_token]), tokens])
            return tokens

        answers = [[] for _ in range(self.args.num_classes)]
        labels = []
        with open(os.path.join(self.args.data, split + ".jsonl"), encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                labels.append(row["right"])
                for tokens, choice in zip(answers, row["choices"], strict=True):
                    tokens.append(binarize(f"{row['question']} {choice}"))
        lengths = [np.fromiter(map(len, tokens), dtype=np.int64) for tokens in answers]
        parts = [ListDataset(*pair) for pair in zip(answers, lengths, strict=True)]
        dataset = {
            "id": IdDataset(),
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(parts[0], reduce=True),
        }
        for number, part in enumerate(parts, 1):
            dataset[f"net_input{number}"] = {
                "src_tokens": RightPadDataset(part, pad_idx=self.vocab.pad()),
                "src_lengths": NumelDataset(part, reduce=False),
            }
        dataset["target"] = RawLabelDataset(labels)
        dataset = NestedDictionaryDataset(dataset, sizes=[np.maximum.reduce(lengths)])
        with data_utils.numpy_seed(self.args.seed):
            dataset = SortDataset(dataset, sort_order=[np.random.permutation(len(dataset))])
        self.datasets[split] = dataset
        return dataset

    def build_model(self, args, from_checkpoint=False):
        from fairseq import models

        model = models.build_model(args, self)
        model.register_classification_head("sentence_classification_head", num_classes=1)
        return model

    @property
    def source_dictionary(self):
        return self.vocab

    @property
    def target_dictionary(self):
        return self.vocab


@register_criterion("margin")
class MarginCriterion(LegacyFairseqCriterion):
    """The right answer's score is to be above the others' by a margin."""

    def __init__(self, args, task):
        super().__init__(args, task)
        self.file = open(args.answers, "w", encoding="utf-8") if args.answers else None

    def __del__(self):
        if self.file is not None:
            self.file.close()

    @staticmethod
    def add_args(parser):
        parser.add_argument("--margin", type=float, default=1.0)
        parser.add_argument("--answers", metavar="FILE", help="file to save predictions to")

    def forward(self, model, sample, reduce=True):
        scores = torch.cat(
            [
                model(
                    **sample[f"net_input{number}"],
                    classification_head_name="sentence_classification_head",
                )[0]
                for number in range(1, self.task.args.num_classes + 1)
            ],
            dim=1,
        )
        target = sample["target"].view(-1)
        loss = torch.nn.functional.multi_margin_loss(
            scores, target, margin=self.args.margin, reduction="sum"
        )
        if self.file is not None:
            print(*scores.argmax(1).tolist(), file=self.file)
        size = len(target)
        return (
            loss,
            size,
            {
                "loss": loss.item(),
                "ntokens": sample["ntokens"],
                "nsentences": size,
                "sample_size": size,
                "ncorrect": (scores.argmax(1) == target).sum().item(),
            },
        )

    @staticmethod
    def aggregate_logging_outputs(logging_outputs):
        size = sum(log["sample_size"] for log in logging_outputs)
        return {
            "loss": sum(log["loss"] for log in logging_outputs) / size,
            "accuracy": sum(log["ncorrect"] for log in logging_outputs) / size,
        }
