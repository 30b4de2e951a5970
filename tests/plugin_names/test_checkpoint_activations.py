"""Activation checkpointing: same results and gradients, fewer kept activations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fairseq.plugin_names.modules import checkpoint_wrapper


@pytest.mark.parametrize("offload", [False, True])
def test_results_and_gradients_stay(offload: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    wrapped = checkpoint_wrapper(copy.deepcopy(plain), offload_to_cpu=offload)
    x = torch.randn(3, 4)
    kept: list[int] = []

    def count(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    sizes, grads = [], []
    for model in (plain, wrapped):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            out = model(x)
        sizes.append(len(kept))
        out.sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert sizes[1] < sizes[0]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert list(plain.state_dict()) == list(wrapped.state_dict())
