"""Attention: every backend against softmax written out, forward and backward.

Shapes: B batch, H heads, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.positions import alibi_slopes
from fairseq.ops.attention import ALIASES, BACKENDS, attention, check_backend
from fairseq.ops.attention_context import Alibi, AttentionContext
from fairseq.ops.attention_fused import FUSED

B, H, D = 3, 4, 6
KINDS = ["alibi", "asymmetric", "padding", "causal", "documents"]
MASKS = ["+".join(kinds) for n in range(4) for kinds in itertools.combinations(KINDS, n)]
MASKS += ["alibi+padding+causal+documents"]


def problem(queries: int, keys: int, masks: str) -> tuple[list[Tensor], AttentionContext]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    lengths_B1 = torch.tensor([[keys], [max(1, keys - 2)], [1]])
    alibi = None
    if "alibi" in masks or "asymmetric" in masks:
        alibi = Alibi(draw(H).float().abs(), asymmetric="asymmetric" in masks)
    padding_BS = torch.arange(keys) >= lengths_B1 if "padding" in masks else None
    documents_BS = torch.arange(keys).expand(B, keys) // torch.tensor([[2], [3], [9]])
    context = AttentionContext(
        alibi, padding_BS, "causal" in masks, documents_BS if "documents" in masks else None
    )
    tensors = [draw(B, H, queries, D), draw(B, H, keys, D), draw(B, H, keys, D)]
    return tensors, context


def formula(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, told: AttentionContext):
    """Return the attended values, one query at a time over the keys it may see, and who sees."""
    queries, keys = query_BHTD.shape[2], key_BHSD.shape[2]
    out_BHTD, sees_BT = torch.zeros_like(query_BHTD), torch.zeros(B, queries, dtype=torch.bool)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, (B, H, queries))).tolist():
        place, place_S = keys - queries + t, torch.arange(keys)
        seen_S = torch.ones(keys, dtype=torch.bool)
        if told.key_padding_mask_BS is not None:
            seen_S &= ~told.key_padding_mask_BS[b]
        if told.causal:
            seen_S &= place_S <= place
        if told.documents_BS is not None:
            seen_S &= told.documents_BS[b] == told.documents_BS[b, place]
        scores_S = key_BHSD[b, h] @ query_BHTD[b, h, t] / D**0.5
        if told.alibi is not None:
            distance_S = (place_S - place).abs() - 0.5 * told.alibi.asymmetric * (place_S > place)
            scores_S = scores_S - told.alibi.slopes_H[h].double() * distance_S
        if seen_S.any():
            sees_BT[b, t] = True
            weights = scores_S[seen_S].softmax(0)
            out_BHTD[b, h, t] = (weights[:, None] * value_BHSD[b, h, seen_S]).sum(0)
    return out_BHTD, sees_BT


@pytest.mark.parametrize("queries, keys", [(5, 5), (1, 7), (3, 8)])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward_equal_the_formula(
    backend: str, dtype: torch.dtype, masks: str, queries: int, keys: int
) -> None:
    tensors, context = problem(queries, keys, masks)
    ours = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    theirs = [tensor.requires_grad_() for tensor in tensors]
    out = attention(*ours, context, backend=backend)
    expected, sees_BT = formula(*theirs, context)
    # fp32 biases: a product of a slope and a distance is rounded once
    close = {"rtol": 0, "atol": 1e-6 if context.alibi else 1e-12}
    close["atol"] = max(close["atol"], 2e-6 if dtype == torch.float32 else 0)
    assert out.dtype == dtype and out.isfinite().all()
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    weight = weight * sees_BT[:, None, :, None]  # queries without any key may get anything finite
    torch.testing.assert_close(out.double() * weight, expected * weight, **close)
    gradients = torch.autograd.grad((out.double() * weight).sum(), ours)
    wanted = torch.autograd.grad((expected * weight).sum(), theirs)
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
    alibi = Alibi(alibi_slopes(heads))
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
            AttentionContext(alibi, hidden_BS),
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
    told = AttentionContext(Alibi(alibi_slopes(H), asymmetric=True))
    inputs = [torch.randn(2, H, 200, 16).to(dtype).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = attention(*inputs, told, backend=backend)
    expected = attention(*exact, told, backend="reference")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=2 * eps)
    ours = torch.autograd.grad(out.float().square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), exact)
    for gradient, want in zip(ours, theirs, strict=True):
        assert (gradient.double() - want).norm() < 2 * eps * want.norm()


@pytest.mark.parametrize("masks", ["padding", "alibi+padding", "alibi+padding+causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_pads_only_stay_finite(backend: str, dtype: torch.dtype, masks: str) -> None:
    tensors, context = problem(5, 5, masks)
    context = dataclasses.replace(context, key_padding_mask_BS=torch.ones(B, 5, dtype=torch.bool))
    inputs = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    out = attention(*inputs, context, backend=backend)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert out.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_padding_and_bias_never_make_a_mask_per_batch_row() -> None:
    batch, length = 16, 64
    query, key, value = (torch.randn(batch, H, length, 8, requires_grad=True) for _ in range(3))
    hidden_BS = torch.arange(length) >= torch.arange(length - batch, length)[:, None]
    context = AttentionContext(Alibi(alibi_slopes(H)), hidden_BS)
    with LargestTensor() as seen:
        attention(query, key, value, context).sum().backward()
    assert seen.elements < batch * H * length * length


def test_causality_alone_makes_no_mask() -> None:
    query, key, value = (torch.randn(1, H, 128, 8, requires_grad=True) for _ in range(3))
    with LargestTensor() as seen:
        attention(query, key, value, AttentionContext(causal=True)).sum().backward()
    assert seen.elements <= H * 128 * 8 < 128 * 128


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_rows_drop_the_weights_that_explicit_drops(
    monkeypatch: pytest.MonkeyPatch, masks: str, by_head: bool
) -> None:
    """Values, gradients, second derivatives: 2 of 3 rows of a head, 3 of 4 heads of a row."""
    monkeypatch.setattr("fairseq.ops.attention_rows._goes_by_head", lambda *_: by_head)
    monkeypatch.setattr("fairseq.ops.attention_rows.AT_ONCE", 70 if by_head else 100)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    tensors, context = problem(4, 8, masks)
    inputs = [tensor.requires_grad_() for tensor in tensors]

    def derivatives(backend: str) -> list[Tensor]:
        torch.manual_seed(7)
        out = attention(*inputs, context, dropout=0.3, backend=backend)
        torch.manual_seed(7)
        again = attention(*inputs, context, dropout=0.3, backend=backend)
        first = torch.autograd.grad(out.pow(2).sum(), inputs)
        recorded = torch.autograd.grad(again.pow(2).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in recorded), inputs)
        return [out, *first, *recorded, *second]

    for ours, theirs in zip(derivatives("rows"), derivatives("explicit"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("tokens", "dropout", "threads", "told"),
    [
        (128, 0.1, 1, "_rows"),
        (64, 0.1, 2, "_explicit"),  # no piece is filled
        (128, 0.0, 2, "_rows"),
        (128, 0.0, 1, "_sdpa"),
        (256, 0.0, 2, "_sdpa"),  # too long for several matrices in a piece
    ],
)
def test_auto_takes_rows_where_they_are_worth_it(
    monkeypatch: pytest.MonkeyPatch, tokens: int, dropout: float, threads: int, told: str
) -> None:
    taken: list[str] = []
    for name in ("_rows", "_explicit", "_sdpa"):
        monkeypatch.setattr(
            f"fairseq.ops.attention.{name}",
            lambda query, *_, name=name: taken.append(name) or query,
        )
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    x_BHTD = torch.zeros(8, 4, tokens, 32, requires_grad=True)
    attention(x_BHTD, x_BHTD, x_BHTD, dropout=dropout)
    assert taken == [told]
    if not dropout:  # nobody waits for a gradient; half of it is hidden; another type
        attention(*[x_BHTD.detach()] * 3)
        attention(*[x_BHTD] * 3, AttentionContext(causal=True))
        attention(*[x_BHTD.double()] * 3)
        assert taken[1:] == ["_sdpa"] * 3


def test_dropout_drops_weights_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    zeros, eye = torch.zeros(1, 1, 400, 400), torch.eye(400)[None, None]
    for backend in BACKENDS:  # equal weights of 1/400, read out by the identity
        weights = attention(zeros, zeros, eye, dropout=0.25, backend=backend) * 400
        dropped = weights == 0
        assert 0.24 < float(dropped.float().mean()) < 0.26
        torch.testing.assert_close(weights[~dropped], torch.full_like(weights[~dropped], 4 / 3))


def test_names_of_backends() -> None:
    always = [*BACKENDS, "auto", "hf"]
    assert {check_backend(name) for name in always} == set(BACKENDS)
    assert set(ALIASES.values()) <= {*BACKENDS, *FUSED}
    with pytest.raises(ConfigError, match="did you mean 'sdpa'"):
        check_backend("spda")
