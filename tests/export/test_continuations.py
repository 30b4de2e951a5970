"""Greedy continuations of a model and of its copy, with models that are told what to say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairseq.errors import CheckpointError
from fairseq.export.compare import check_continuations

PAD, FIRST, OURS, THEIRS = 1, 4, 5, 6
PROMPTS = [torch.tensor([2, FIRST])]


def says(token: int, like: Tensor) -> Tensor:
    """Return logits (1, T, 8) by which ``token`` is the likeliest everywhere."""
    logits_1TV = torch.zeros(1, like.shape[1], 8)
    logits_1TV[..., token] = 9.0
    return logits_1TV


def test_a_pad_ends_the_comparison() -> None:
    """One side attends to a pad that the other leaves out: what follows it says nothing."""
    check_continuations(
        lambda x_1T: says(OURS if PAD in x_1T else PAD, x_1T),
        lambda x_1T: says(THEIRS if PAD in x_1T else PAD, x_1T),
        PROMPTS,
        PAD,
    )


def test_a_pad_that_only_one_side_says_is_a_difference() -> None:
    with pytest.raises(CheckpointError, match="is 1 in the checkpoint, 5 in the converted model"):
        check_continuations(lambda x: says(PAD, x), lambda x: says(OURS, x), PROMPTS, PAD)


def test_a_later_difference_is_found() -> None:
    with pytest.raises(CheckpointError, match=r"after \[2, 4, 4\] .* is 5 in"):
        check_continuations(
            lambda x_1T: says(OURS if x_1T.shape[1] > 2 else FIRST, x_1T),
            lambda x_1T: says(THEIRS if x_1T.shape[1] > 2 else FIRST, x_1T),
            PROMPTS,
            PAD,
        )
