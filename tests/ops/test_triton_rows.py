"""The row kernel and the loss built on it, in Triton's interpreter, against fp64.

Every case needs few programs: the interpreter takes some 20 ms for each. Shapes: R rows, N
positions, C channels, V classes.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs the extra 'triton'")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not interpreted, reason="runs with TRITON_INTERPRET=1")
IGNORED = 1


@pytest.mark.matrix
def test_everything_here_in_the_interpreter() -> None:
    """Run the other tests of this file in a process of their own: the choice is made at import."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " failed" not in done.stdout


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = importlib.import_module("fairseq.ops.triton.rows")
    monkeypatch.setattr(module, "MAX_BLOCK", 64)  # so that small rows have several blocks
    yield module


class Rows:
    """Rows of logits with everything a kernel may be given, and their exact results in fp64."""

    def __init__(self, classes: int, dtype: torch.dtype, what: str, gap: int = 0) -> None:
        draw = torch.Generator().manual_seed(classes)
        self.count = 5
        wide = torch.randn(self.count, classes + gap, generator=draw) * 4
        self.logits_RV = wide.to(dtype)[:, :classes]  # `gap` numbers lie between two rows
        self.gap_RG = wide.to(dtype)[:, classes:].clone()
        self.scale_V = torch.rand(classes, generator=draw) + 0.5 if "scale" in what else None
        self.bias_V = torch.randn(classes, generator=draw) if "bias" in what else None
        self.target_R = torch.randint(classes, (self.count,), generator=draw)
        self.target_R[0], self.target_R[1] = classes - 1, IGNORED
        if self.bias_V is not None and classes > 70:
            self.bias_V[:66] = -torch.inf  # classes ruled out: a whole block and the next's head
            self.target_R[2:] = 70
        self.upstream = torch.randn(3, self.count, generator=draw)

    def z(self, logits_RV: Tensor, dtype: torch.dtype) -> Tensor:
        z_RV = logits_RV.to(dtype)
        z_RV = z_RV if self.scale_V is None else z_RV * self.scale_V.to(dtype)
        return z_RV if self.bias_V is None else z_RV + self.bias_V.to(dtype)

    def eps(self, dtype: torch.dtype) -> float:
        """Return one rounding of what is stored, or of the largest z, whichever is larger."""
        z_RV = self.z(self.logits_RV.detach(), torch.float64)
        largest = float(z_RV[z_RV.isfinite()].abs().max())
        return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * largest)

    def results(self, dtype: torch.dtype, weighted: bool) -> tuple[list[Tensor], Tensor]:
        """Return loss, lse, total, best and the gradient, by autograd in ``dtype``."""
        leaf_RV = self.logits_RV.to(dtype, copy=True).requires_grad_()
        z_RV = self.z(leaf_RV, dtype)
        lse_R = z_RV.logsumexp(1)
        keep_R = self.target_R != IGNORED
        loss_R = (lse_R - z_RV.gather(1, self.target_R[:, None])[:, 0]).where(keep_R, 0.0)
        loss_grad, lse_grad, total_grad = self.upstream.to(dtype)
        total_R = z_RV.sum(1)
        objective = loss_R.sum()
        if weighted:
            objective = (loss_R * loss_grad + lse_R * lse_grad).sum()
            if self.bias_V is None or bool(self.bias_V.isfinite().all()):
                objective = objective + (total_R * total_grad).sum()
        (gradient,) = torch.autograd.grad(objective, leaf_RV)
        return [loss_R, lse_R, total_R, z_RV.argmax(1)], gradient


def no_worse(ours: Tensor, exact: Tensor, reference: Tensor, eps: float) -> None:
    """Check: error <= the reference's own error in that type + eps."""
    finite = exact.isfinite()
    assert ours.isfinite().equal(finite)
    error, allowed = ((x.detach() - exact.detach())[finite].abs() for x in (ours, reference))
    assert not error.numel() or error.max() <= allowed.max() + eps


@in_interpreter
@pytest.mark.parametrize("what", ["", "bias", "scale", "scale+bias"])
@pytest.mark.parametrize("classes, gap", [(2, 0), (63, 1), (64, 0), (65, 7), (200, 56)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_are_no_worse_than_the_reference(
    kernels: ModuleType, dtype: torch.dtype, classes: int, gap: int, what: str
) -> None:
    case = Rows(classes, dtype, what, gap)
    (loss_R, lse_R, total_R, best_R), gradient_RV = case.results(torch.float64, False)
    reference, in_type_RV = case.results(torch.float32, False)
    eps = case.eps(torch.float32)  # before the logits are overwritten
    out = [torch.full((case.count,), torch.nan) for _ in range(3)]
    argmax_R = torch.full((case.count,), -1)
    vectors = {"scale_V": case.scale_V, "bias_V": case.bias_V, "ignore_index": IGNORED}
    logits_RV = case.logits_RV
    kernels.rows(logits_RV, case.target_R, *out, argmax_R, **vectors, gradient=True)
    for ours, exact, theirs in zip(
        (out[1], out[0], out[2]), (loss_R, lse_R, total_R), reference, strict=False
    ):
        no_worse(ours, exact, theirs, eps * classes if exact is total_R else eps)
    assert argmax_R.equal(best_R)
    # what is stored is rounded to the type of the logits, as the reference's gradient would be
    no_worse(logits_RV, gradient_RV, in_type_RV.to(dtype), max(eps, torch.finfo(dtype).eps))
    assert not logits_RV[1].any()  # an ignored row
    if gap:  # what lies between the rows is untouched
        assert logits_RV.as_strided((case.count, gap), logits_RV.stride(), classes).equal(
            case.gap_RG
        )


@in_interpreter
@pytest.mark.parametrize("what", ["", "scale+bias"])
@pytest.mark.parametrize("missing", ["nothing", "loss", "lse", "total"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_upstream_gradients_weigh_the_rows(
    kernels: ModuleType, dtype: torch.dtype, missing: str, what: str
) -> None:
    case = Rows(67, dtype, what)
    for number, name in enumerate(("loss", "lse", "total")):
        if name == missing:
            case.upstream[number] = 0
    _, exact_RV = case.results(torch.float64, True)
    eps = case.eps(dtype) * float(case.upstream.abs().max())
    (_, lse_R, _, _), reference_RV = case.results(torch.float32, True)
    given = zip(("loss", "lse", "total"), case.upstream, strict=True)
    upstream = kernels.Upstream(*(None if name == missing else grad for name, grad in given))
    kernels.rows(
        case.logits_RV,
        case.target_R,
        lse_R.detach(),
        scale_V=case.scale_V,
        bias_V=case.bias_V,
        ignore_index=IGNORED,
        upstream=upstream,
    )
    no_worse(case.logits_RV, exact_RV, reference_RV.to(dtype), eps)


@in_interpreter
def test_huge_logits_stay_finite(kernels: ModuleType) -> None:
    logits_RV = torch.tensor([[1e38, -1e38, 0.0], [0.0, 1e38, 0.0]])
    loss_R, lse_R = torch.empty(2, 2)
    kernels.rows(logits_RV, torch.tensor([1, 1]), lse_R, loss_R, gradient=True)
    assert loss_R.tolist() == [pytest.approx(2e38), 0.0]
    assert logits_RV.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


# -- the loss primitive ---------------------------------------------------------------------------


def operands(n: int, classes: int, what: str) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(n + classes)
    target_N = torch.randint(classes, (n,), generator=draw)
    return {
        "hidden_NC": torch.randn(n, 6, generator=draw).requires_grad_(),
        "weight_VC": torch.randn(classes, 6, generator=draw).requires_grad_(),
        "bias_V": torch.randn(classes, generator=draw).requires_grad_() if "b" in what else None,
        "scale_V": (torch.rand(classes, generator=draw) + 0.5).requires_grad_()
        if "s" in what
        else None,
        "target_N": target_N,
    }


OBJECTIVES = {
    "sum": lambda loss, lse, total: loss.sum() / 3,
    "weighted": lambda loss, lse, total: (loss * torch.linspace(-1, 2, len(loss))).sum(),
    "all": lambda loss, lse, total: (loss * lse.detach() + lse.square() + 0.1 * total).sum(),
}


@in_interpreter
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "n, classes, what", [(0, 5, "bs"), (7, 67, ""), (9, 40, "b"), (7, 9, "bs")]
)
def test_the_primitive_equals_the_reference(
    n: int, classes: int, what: str, objective: str
) -> None:
    from fairseq.ops.triton.linear_cross_entropy import LinearCrossEntropyFunction

    given = operands(n, classes, what)
    ours = LinearCrossEntropyFunction.apply(*given.values(), IGNORED, True, True, 4)
    leaves = {k: v if v is None or k == "target_N" else v.detach() for k, v in given.items()}
    errors: dict[torch.dtype, list[Tensor]] = {}
    wanted: dict[torch.dtype, list[Tensor]] = {}
    for dtype in (torch.float64, torch.float32):
        h, w, b, s = (
            None if v is None else v.to(dtype).requires_grad_()
            for v in (leaves[k] for k in ("hidden_NC", "weight_VC", "bias_V", "scale_V"))
        )
        z_NV = h @ w.t()
        z_NV = z_NV if s is None else z_NV * s
        z_NV = z_NV if b is None else z_NV + b
        lse_N = z_NV.logsumexp(1)
        picked_N = z_NV.gather(1, given["target_N"][:, None])[:, 0]
        loss_N = (lse_N - picked_N).where(given["target_N"] != IGNORED, 0.0)
        results = [loss_N, lse_N, z_NV.sum(1)]
        inputs = [v for v in (h, w, b, s) if v is not None]
        wanted[dtype] = [*results, *torch.autograd.grad(OBJECTIVES[objective](*results), inputs)]
        errors[dtype] = [z_NV.argmax(1)]
    loss_N, lse_N, argmax_N, total_N = ours
    assert argmax_N.equal(errors[torch.float64][0])
    inputs = [v for k, v in given.items() if v is not None and k != "target_N"]
    results = [loss_N, lse_N, total_N]
    mine = [*results, *torch.autograd.grad(OBJECTIVES[objective](*results), inputs)]
    for ours_, exact, reference in zip(mine, *wanted.values(), strict=True):
        assert ours_.dtype == torch.float32
        # a product may add up in another order than the reference's: a few roundings more
        scale = 8 * torch.finfo(torch.float32).eps * float(exact.detach().abs().max()) if n else 0.0
        error = (ours_.double() - exact).abs()
        assert not n or error.max() <= (reference.double() - exact).abs().max() + scale


@in_interpreter
def test_clap_without_a_normalised_weight(kernels: ModuleType) -> None:
    from fairseq.ops.triton.linear_cross_entropy import LinearCrossEntropyFunction

    given = operands(6, 20, "")
    hidden_NC, weight_VC, target_N = (given[k] for k in ("hidden_NC", "weight_VC", "target_N"))
    scale_V = 1 / weight_VC.norm(dim=-1)
    apply = LinearCrossEntropyFunction.apply
    loss_N = apply(hidden_NC, weight_VC, None, scale_V, target_N, -100, False, False, 4)[0]
    ours = torch.autograd.grad(loss_N.sum(), [hidden_NC, weight_VC])
    unit_VC = torch.nn.functional.normalize(weight_VC, dim=-1)
    expected_N = torch.nn.functional.cross_entropy(
        hidden_NC @ unit_VC.t(), target_N, reduction="none"
    )
    torch.testing.assert_close(loss_N, expected_N)
    theirs = torch.autograd.grad(expected_N.sum(), [hidden_NC, weight_VC])
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert (ours[1] * weight_VC).sum(-1).abs().max() < 1e-5  # no radial part


@in_interpreter
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("frozen", ["hidden_NC", "weight_VC", "bias_V"])
def test_frozen_operands_get_no_gradient(frozen: str) -> None:
    from fairseq.ops.linear_cross_entropy import linear_cross_entropy

    given = operands(5, 8, "b")
    del given["scale_V"]
    given[frozen].requires_grad_(False)
    inputs = [v for v in given.values() if v.requires_grad]
    ours = linear_cross_entropy(**given, backend="triton").loss_N
    theirs = linear_cross_entropy(**given, backend="reference").loss_N
    for weight in (1.0, torch.arange(5.0)):
        pairs = (
            torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True)
            for x in (ours, theirs)
        )
        for gradient, wanted in zip(*pairs, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@in_interpreter
def test_differentiating_twice_raises(kernels: ModuleType) -> None:
    from fairseq.errors import UnsupportedError
    from fairseq.ops.linear_cross_entropy import linear_cross_entropy

    given = operands(3, 5, "")
    loss_N = linear_cross_entropy(
        given["hidden_NC"], given["weight_VC"], given["target_N"], backend="triton"
    ).loss_N
    with pytest.raises(UnsupportedError, match="twice"):
        torch.autograd.grad(loss_N.sum(), given["hidden_NC"], create_graph=True)


@in_interpreter
def test_double_precision_is_refused(kernels: ModuleType) -> None:
    from fairseq.errors import ConfigError
    from fairseq.ops.linear_cross_entropy import linear_cross_entropy

    hidden = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match="fp64"):
        linear_cross_entropy(hidden, hidden, torch.zeros(2, dtype=torch.long), backend="triton")


# -- distillation ---------------------------------------------------------------------------------


def distilled(
    dtype: torch.dtype, s_RV: Tensor, t_RV: Tensor, target_R: Tensor, temperature: float,
    bias_2V: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return divergence, likelihood and the gradient of 0.7 and 0.3 times them, by autograd."""
    leaf_RV = (s_RV.to(dtype) + bias_2V[0].to(dtype)).requires_grad_()
    p_RV = (t_RV.to(dtype) + bias_2V[1].to(dtype)) / temperature
    log_q_RV, p_RV = (leaf_RV / temperature).log_softmax(1), p_RV.softmax(1)
    divergence_R = torch.nn.functional.kl_div(log_q_RV, p_RV, reduction="none")
    divergence_R = divergence_R.nan_to_num(0.0).sum(1) * temperature**2
    likelihood_R = torch.nn.functional.cross_entropy(
        leaf_RV, target_R, ignore_index=IGNORED, reduction="none"
    )
    objective = (0.7 * divergence_R + 0.3 * likelihood_R).sum()
    return divergence_R, likelihood_R, torch.autograd.grad(objective, leaf_RV)[0]


@in_interpreter
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("temperature, biased", [(1.0, False), (2.5, False), (2.5, True)])
@pytest.mark.parametrize("classes, gap", [(2, 0), (63, 1), (64, 0), (130, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_pairs_of_rows_are_no_worse_than_the_reference(
    dtype: torch.dtype, classes: int, gap: int, temperature: float, biased: bool
) -> None:
    from fairseq.ops.triton.distillation_rows import distillation_rows

    case = Rows(classes, dtype, "", gap)
    student_RV = case.logits_RV
    draw = torch.Generator().manual_seed(classes)
    teacher_RV = (torch.randn(case.count, classes, generator=draw) * 4).to(dtype)
    teacher_RV[3] = student_RV[3]  # nothing to learn
    teacher_RV[2, 1:] = -torch.inf  # sure of one class
    bias_2V = torch.randn(2, classes, generator=draw) if biased else torch.zeros(2, classes)
    if biased:
        student_RV[3] = teacher_RV[3] = 0
        bias_2V[1] = bias_2V[0]
    given = (student_RV, teacher_RV, case.target_R, temperature, bias_2V)
    exact, reference = distilled(torch.float64, *given), distilled(torch.float32, *given)
    eps = 4 * case.eps(torch.float32) * temperature**2  # s, t and both sums are rounded
    how = {"temperature": temperature, "alpha_kl": 0.7, "alpha_lm": 0.3, "ignore_index": IGNORED}
    if biased:
        how |= {"student_bias_V": bias_2V[0], "teacher_bias_V": bias_2V[1]}
    before_RV = student_RV.clone()
    no_gradient = distillation_rows(student_RV, teacher_RV, case.target_R, **how)
    assert student_RV.equal(before_RV)
    ours = distillation_rows(student_RV, teacher_RV, case.target_R, **how, gradient=True)
    for mine, alike, wanted, other in zip(ours, no_gradient, exact, reference, strict=False):
        assert mine.equal(alike)
        no_worse(mine, wanted, other, eps)
    assert ours[0][3].abs() <= eps and ours[1][1] == 0
    no_worse(student_RV, exact[2], reference[2].to(dtype), max(eps, torch.finfo(dtype).eps))
    if gap:
        gaps_RG = student_RV.as_strided((case.count, gap), student_RV.stride(), classes)
        assert gaps_RG.equal(case.gap_RG)


@in_interpreter
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n, classes, temperature", [(0, 5, 1.0), (18, 67, 2.5), (17, 8, 1.0)])
def test_distillation_equals_the_reference(
    n: int, classes: int, temperature: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.modules.heads import Projection
    from fairseq.ops import linear_cross_entropy
    from fairseq.ops.linear_distillation import linear_distillation

    monkeypatch.setattr(linear_cross_entropy, "CHUNK_ELEMENTS", 1)  # 16 rows
    draw = torch.Generator().manual_seed(n)

    def side(channels: int) -> Projection:
        shapes = (n, channels), (classes, channels), (classes,)
        parts = [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]
        return Projection(*parts[:2], parts[2] if bias else None)

    student, teacher = side(6), side(4)
    target_N = torch.randint(classes, (n,), generator=draw)
    how = {"temperature": temperature, "alpha_ce": 0.7, "alpha_lm": 1.3, "ignore_index": IGNORED}
    leaves = [part for part in student if part is not None]
    found = {}
    for backend in ("reference", "chunked", "triton"):
        result = linear_distillation(student, teacher, target_N, **how, backend=backend)
        found[backend] = [*result, *torch.autograd.grad(result.loss / 3, leaves)]
    for exact, theirs, ours in zip(*found.values(), strict=True):
        assert ours.dtype == torch.float32
        # sums in another order: a few roundings more
        eps = 16 * torch.finfo(torch.float32).eps * float(exact.detach().abs().sum()) / max(1, n)
        error, allowed = ((x.double() - exact).abs() for x in (ours, theirs))
        assert not error.numel() or error.max() <= allowed.max() + eps
    with torch.no_grad():
        result = linear_distillation(student, teacher, target_N, **how, backend="triton")
    assert result.loss.equal(found["triton"][0])  # values alone, nothing overwritten
    assert all(part.grad is None for part in teacher if part is not None)
