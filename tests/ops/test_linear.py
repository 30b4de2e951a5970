"""Products with a weight: both libraries give the formula's values and derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.ops import linear as products
from fairseq.ops.linear import BACKENDS, linear, product

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    "shape", [(1, 3), (64, 16), (2, 33, 5), (5, 31, 4), (0, 4), (7, 1), (3, 41, 12)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_equal_the_formula(
    backend: str, bias: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, weight_MK = torch.randn(shape), torch.randn(9, shape[-1])
    tensors = [x, weight_MK, *([torch.randn(9)] if bias else [])]
    ours = [tensor.requires_grad_() for tensor in tensors]
    theirs = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = linear(*ours, backend=backend)
    expected = torch.einsum("...k,mk->...m", *theirs[:2]) + (theirs[2] if bias else 0)
    upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
    torch.testing.assert_close(out.double(), expected, **CLOSE)
    gradients = torch.autograd.grad(out, ours, upstream)
    for gradient, want in zip(
        gradients, torch.autograd.grad(expected, theirs, upstream.double()), strict=True
    ):
        torch.testing.assert_close(gradient.double(), want, **CLOSE)


def test_inputs_in_any_order_of_memory() -> None:
    x, weight_KM = torch.randn(5, 80, 3).transpose(0, 1), torch.randn(5, 9)
    x = x.transpose(1, 2)  # (80, 3, 5)
    expected = torch.einsum("abk,km->abm", x, weight_KM)
    for backend in BACKENDS:
        torch.testing.assert_close(linear(x, weight_KM.t(), backend=backend), expected)


def test_only_the_gradients_that_are_needed() -> None:
    x, weight_MK, bias_M = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)
    weight_MK.requires_grad_()
    linear(x, weight_MK, bias_M, backend="onednn").sum().backward()
    assert x.grad is None and bias_M.grad is None and weight_MK.grad is not None


def test_the_second_derivative() -> None:
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((3, 4), (2, 4), (2,))]

    def second(backend: str) -> tuple[torch.Tensor, ...]:
        loss = linear(*tensors, backend=backend).pow(3).sum()
        gradients = torch.autograd.grad(loss, tensors, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), tensors)

    for ours, theirs in zip(second("onednn"), second("torch"), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("prefers", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_products_by_either_library(
    monkeypatch: pytest.MonkeyPatch, prefers: bool, bias: bool
) -> None:
    monkeypatch.setattr(products, "processor_prefers_onednn", lambda: prefers)
    left, right, bias_M = torch.randn(70, 5), torch.randn(5, 9), torch.randn(9) if bias else None
    expected = left.double() @ right.double() + (bias_M if bias else 0)
    for by_column in (False, True):
        factor = right.t().contiguous().t() if by_column else right
        torch.testing.assert_close(product(left, factor, bias_M).double(), expected, **CLOSE)
        other = left.t().contiguous().t()
        torch.testing.assert_close(product(other, factor, bias_M).double(), expected, **CLOSE)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(64, 600), columns=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_number_of_rows(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight_MK = (torch.randn(n, columns, generator=generator) for n in (rows, 9))
    expected = x.double() @ weight_MK.double().t()
    torch.testing.assert_close(linear(x, weight_MK, backend="onednn").double(), expected, **CLOSE)


def test_onednn_compiles_for_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, multiply = set[int](), products._onednn

    def counted(left: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        compiled.add(len(left))
        return multiply(left, *others)

    monkeypatch.setattr(products, "_onednn", counted)
    for rows in range(256, 1025):
        for columns, outputs in ((2, 3), (3, 2)):
            x, weight_MK = torch.ones(rows, columns), torch.ones(outputs, columns)
            y = linear(x, weight_MK, backend="onednn")
            assert y.shape == (rows, outputs) and bool((y == columns).all())
    assert len(compiled) == 2 * 16 + 1


def test_few_rows_other_types_and_compilers_are_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "processor_prefers_onednn", lambda: True)

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(products, "_by_onednn", refuse)
    weight = torch.randn(9, 5)
    with pytest.raises(AssertionError):
        linear(torch.randn(64, 5), weight)
    linear(torch.randn(63, 5), weight)
    linear(torch.randn(64, 5).double(), weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(64, 5), weight).dtype == torch.bfloat16
