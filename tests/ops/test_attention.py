"""Attention: every backend against softmax written out, forward and backward.

Shapes: B batch, H heads, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.positions import AlibiBias, alibi_slopes
from fairseq.ops.attention import ALIASES, BACKENDS, attention, check_backend

B, H, D = 3, 4, 6
MASKS = ["nothing", "bias", "padding", "causal", "bias+padding", "bias+causal", "padding+causal"]
MASKS += ["bias+padding+causal", "bias+future", "bias+padding+future"]


def problem(queries: int, keys: int, masks: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    lengths_B1 = torch.tensor([[keys], [max(1, keys - 2)], [1]])
    bias_1HTS = draw(1, H, queries, keys) if "bias" in masks else None
    if bias_1HTS is not None and "future" in masks:  # causality inside the bias
        future_TS = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        bias_1HTS = bias_1HTS.masked_fill(future_TS, -torch.inf)
    return {
        "query_BHTD": draw(B, H, queries, D),
        "key_BHSD": draw(B, H, keys, D),
        "value_BHSD": draw(B, H, keys, D),
        "bias_1HTS": bias_1HTS,
        "key_padding_mask_BS": torch.arange(keys) >= lengths_B1 if "padding" in masks else None,
        "causal": "causal" in masks,
    }


def formula(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    bias_1HTS: Tensor | None,
    key_padding_mask_BS: Tensor | None,
    causal: bool,
) -> Tensor:
    """Return the attended values, one query at a time over the keys it may see."""
    queries, keys = query_BHTD.shape[2], key_BHSD.shape[2]
    out_BHTD = torch.zeros_like(query_BHTD)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, (B, H, queries))).tolist():
        seen_S = torch.ones(keys, dtype=torch.bool)
        if key_padding_mask_BS is not None:
            seen_S &= ~key_padding_mask_BS[b]
        if causal:
            seen_S &= torch.arange(keys) <= keys - queries + t
        scores_S = key_BHSD[b, h] @ query_BHTD[b, h, t] / D**0.5
        if bias_1HTS is not None:
            scores_S = scores_S + bias_1HTS[0, h, t]
        weights = scores_S[seen_S].softmax(0)
        out_BHTD[b, h, t] = (weights[:, None] * value_BHSD[b, h, seen_S]).sum(0)
    return out_BHTD


@pytest.mark.parametrize("queries, keys", [(5, 5), (1, 7), (3, 8)])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward_equal_the_formula(
    backend: str, dtype: torch.dtype, masks: str, queries: int, keys: int
) -> None:
    arguments = problem(queries, keys, masks)
    names = ("query_BHTD", "key_BHSD", "value_BHSD")
    ours = {name: arguments[name].to(dtype).requires_grad_() for name in names}
    bias = None if arguments["bias_1HTS"] is None else arguments["bias_1HTS"].float()
    theirs = {name: arguments[name].requires_grad_() for name in names}
    out = attention(**{**arguments, **ours, "bias_1HTS": bias}, backend=backend)
    if bias is not None:
        bias = bias.double()
    expected = formula(**{**arguments, "bias_1HTS": bias})
    close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 2e-6}
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, **close)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    gradients = torch.autograd.grad((out.double() * weight).sum(), list(ours.values()))
    wanted = torch.autograd.grad((expected * weight).sum(), list(theirs.values()))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), want, **close)


@pytest.mark.parametrize("how", ["plain", "autocast", "dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_alibi_tells_far_neighbours_apart_in_half_precision(
    backend: str, dtype: torch.dtype, how: str
) -> None:
    """Of two keys 1000 and 1001 tokens away the nearer one gets sigmoid(slope) of the weight."""
    length, nearer, heads = 1100, 1000, 8
    bias = AlibiBias(heads)(length)
    zeros = torch.zeros(1, heads, length, D, dtype=dtype)
    value = zeros.clone()
    value[:, :, nearer] = 1
    hidden_BS = torch.ones(1, length, dtype=torch.bool)
    hidden_BS[:, nearer : nearer + 2] = False
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        out = attention(
            zeros,
            zeros,
            value,
            bias_1HTS=bias,
            key_padding_mask_BS=hidden_BS,
            # so small that nothing is dropped, but PyTorch takes another path
            dropout=1e-12 if how == "dropout" else 0.0,
            backend=backend,
        )
    assert out.dtype == dtype
    # bf16 has 8 significant bits: a weight near 1/2 is right to 2^-8
    tolerance = 2**-8 if dtype == torch.bfloat16 else 2**-11
    share_H = out[0, :, 0, 0].float()
    torch.testing.assert_close(share_H, alibi_slopes(heads).sigmoid(), rtol=0, atol=tolerance)
    # the first six slopes show at this precision; a bias rounded to bf16 would give 0.5 for all
    assert (share_H[:6] > 0.5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_with_alibi_is_as_good_as_its_inputs(
    backend: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    bias = AlibiBias(H, asymmetric=True)(200)
    inputs = [torch.randn(2, H, 200, 16).to(dtype).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = attention(*inputs, bias_1HTS=bias, backend=backend)
    expected = attention(*exact, bias_1HTS=bias, backend="reference")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=2 * eps)
    ours = torch.autograd.grad(out.float().square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), exact)
    for gradient, want in zip(ours, theirs, strict=True):
        assert (gradient.double() - want).norm() < 2 * eps * want.norm()


@pytest.mark.parametrize("masks", ["padding", "bias+padding", "bias+padding+causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_pads_only_stay_finite(backend: str, dtype: torch.dtype, masks: str) -> None:
    arguments = problem(5, 5, masks)
    arguments["key_padding_mask_BS"] = torch.ones(B, 5, dtype=torch.bool)
    names = ("query_BHTD", "key_BHSD", "value_BHSD")
    inputs = {name: arguments[name].to(dtype).requires_grad_() for name in names}
    bias = None if arguments["bias_1HTS"] is None else arguments["bias_1HTS"].float()
    out = attention(**{**arguments, **inputs, "bias_1HTS": bias}, backend=backend)
    gradients = torch.autograd.grad(out.sum(), list(inputs.values()))
    assert out.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_padding_and_bias_never_make_a_mask_per_batch_row() -> None:
    batch, length = 16, 64
    query, key, value = (torch.randn(batch, H, length, 8, requires_grad=True) for _ in range(3))
    hidden_BS = torch.arange(length) >= torch.arange(length - batch, length)[:, None]
    bias = AlibiBias(H)(length)
    with LargestTensor() as seen:
        attention(query, key, value, bias_1HTS=bias, key_padding_mask_BS=hidden_BS).sum().backward()
    assert seen.elements < batch * H * length * length


def test_causality_alone_makes_no_mask() -> None:
    query, key, value = (torch.randn(1, H, 128, 8, requires_grad=True) for _ in range(3))
    with LargestTensor() as seen:
        attention(query, key, value, causal=True).sum().backward()
    assert seen.elements <= H * 128 * 8 < 128 * 128


def test_dropout_drops_weights_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    zeros, eye = torch.zeros(1, 1, 400, 400), torch.eye(400)[None, None]
    for backend in BACKENDS:  # equal weights of 1/400, read out by the identity
        weights = attention(zeros, zeros, eye, dropout=0.25, backend=backend) * 400
        dropped = weights == 0
        assert 0.24 < float(dropped.float().mean()) < 0.26
        torch.testing.assert_close(weights[~dropped], torch.full_like(weights[~dropped], 4 / 3))


def test_names_of_backends() -> None:
    assert {check_backend(name) for name in [*BACKENDS, *ALIASES]} == set(BACKENDS)
    with pytest.raises(ConfigError, match="did you mean 'sdpa'"):
        check_backend("spda")
