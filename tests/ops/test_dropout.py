"""Both dropouts keep the promised share, scale it, and mask the gradient as the output."""

from __future__ import annotations

import math

import pytest
import torch

from fairseq.ops.dropout import BACKENDS, dropout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_share_scale_and_gradient(backend: str, p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    n = 200_003  # no multiple of four
    x = torch.ones(n, dtype=dtype, requires_grad=True)
    y = dropout(x, p, backend=backend)
    share = float((y == 0).double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n) + 2**-16
    kept = y[y != 0].detach()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_neighbours_are_independent() -> None:
    """Four elements share one draw of 64 bits; their fates must not be correlated."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.3, backend="packed") == 0).double().view(-1, 4)
    correlation = torch.corrcoef(dropped.t())
    assert float((correlation - torch.eye(4)).abs().max()) < 0.015


def test_expectation_is_exact_after_rounding() -> None:
    torch.manual_seed(1)
    mean = float(dropout(torch.ones(4_000_000), 0.37, backend="packed").double().mean())
    assert abs(mean - 1) < 5 * math.sqrt(0.37 / 0.63 / 4e6)


def test_same_seed_same_mask_and_off_switches() -> None:
    x = torch.randn(5, 7)
    torch.manual_seed(5)
    first = dropout(x, 0.4)
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x, 0.4))
    assert dropout(x, 0.4, training=False) is x
    assert dropout(x, 0.0) is x
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    assert dropout(torch.ones(0), 0.5).shape == (0,)
