"""``DistributedFairseqModel``, which plug-ins call with the arguments in the original's order."""

from __future__ import annotations

import torch
from torch import nn

from fairseq.config.sections import DistributedTrainingConfig
from fairseq.models import DistributedFairseqModel


def test_one_process_needs_no_wrapper() -> None:
    model = nn.Linear(2, 2)
    wrapped = DistributedFairseqModel(
        DistributedTrainingConfig(), model, process_group=None, device=torch.device("cpu")
    )
    assert wrapped is model
