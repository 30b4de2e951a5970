"""Fused attention: FlexAttention itself, uncompiled; stand-ins for packages that need a GPU.

The stand-ins do what FlashAttention 2 and xFormers document, one sequence at a time, so that these
tests see everything on our side: layouts, lengths, slopes, scales, what is refused.
"""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_attention import MASKS, H, formula, problem
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.positions import alibi_slopes
from fairseq.modules.transformer_layer import LayerShape, TransformerLayer
from fairseq.ops import attention_fused
from fairseq.ops.attention import attention, check_backend, unpadded_attention
from fairseq.ops.attention_context import Alibi, AttentionContext, Unpadded
from fairseq.ops.attention_fused import BY_LENGTHS, best_on_gpu, sequences


def one_sequence(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float, causal: bool, slopes_H: Any
) -> Tensor:
    length = len(q_THD)
    scores_HTT = torch.einsum("ihd,jhd->hij", q_THD, k_THD) * scale
    place = torch.arange(length)
    if slopes_H is not None:
        assert slopes_H.dtype == torch.float32 and slopes_H.shape == (q_THD.shape[1],)
        distance_TT = (place[:, None] - place[None, :]).abs()
        scores_HTT = scores_HTT - slopes_H[:, None, None] * distance_TT
    if causal:
        scores_HTT = scores_HTT.masked_fill(place[None, :] > place[:, None], -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores_HTT.softmax(-1), v_THD)


def each(tokens: list[Tensor], lengths: list[int], *how: Any) -> Tensor:
    parts = zip(*(tensor.float().split(lengths) for tensor in tokens), strict=True)
    return torch.cat([one_sequence(*part, *how) for part in parts]).to(tokens[0].dtype)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a stand-in for ``flash_attn`` in its place; returns what it saw last."""
    seen: dict[str, Any] = {}

    def whole(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        batch, length, heads, channels = q.shape
        flat = [t.reshape(batch * length, heads, channels) for t in (q, k, v)]
        starts = torch.arange(batch + 1, dtype=torch.int32) * length
        return packed(*flat, starts, starts, length, length, **how).view(q.shape)

    def packed(
        q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, most_q: int,
        most_k: int, *, dropout_p: float, softmax_scale: float, causal: bool, alibi_slopes: Any,
        deterministic: bool,
    ) -> Tensor:  # fmt: skip
        lengths = starts_q.diff().tolist()
        assert starts_q.dtype == torch.int32 and starts_q.equal(starts_k)
        assert int(starts_q[0]) == 0 and int(starts_q[-1]) == len(q)
        assert min(lengths) > 0 and max(lengths) <= most_q == most_k
        seen.update(dropout=dropout_p, deterministic=deterministic, lengths=lengths, dtype=q.dtype)
        return each([q, k, v], lengths, softmax_scale, causal, alibi_slopes)

    module = ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = whole, packed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return seen


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a stand-in for ``xformers.ops`` in its place; returns what it saw last."""
    seen: dict[str, Any] = {}

    class LowerTriangularMask:
        causal, lengths = True, None

    class BlockDiagonalMask:
        def __init__(self, lengths: list[int], causal: bool = False) -> None:
            self.lengths, self.causal = lengths, causal

        @classmethod
        def from_seqlens(cls, lengths: list[int]) -> BlockDiagonalMask:
            return cls(lengths)

        def make_causal(self) -> BlockDiagonalMask:
            return BlockDiagonalMask(self.lengths, True)

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, p: float, scale: float) -> Tensor:
        batch, length = q.shape[:2]
        causal, lengths = getattr(attn_bias, "causal", False), getattr(attn_bias, "lengths", None)
        seen.update(dropout=p)
        flat = [t.reshape(batch * length, *t.shape[2:]) for t in (q, k, v)]
        return each(flat, lengths or [length] * batch, scale, causal, None).view(q.shape)

    for path in ("xformers", "xformers.ops"):
        module = ModuleType(path)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, path, module)
    biases = SimpleNamespace(
        LowerTriangularMask=LowerTriangularMask, BlockDiagonalMask=BlockDiagonalMask
    )
    module.fmha = SimpleNamespace(attn_bias=biases)  # type: ignore[attr-defined]
    module.memory_efficient_attention = attend  # type: ignore[attr-defined]
    return seen


def check(backend: str, masks: str, dtype: torch.dtype, backward: bool) -> None:
    tensors, context = problem(5, 5, masks)
    ours = [tensor.to(dtype).requires_grad_(backward) for tensor in tensors]
    # the exact results of the rounded inputs: only the arithmetic may differ
    theirs = [tensor.detach().double().requires_grad_(backward) for tensor in ours]
    out = attention(*ours, context, backend=backend)
    expected, sees_BT = formula(*theirs, context)
    assert out.dtype == dtype and out.isfinite().all()
    if context.key_padding_mask_BS is not None and backend != "flex":
        hidden_BT = context.key_padding_mask_BS
        assert not out.transpose(1, 2)[hidden_BT].any()  # queries at padding: zeros
        sees_BT = sees_BT & ~hidden_BT
    if context.key_padding_mask_BS is not None and backend in BY_LENGTHS:
        tokens = Unpadded((~context.key_padding_mask_BS).flatten().nonzero()[:, 0], *sees_BT.shape)
        given = [tokens.gather(t.detach().transpose(1, 2)) for t in ours]
        told = dataclasses.replace(context, unpadded=tokens)
        without = unpadded_attention(*given, told, backend=backend)
        assert without.equal(tokens.gather(out.transpose(1, 2)))
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    weight = weight * sees_BT[:, None, :, None]
    close = {"rtol": 0, "atol": 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out.double() * weight, expected * weight, **close)
    if backward:
        gradients = torch.autograd.grad((out.double() * weight).sum(), ours)
        wanted = torch.autograd.grad((expected * weight).sum(), theirs)
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient.double(), want, rtol=0, atol=2 * close["atol"])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("masks", MASKS)
def test_flex_equals_the_formula(masks: str, dtype: torch.dtype) -> None:
    check("flex", masks, dtype, backward=False)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masks", [m for m in MASKS if "asymmetric" not in m or "causal" in m])
def test_flash_is_told_what_the_formula_knows(masks: str, dtype: torch.dtype) -> None:
    check("flash", masks, dtype, backward=True)


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("masks", [m for m in MASKS if "alibi" not in m and "asym" not in m])
def test_xformers_is_told_what_the_formula_knows(masks: str) -> None:
    check("xformers", masks, torch.float32, backward=True)


def test_half_precision_stays_half(flash: dict[str, Any]) -> None:
    tensors, context = problem(5, 5, "alibi+padding+documents")
    half = [tensor.bfloat16() for tensor in tensors]
    attention(*half, context, dropout=0.25, backend="flash_attention")
    assert seen_subset(flash, dtype=torch.bfloat16, dropout=0.25, deterministic=False)
    # rows of 5, 3 and 1 visible tokens, cut into documents of 2, 3 and 9
    assert flash["lengths"] == [2, 2, 1, 3, 1]


def seen_subset(seen: dict[str, Any], **wanted: Any) -> bool:
    return all(seen[key] == value for key, value in wanted.items())


def test_deterministic_mode_reaches_the_kernel(
    flash: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    attention(*[tensor.half() for tensor in problem(5, 5, "")[0]], backend="flash")
    assert flash["deterministic"] is True


def test_layers_share_what_one_computed() -> None:
    _, context = problem(5, 5, "padding+documents")
    assert sequences(context) is sequences(context)
    _, other = problem(5, 5, "padding")
    assert sequences(other) is not sequences(context) is not None
    assert sequences(problem(5, 5, "causal")[1]) is None


@pytest.mark.usefixtures("flash")
def test_fewer_queries_than_keys_take_sdpa() -> None:
    tensors, context = problem(1, 7, "alibi+padding+causal")
    for backend in ("flex", "flash"):
        ours = attention(*tensors, context, backend=backend)
        assert ours.equal(attention(*tensors, context, backend="sdpa"))


@pytest.mark.usefixtures("flash", "xformers")
@pytest.mark.parametrize(
    "backend, masks, dtype, dropout, words",
    [
        ("flex", "", torch.float32, 0.1, "flex cannot drop.*--attention-dropout 0"),
        ("flash", "", torch.float32, 0.0, "bf16 or fp16, not torch.float32"),
        ("flash", "asymmetric", torch.bfloat16, 0.0, "one slope for both sides"),
        ("xformers", "alibi", torch.float32, 0.0, "knows no slopes"),
    ],
)
def test_what_a_backend_cannot_do_is_said(
    backend: str, masks: str, dtype: torch.dtype, dropout: float, words: str
) -> None:
    tensors, context = problem(5, 5, masks)
    with pytest.raises(ConfigError, match=words):
        attention(*[t.to(dtype) for t in tensors], context, dropout=dropout, backend=backend)


def test_flex_does_not_train_on_a_cpu() -> None:
    tensors = [tensor.requires_grad_() for tensor in problem(5, 5, "")[0]]
    with pytest.raises(ConfigError, match="cannot train on a CPU"):
        attention(*tensors, backend="flex")


@pytest.mark.parametrize("backend, module", [("flash", "flash_attn"), ("xformers", "xformers.ops")])
def test_a_missing_package_is_named_when_the_model_is_built(
    backend: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"--attention-backend {backend} needs.*pip install"):
        TransformerLayer(LayerShape(8, 16, 2, backend=backend))
    with pytest.raises(ConfigError, match="did you mean 'flash'"):
        check_backend("flesh")


SYMMETRIC, SIDED = Alibi(alibi_slopes(H)), Alibi(alibi_slopes(H), asymmetric=True)


@pytest.mark.parametrize(
    "alibi, causal, documents, dtype, dropout, installed, choice",
    [
        (None, False, False, torch.bfloat16, 0.1, "flash_attn triton", "sdpa"),
        (None, True, False, torch.bfloat16, 0.0, "flash_attn triton", "sdpa"),
        (SYMMETRIC, False, False, torch.float32, 0.0, "flash_attn triton", "sdpa"),
        (SYMMETRIC, False, False, torch.bfloat16, 0.0, "flash_attn triton", "flash"),
        (SYMMETRIC, False, False, torch.bfloat16, 0.0, "triton", "flex"),
        (SYMMETRIC, False, False, torch.bfloat16, 0.1, "triton", "sdpa"),
        (SIDED, False, False, torch.bfloat16, 0.0, "flash_attn triton", "flex"),
        (SIDED, True, False, torch.bfloat16, 0.0, "flash_attn triton", "flash"),
        (None, True, True, torch.float16, 0.0, "flash_attn triton", "flex"),
        (None, True, True, torch.float16, 0.1, "flash_attn triton", "flash"),
        (None, True, True, torch.float16, 0.0, "", "sdpa"),
    ],
)
def test_auto_on_a_gpu(
    alibi: Alibi | None,
    causal: bool,
    documents: bool,
    dtype: torch.dtype,
    dropout: float,
    installed: str,
    choice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_fused, "_importable", lambda name: name in installed.split())
    documents_BS = torch.zeros(2, 5, dtype=torch.long) if documents else None
    context = AttentionContext(alibi, None, causal, documents_BS)
    assert best_on_gpu(torch.zeros(2, H, 5, 16, dtype=dtype), context, dropout) == choice


@pytest.mark.parametrize(
    "installed, alibi, dtype, choice",
    [
        ("flash_attn triton", None, torch.bfloat16, "flash"),
        ("flash_attn triton", SYMMETRIC, torch.bfloat16, "flash"),
        ("flash_attn triton", None, torch.float32, "sdpa"),
        ("triton", None, torch.bfloat16, "sdpa"),
        ("triton", SYMMETRIC, torch.bfloat16, "flex"),
    ],
)
def test_auto_on_a_gpu_of_unpadded_tokens(
    installed: str,
    alibi: Alibi | None,
    dtype: torch.dtype,
    choice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_fused, "_importable", lambda name: name in installed.split())
    hidden_BS = torch.arange(5).expand(2, 5) > 3
    context = AttentionContext(alibi, hidden_BS, unpadded=Unpadded(torch.arange(4), 2, 5))
    assert best_on_gpu(torch.zeros(4, H, 16, dtype=dtype), context, 0.0) == choice


def test_heads_that_are_too_narrow_for_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_fused, "_importable", lambda name: name == "triton")
    context = AttentionContext(SYMMETRIC)
    narrow = torch.zeros(2, H, 5, 8, dtype=torch.bfloat16)
    assert best_on_gpu(narrow, context, 0.0) == "sdpa"
    q, k, v = (torch.empty_like(narrow, device="meta") for _ in range(3))
    with pytest.raises(ConfigError, match="heads of 8 channels, flex needs 16: fewer heads, or"):
        attention_fused.fused_attention("flex", q, k, v, context, 0.0)
