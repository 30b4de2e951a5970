"""A language-modelling task whose batches go on where the last one ended."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from omegaconf import II

from fairseq import utils
from fairseq.data import Dictionary, TokenBlockDataset, data_utils, iterators
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as dist_utils
from fairseq.tasks import FairseqTask, register_task


@dataclass
class ContinuedLMConfig(FairseqDataclass):
    data: str = field(default="???", metadata={"help": "path to data directory"})
    tokens_per_sample: int = field(default=8, metadata={"help": "places of a batch"})
    batch_size: int = II("dataset.batch_size")
    rank: Optional[int] = None  # noqa: UP045
    size: Optional[int] = None  # noqa: UP045


@register_task("continued_lm", dataclass=ContinuedLMConfig)
class ContinuedLMTask(FairseqTask):
    def __init__(self, cfg):
        super().__init__(cfg)
        if cfg.rank is None or cfg.size is None:
            cfg.rank, cfg.size = 0, 1
            if torch.distributed.is_initialized():
                cfg.rank = dist_utils.get_data_parallel_rank()
                cfg.size = dist_utils.get_data_parallel_world_size()
        self.dictionary = Dictionary.load(utils.split_paths(cfg.data)[0] + "/dict.txt")

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        path = f"{utils.split_paths(self.cfg.data)[0]}/{split}"
        data = data_utils.load_indexed_dataset(path, self.dictionary, combine=combine)
        blocks = TokenBlockDataset(
            data,
            data.sizes,
            block_size=self.cfg.tokens_per_sample,
            pad=self.source_dictionary.pad(),
            eos=self.source_dictionary.eos(),
            break_mode="none",
        )
        self.datasets[split] = ContinuedDataset(blocks, self.cfg.batch_size)

    def dataset(self, split):
        return self.datasets[split]

    def get_batch_iterator(
        self,
        dataset,
        num_workers=0,
        epoch=1,
        data_buffer_size=0,
        skip_remainder_batch=False,
        **kwargs,
    ):
        return iterators.EpochBatchIterator(
            dataset=dataset,
            collate_fn=self._collate,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            batch_sampler=[[number] for number in range(len(dataset))],
            disable_shuffling=True,
            skip_remainder_batch=skip_remainder_batch,
        )

    def eval_lm_dataloader(self, dataset, num_workers=1, data_buffer_size=10, **kwargs):
        batches = self.get_batch_iterator(dataset, num_workers, 1, data_buffer_size)
        return batches.next_epoch_itr(shuffle=False)

    def _collate(self, items):
        ((number, rows),) = items
        tokens = data_utils.collate_tokens(
            rows, self.source_dictionary.pad(), pad_to_length=self.cfg.tokens_per_sample
        )
        target = tokens[:, 1:].contiguous()
        return {
            "id": torch.tensor([number]),
            "net_input": {"src_tokens": tokens[:, :-1].contiguous()},
            "target": target,
            "nsentences": len(rows),
            "ntokens": int(target.ne(self.source_dictionary.pad()).sum()),
        }

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary


class ContinuedDataset(torch.utils.data.Dataset):
    """Batch i holds block i of every one of ``rows`` equal parts of the text."""

    def __init__(self, blocks, rows):
        self.blocks, self.rows = blocks, rows
        self.length = len(blocks) // rows
        assert self.length > 0

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        starts = np.arange(self.rows) * self.length
        return number, [self.blocks[int(start + number)] for start in starts]
