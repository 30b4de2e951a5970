"""What tasks on blocks of text have in common: their settings, and how long lines are shortened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.block_boundaries import BreakMode
from fairseq.data.datasets.shorten import maybe_shorten_dataset
from fairseq.tasks.base import FairseqTask


@dataclass
class BlocksConfig(FairseqDataclass):
    """Settings of language modelling, causal or masked."""

    data: str | None = option(
        None, "folders of binarized data, separated by ':' (one per epoch)", path=True
    )
    sample_break_mode: BreakMode = option(
        "none",
        "how blocks are cut: none = at any token, complete = at sentences, complete_doc = also at "
        "documents, eos = one sentence a block, line = <s> line </s>, long ones cut, short and "
        "mostly unknown ones left out",
    )
    tokens_per_sample: int = option(1024, "longest block", minimum=1)
    shorten_method: Literal["none", "truncate", "random_crop"] = option(
        "none", "what to do with lines longer than a block"
    )
    shorten_data_split_list: str = option("", "splits to shorten, separated by commas (all)")
    document_mask: bool = option(
        False, "tokens of a row see only their own document; positions start anew", new=True
    )
    seed: int = II("common.seed")
    data_rng: str = option(II("dataset.data_rng"), new=True)
    train_subset: str = option(II("dataset.train_subset"), new=True)


def shortened(task: FairseqTask, dataset: FairseqDataset, split: str, longest: int) -> Any:
    """Return a dataset whose items have at most ``longest`` tokens, if the settings say how."""
    cfg = task.cfg
    return maybe_shorten_dataset(
        dataset,
        split,
        cfg.shorten_data_split_list,
        cfg.shorten_method,
        longest,
        cfg.seed,
        data_rng=task.data_rng,
    )
