"""What only a GPU can show: every backend there, equal runs, and no wait for the device.

Shapes: N positions, C channels, V classes; B batch, H heads, T tokens, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.modules.heads import Projection
from fairseq.modules.positions import alibi_slopes
from fairseq.ops.attention import attention, unpadded_attention
from fairseq.ops.attention_context import Alibi, AttentionContext, Unpadded
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.ops.linear_distillation import linear_distillation
from fairseq.ops.loss_peers import triton_serves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PACKAGES = {"cce": "cut_cross_entropy", "liger": "liger_kernel"}
PACKAGES |= {"flash": "flash_attn", "xformers": "xformers", "flex": "triton"}


def need(backend: str) -> None:
    package = PACKAGES.get(backend)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    if backend == "torch" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("needs torch 2.13")
    if backend == "triton" and not triton_serves(torch.device("cuda", 0)):
        pytest.skip("needs Triton and a GPU with bf16 units")


@pytest.fixture
def never_waiting() -> Iterator[None]:
    """Make every wait for the device an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Keep the many kinds of masks from reaching the limit of recompilations."""
    torch._dynamo.reset()


# -- the loss --------------------------------------------------------------------------------------


def operands(n: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden_NC = torch.randn(n, 64, device="cuda", dtype=dtype).requires_grad_()
    weight_VC = (torch.randn(classes, 64, device="cuda") / 4).to(dtype).requires_grad_()
    bias_V = torch.randn(classes, device="cuda").requires_grad_()
    target_N = torch.randint(classes, (n,), device="cuda")
    target_N[::7] = 1
    return hidden_NC, weight_VC, bias_V, target_N


def loss_and_gradients(backend: str, weights_N: Tensor | None, *given: Tensor) -> list[Tensor]:
    hidden_NC, weight_VC, bias_V, target_N = given
    loss_N = linear_cross_entropy(
        hidden_NC, weight_VC, target_N, bias_V=bias_V, ignore_index=1, backend=backend
    ).loss_N
    objective = loss_N.sum() if weights_N is None else (loss_N * weights_N).sum()
    return [loss_N.detach(), *torch.autograd.grad(objective, [hidden_NC, weight_VC, bias_V])]


def in_type(dtype: torch.dtype, weights_N: Tensor | None, *given: Tensor) -> list[Tensor]:
    """Return the same with all logits kept in ``dtype``, by autograd."""
    hidden_NC, weight_VC, bias_V = (t.detach().to(dtype).requires_grad_() for t in given[:3])
    logits_NV = F.linear(hidden_NC, weight_VC, bias_V)
    loss_N = F.cross_entropy(
        logits_NV.to(torch.promote_types(dtype, torch.float32)), given[3], ignore_index=1,
        reduction="none",
    )  # fmt: skip
    objective = loss_N.sum() if weights_N is None else (loss_N * weights_N.to(dtype)).sum()
    return [loss_N.detach(), *torch.autograd.grad(objective, [hidden_NC, weight_VC, bias_V])]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n, classes", [(37, 1000), (300, 50_265), (5000, 8_001)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["chunked", "triton", "torch", "cce", "liger"])
def test_losses_are_no_worse_than_all_logits_in_that_type(
    backend: str, dtype: torch.dtype, n: int, classes: int, weighted: bool
) -> None:
    need(backend)
    given = operands(n, classes, dtype)
    weights_N = torch.linspace(0, 2, n, device="cuda") if weighted else None
    ours = loss_and_gradients(backend, weights_N, *given)
    exact = in_type(torch.float64, weights_N, *given)
    theirs = in_type(dtype, weights_N, *given)
    # how accurate others are is their affair: those only have to mean the same
    slack = 1 if backend in ("chunked", "triton") else 20
    for mine, wanted, other in zip(ours, exact, theirs, strict=True):
        error, allowed = ((x.double() - wanted).norm() for x in (mine, other))
        assert error <= slack * (allowed + torch.finfo(dtype).eps * wanted.norm())


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_losses_do_not_wait(backend: str, request: pytest.FixtureRequest) -> None:
    need(backend)
    given = operands(5000, 8_001, torch.bfloat16)
    weights_N = torch.linspace(0, 2, 5000, device="cuda")
    for weighting in (None, weights_N):
        loss_and_gradients(backend, weighting, *given)  # compiles
    request.getfixturevalue("never_waiting")
    for weighting in (None, weights_N):
        loss_and_gradients(backend, weighting, *given)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_losses_repeat_to_the_bit(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need(backend)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [loss_and_gradients(backend, None, *operands(3000, 8_001, torch.bfloat16))
                for _ in range(2)]  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))


def test_the_kernel_needs_a_quarter_of_the_memory_at_most() -> None:
    need("triton")
    n, classes = 4096, 50_265
    given = operands(n, classes, torch.bfloat16)

    def peak(run: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before

    loss_and_gradients("triton", None, *given)
    ours = peak(lambda: loss_and_gradients("triton", None, *given))
    whole = peak(lambda: loss_and_gradients("reference", None, *given))
    assert 4 * ours <= whole


def distilled(
    backend: str, student: Projection, teacher: Projection, *rest: Tensor
) -> list[Tensor]:
    result = linear_distillation(
        student, teacher, *rest, temperature=2.0, alpha_ce=0.7, alpha_lm=0.3, ignore_index=1,
        backend=backend,
    )  # fmt: skip
    gradients = torch.autograd.grad(result.loss, list(student))
    return [result.loss.detach(), result.divergence_N, result.nll_N, *gradients]


def distilled_in_type(student: Projection, teacher: Projection, target_N: Tensor) -> list[Tensor]:
    """Return the same with all logits kept in the type of the projections, by autograd."""
    s_NV, t_NV = (F.linear(h, w, b.to(h.dtype)).float() for h, w, b in (student, teacher))
    log_q_NV, log_p_NV = ((x_NV / 2).log_softmax(1) for x_NV in (s_NV, t_NV.detach()))
    divergence_N = 4 * F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(1)
    nll_N = F.cross_entropy(s_NV, target_N, ignore_index=1, reduction="none")
    loss = 0.7 * divergence_N.sum() + 0.3 * nll_N.sum()
    return [x.detach() for x in (loss, divergence_N, nll_N)] + [
        *torch.autograd.grad(loss, list(student))
    ]


@pytest.mark.parametrize("n, classes", [(37, 1000), (5000, 8_001)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_distillation_is_no_worse_than_all_logits_in_that_type(
    backend: str, dtype: torch.dtype, n: int, classes: int
) -> None:
    need(backend)
    *parts, target_N = operands(n, classes, dtype)
    student, teacher = Projection(*parts), Projection(*(1.5 * part.detach() for part in parts))
    exact = distilled("reference", student, teacher, target_N)
    theirs = distilled_in_type(student, teacher, target_N)
    ours = distilled(backend, student, teacher, target_N)
    for mine, wanted, other in zip(ours, exact, theirs, strict=True):
        error, allowed = ((x.double() - wanted).norm() for x in (mine, other))
        assert error <= allowed + torch.finfo(dtype).eps * wanted.norm()


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_distillation_does_not_wait(backend: str, request: pytest.FixtureRequest) -> None:
    need(backend)
    *parts, target_N = operands(5000, 8_001, torch.bfloat16)
    sides = Projection(*parts), Projection(*(part.detach() for part in parts))
    distilled(backend, *sides, target_N)  # compiles
    request.getfixturevalue("never_waiting")
    distilled(backend, *sides, target_N)


# -- attention -------------------------------------------------------------------------------------

B, H, T, D = 3, 4, 200, 64
KINDS = ["", "padding", "causal", "alibi", "asymmetric", "alibi+padding", "asymmetric+padding"]
KINDS += ["alibi+causal", "documents", "alibi+causal+documents", "padding+documents"]


def told(kinds: str) -> AttentionContext:
    alibi = None
    if "alibi" in kinds or "asymmetric" in kinds:
        alibi = Alibi(alibi_slopes(H), asymmetric="asymmetric" in kinds)
    lengths_B1 = torch.tensor([[T], [T - 70], [5]], device="cuda")
    hidden_BT = torch.arange(T, device="cuda") >= lengths_B1 if "padding" in kinds else None
    documents_BT = torch.arange(T, device="cuda").expand(B, T) // 37
    return AttentionContext(
        alibi, hidden_BT, "causal" in kinds, documents_BT if "documents" in kinds else None
    )


def attend(backend: str, context: AttentionContext, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [
        torch.randn(B, H, T, D, device="cuda").bfloat16().to(dtype).requires_grad_()
        for _ in range(3)
    ]
    out_BHTD = attention(*inputs, context, backend=backend)
    if context.key_padding_mask_BS is not None:  # queries at padding may get anything
        out_BHTD = out_BHTD * ~context.key_padding_mask_BS[:, None, :, None]
    upstream = torch.linspace(-1, 1, out_BHTD.numel(), device="cuda").view_as(out_BHTD)
    gradients = torch.autograd.grad((out_BHTD.to(dtype) * upstream.to(dtype)).sum(), inputs)
    return [out_BHTD.detach(), *gradients]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("backend", ["sdpa", "flex", "flash", "xformers"])
def test_attention_is_as_good_as_its_inputs(backend: str, kinds: str) -> None:
    need(backend)
    if backend == "flash" and "asymmetric" in kinds:
        pytest.skip("flash has one slope for both sides")
    if backend == "xformers" and ("alibi" in kinds or "asymmetric" in kinds):
        pytest.skip("xformers has no slopes")
    ours = attend(backend, told(kinds), torch.bfloat16)
    exact = attend("reference", told(kinds), torch.float64)
    theirs = attend("explicit", told(kinds), torch.bfloat16)
    eps = torch.finfo(torch.bfloat16).eps
    for mine, wanted, other in zip(ours, exact, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        error, allowed = ((x.double() - wanted).norm() for x in (mine, other))
        assert error <= allowed + eps * wanted.norm()


@pytest.mark.parametrize("kinds", ["padding", "padding+documents"])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex", "flash", "xformers"])
def test_tokens_without_padding_attend_as_in_rows(backend: str, kinds: str) -> None:
    need(backend)
    context = told(kinds)
    hidden_BT = context.key_padding_mask_BS
    assert hidden_BT is not None
    tokens = Unpadded((~hidden_BT).flatten().nonzero()[:, 0], B, T)
    torch.manual_seed(0)
    rows = [torch.randn(B, T, H, D, device="cuda").bfloat16() for _ in range(3)]
    given = [tokens.gather(t).requires_grad_() for t in rows]
    without = dataclasses.replace(context, unpadded=tokens)
    ours_NHD = unpadded_attention(*given, without, backend=backend)
    exact = [tokens.spread(t).transpose(1, 2).double() for t in given]
    wanted_NHD = tokens.gather(attention(*exact, context, backend="reference").transpose(1, 2))
    eps = torch.finfo(torch.bfloat16).eps
    pairs = [(ours_NHD, wanted_NHD)]
    sums = (x.double().square().sum() for x in (ours_NHD, wanted_NHD))
    pairs += zip(*(torch.autograd.grad(x, given) for x in sums), strict=True)
    for mine, wanted in pairs:
        assert (mine - wanted).norm() <= 8 * eps * wanted.norm()


@pytest.mark.parametrize("kinds", ["padding", "alibi", "alibi+padding", "alibi+causal+documents"])
def test_attention_does_not_wait(kinds: str, request: pytest.FixtureRequest) -> None:
    need("flex")
    attend("auto", told(kinds), torch.bfloat16)  # compiles
    context = told(kinds)
    request.getfixturevalue("never_waiting")
    attend("auto", context, torch.bfloat16)


@pytest.mark.parametrize("backend", ["flex", "flash", "sdpa"])
def test_attention_repeats_to_the_bit(backend: str) -> None:
    need(backend)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        runs = [attend(backend, told("alibi+causal"), torch.bfloat16) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))
