"""Contrastive weight tying: the form with distinct tokens is the matrix of all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairseq.errors import ConfigError
from fairseq.ops.contrastive_weight_tying import contrastive_weight_tying

KNOBS: list[dict[str, Any]] = [
    {},
    {"duplicates": "once"},
    {"temperature": 0.3},
    {"normalize": True, "temperature": 0.1},
    {"symmetric": True},
    {"symmetric": True, "normalize": True, "duplicates": "once"},
]


def problem(
    many: int = 40, dtype: torch.dtype = torch.float64, repeated: bool = True, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    vocabulary = 9 if repeated else 500
    hidden = scale * torch.randn(many, 16, dtype=dtype)
    table = torch.randn(vocabulary, 16, dtype=dtype)
    target = torch.randint(9, (many,)) if repeated else torch.randperm(500)[:many]
    return hidden.requires_grad_(), table.requires_grad_(), target


def gradients(backend: str, wide: bool, *tensors: torch.Tensor, **knobs: Any) -> list[torch.Tensor]:
    hidden, table, target = tensors
    if wide:
        hidden, table = (t.detach().double().requires_grad_() for t in (hidden, table))
    result = contrastive_weight_tying(hidden, table, target, backend=backend, **knobs)
    weights = torch.linspace(0.5, 1.5, len(result.loss_N), dtype=result.loss_N.dtype)
    (result.loss_N * weights).sum().backward()
    found = [result.loss_N.detach(), hidden.grad, table.grad]
    hidden.grad = table.grad = None
    return [f for f in found if f is not None]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("repeated", [True, False])
def test_both_forms_agree_in_fp64(knobs: dict[str, Any], repeated: bool) -> None:
    tensors = problem(repeated=repeated)
    extra = torch.cat([tensors[2], torch.arange(5).repeat(3)])
    for negatives in (None, extra):
        pair = [
            gradients(backend, False, *tensors, negatives_M=negatives, **knobs)
            for backend in ("reference", "distinct")
        ]
        for reference, distinct in zip(*pair, strict=True):
            assert torch.allclose(reference, distinct, atol=1e-10, rtol=0)


@pytest.mark.parametrize("backend", ["distinct", "reference"])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_no_position_has_no_loss_and_no_gradient(backend: str, knobs: dict[str, Any]) -> None:
    hidden, table, target = problem(many=0)
    for negatives in (None, target, torch.tensor([3, 4])):
        result = contrastive_weight_tying(
            hidden, table, target, negatives_M=negatives, backend=backend, **knobs
        )
        result.loss_N.sum().backward()
        assert result.loss_N.shape == result.right_N.shape == (0,)
        # both are reached all the same: processes wait for every gradient
        assert hidden.grad is not None and table.grad is not None
        assert not table.grad.any()
        hidden.grad = table.grad = None


def test_the_loss_is_the_papers() -> None:
    hidden, table, target = problem()
    scores = torch.exp(hidden @ table[target].T)
    expected = -torch.log(scores.diagonal() / scores.sum(1))
    result = contrastive_weight_tying(hidden, table, target)
    assert torch.allclose(result.loss_N, expected, atol=1e-10)
    assert result.negatives == len(target.unique())


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_fp32_is_as_exact_as_the_reference(knobs: dict[str, Any]) -> None:
    tensors = problem(400, torch.float32)
    exact = gradients("reference", True, *tensors, **knobs)
    errors = []
    for backend in ("reference", "distinct"):
        found = gradients(backend, False, *tensors, **knobs)
        errors.append([float((f - e).abs().max()) for f, e in zip(found, exact, strict=True)])
    for reference, distinct, scale in zip(*errors, exact, strict=True):
        assert distinct <= 2 * reference + 1e-7 * float(scale.abs().max())


def test_large_logits_stay_finite() -> None:
    hidden, table, target = problem(dtype=torch.float32, scale=3e3)
    for backend in ("reference", "distinct"):
        found = gradients(backend, False, hidden, table, target)
        assert (hidden @ table.T).abs().max() > 1e4
        assert all(f.isfinite().all() for f in found)


def test_the_right_token_is_found() -> None:
    table = torch.eye(6)
    target = torch.tensor([0, 1, 2, 2])
    hidden = 9 * table[torch.tensor([0, 1, 2, 3])]
    right = contrastive_weight_tying(hidden, table, target).right_N
    assert right.tolist() == [True, True, True, True]
    hidden = 9 * table[torch.tensor([1, 1, 2, 0])]
    for backend in ("reference", "distinct"):
        result = contrastive_weight_tying(hidden, table, target, backend=backend)
        assert result.right_N.tolist() == [False, True, True, False]


def test_wrong_names_are_told() -> None:
    hidden, table, target = problem()
    with pytest.raises(ConfigError, match="once"):
        contrastive_weight_tying(hidden, table, target, duplicates="onc")
    with pytest.raises(ConfigError, match="distinct or reference"):
        contrastive_weight_tying(hidden, table, target, backend="fast")
