"""Distillation of projections: every divergence against a formula written out in fp64.

Shapes: N positions, C and D channels of student and teacher, V vocabulary, K stored entries.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor

from fairseq.errors import ConfigError, UnsupportedError
from fairseq.modules.heads import Projection
from fairseq.ops import linear_distillation as module
from fairseq.ops.dropout import dropout
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.ops.linear_distillation import (
    DIVERGENCES,
    SparseTeacher,
    linear_distillation,
)

BACKENDS = ("reference", "chunked")  # the kernel's rows are in test_triton_rows.py
IGNORED = -100
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 6e-2}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of 16 rows, so that small problems have several."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)


def projection(seed: int, n: int, width: int, rows: int, dtype: torch.dtype) -> Projection:
    draw = torch.Generator().manual_seed(seed)
    parts = [torch.randn(*shape, generator=draw) for shape in ((n, width), (rows, width), (rows,))]
    return Projection(*(part.to(dtype).requires_grad_() for part in parts))


def targets(n: int, rows: int) -> Tensor:
    target_N = torch.randint(rows, (n,), generator=torch.Generator().manual_seed(n))
    target_N[::3] = IGNORED
    return target_N


def naive(
    student: Any, teacher: Any, target_N: Tensor, temperature: float, kind: str, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms from probabilities, one row and one word at a time."""
    s_NV = student[0].double() @ student[1].double().T + student[2].double()
    t_NV = (teacher[0].double() @ teacher[1].double().T + teacher[2].double()).detach()
    q_NV, p_NV = ((x / temperature).exp() for x in (s_NV, t_NV))
    q_NV, p_NV = q_NV / q_NV.sum(1)[:, None], p_NV / p_NV.sum(1)[:, None]
    m_NV = beta * p_NV + (1 - beta) * q_NV
    value_N = {
        "forward": p_NV * (p_NV / q_NV).log(),
        "reverse": q_NV * (q_NV / p_NV).log(),
        "jsd": beta * p_NV * (p_NV / m_NV).log() + (1 - beta) * q_NV * (q_NV / m_NV).log(),
    }[kind].sum(1)
    odds_NV = s_NV.exp() / s_NV.exp().sum(1)[:, None]
    kept_N = target_N != IGNORED
    nll_N = -odds_NV[torch.arange(len(target_N)), target_N.where(kept_N, 0)].log() * kept_N
    return temperature**2 * value_N, nll_N, (s_NV - t_NV).pow(2).sum(1)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n, rows", [(0, 5), (1, 3), (37, 33)])
def test_values_and_gradients_equal_the_formula(
    kind: str, dtype: torch.dtype, backend: str, n: int, rows: int
) -> None:
    student, teacher = projection(1, n, 6, rows, dtype), projection(2, n, 4, rows, dtype)
    target_N, alphas = targets(n, rows), (0.7, 1.3, 0.2)
    got = linear_distillation(
        student, teacher, target_N, temperature=2.0, divergence=kind, jsd_beta=0.3, backend=backend,
        alpha_ce=alphas[0], alpha_lm=alphas[1], alpha_mse=alphas[2],
    )  # fmt: skip
    wanted = naive(student, teacher, target_N, 2.0, kind, 0.3)
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for one_N, other_N in zip(got[1:], wanted, strict=True):
        torch.testing.assert_close(one_N.double(), other_N.detach(), **near)
    assert (got.divergence_N >= -1e-6).all()  # no divergence is negative
    total = sum(alpha * term_N.sum() for alpha, term_N in zip(alphas, wanted, strict=True))
    ours = torch.autograd.grad(got.loss / 7, student)
    theirs = torch.autograd.grad(total / 7, student)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), **near)
    assert all(part.grad is None for part in teacher)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    both = projection(3, 20, 5, 11, torch.float64)
    for kind in DIVERGENCES:
        result = linear_distillation(
            both, both, targets(20, 11), temperature=3.0, alpha_mse=1.0, divergence=kind
        )
        assert result.divergence_N.abs().max() < 1e-14 and result.mse_N.abs().max() == 0
        for gradient in torch.autograd.grad(result.loss, both):
            assert gradient.abs().max() < 1e-13


def test_the_gradient_of_the_logits_and_the_limit_of_high_temperatures() -> None:
    n, rows = 9, 13
    student, teacher = (projection(seed, n, rows, rows, torch.float64) for seed in (4, 5))
    eye_VV = torch.eye(rows, dtype=torch.float64)
    s_NV = student.hidden_NC  # with the unit matrix as weights, hidden states are logits
    s = Projection(s_NV, eye_VV, None)
    t = Projection(teacher.hidden_NC.detach(), eye_VV, None)
    for temperature in (1.0, 2.0, 5.0):
        loss = linear_distillation(s, t, targets(n, rows), temperature=temperature).loss
        (gradient_NV,) = torch.autograd.grad(loss / n, s_NV)
        gap_NV = (s_NV / temperature).softmax(1) - (t.hidden_NC / temperature).softmax(1)
        torch.testing.assert_close(gradient_NV, temperature * gap_NV / n)
    # T^2 KL -> sum over v of (difference of the centred logits)^2 / (2 V)
    hot = linear_distillation(s, t, targets(n, rows), temperature=1e4).divergence_N
    s_NV, t_NV = (x - x.mean(1, keepdim=True) for x in (s_NV.detach(), t.hidden_NC))
    torch.testing.assert_close(hot, (s_NV - t_NV).pow(2).sum(1) / (2 * rows), rtol=2e-3, atol=1e-6)


def test_divergence_and_entropy_make_the_cross_entropy_with_soft_targets() -> None:
    student, teacher = (projection(seed, 14, 6, 10, torch.float64) for seed in (6, 7))
    p_NV = (teacher.logits() / 2).softmax(1).detach()
    soft_N = -4 * (p_NV * (student.logits() / 2).log_softmax(1)).sum(1)
    got = linear_distillation(student, teacher, targets(14, 10), temperature=2.0).divergence_N
    entropy_N = -(p_NV * p_NV.log()).sum(1)
    torch.testing.assert_close(got + 4 * entropy_N, soft_N.detach())


def test_the_extreme_mixtures_are_the_divergences() -> None:
    student, teacher = (projection(seed, 6, 6, 10, torch.float64) for seed in (6, 7))
    for beta, kind in ((1e-9, "forward"), (1 - 1e-9, "reverse")):
        jsd_N = linear_distillation(
            student, teacher, targets(6, 10), divergence="jsd", jsd_beta=beta
        ).divergence_N
        whole_N = linear_distillation(student, teacher, targets(6, 10), divergence=kind)[1]
        torch.testing.assert_close(jsd_N / min(beta, 1 - beta), whole_N, rtol=1e-3, atol=1e-5)


def test_logits_are_never_whole() -> None:
    n, rows = 512, 300
    student, teacher = (projection(seed, n, 4, rows, torch.float32) for seed in (8, 9))
    with LargestTensor() as seen:
        linear_distillation(student, teacher, targets(n, rows), alpha_lm=1.0).loss.backward()
    assert seen.elements <= max(16 * rows, n * 4)


# -- stored outputs --------------------------------------------------------------------------------


def top_k(teacher: Projection, k: int, temperature: float) -> SparseTeacher:
    log_p_NV = (teacher.logits().detach() / temperature).log_softmax(1)
    log_p_NK, ids_NK = log_p_NV.topk(k)
    tail_N = log_p_NV.exp().scatter(1, ids_NK, 0.0).sum(1).log()
    return SparseTeacher(ids_NK, log_p_NK, log_p_NK.exp(), tail_N)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_entries_and_the_bucket_of_the_others(backend: str) -> None:
    n, rows, k = 37, 21, 5
    student, teacher = (projection(seed, n, 6, rows, torch.float64) for seed in (10, 11))
    stored = top_k(teacher, k, 2.0)
    got = linear_distillation(
        student, stored, targets(n, rows), temperature=2.0, alpha_lm=0.3, backend=backend
    )
    q_NV = (student.logits() / 2).softmax(1)
    q_NK = q_NV.gather(1, stored.ids_NK)
    assert stored.log_tail_N is not None
    p_N, r_N = stored.log_tail_N.exp(), 1 - q_NK.sum(1)
    value_N = (stored.weight_NK * (stored.weight_NK / q_NK).log()).sum(1) + p_N * (p_N / r_N).log()
    torch.testing.assert_close(got.divergence_N, 4 * value_N.detach())
    whole = linear_distillation(student, teacher, targets(n, rows), temperature=2.0)
    assert (got.divergence_N <= whole.divergence_N + 1e-12).all()  # a lower bound
    total = (4 * value_N).sum() + 0.3 * naive(student, teacher, targets(n, rows), 1, "jsd", 0.5)[
        1
    ].sum()
    ours, theirs = (torch.autograd.grad(x, student) for x in (got.loss, total))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_of_the_whole_vocabulary_leave_nothing_to_the_bucket(backend: str) -> None:
    student, teacher = (projection(seed, 9, 6, 12, torch.float64) for seed in (10, 11))
    stored = top_k(teacher, 12, 1.0)
    assert stored.log_tail_N is not None and stored.log_tail_N.max() == -math.inf
    one, other = (
        linear_distillation(student, t, targets(9, 12), backend=backend) for t in (stored, teacher)
    )
    torch.testing.assert_close(one.loss, other.loss)
    for mine, wanted in zip(
        torch.autograd.grad(one.loss, student),
        torch.autograd.grad(other.loss, student),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_draws_are_unbiased_in_value_and_gradient() -> None:
    """The mean over 20,000 draws lies within four standard errors; top-k alone does not."""
    rows, draws, temperature = 8, 20_000, 2.0
    student, teacher = (projection(seed, 1, 6, rows, torch.float64) for seed in (12, 13))
    log_p_NV = (teacher.logits().detach() / temperature).log_softmax(1)
    seeded = torch.Generator().manual_seed(0)
    ids_NK = torch.multinomial(log_p_NV.exp(), draws, True, generator=seeded)
    weight_NK = torch.full((1, draws), 1 / draws, dtype=torch.float64)
    stored = SparseTeacher(ids_NK, log_p_NV.gather(1, ids_NK), weight_NK)
    got, whole = (
        linear_distillation(student, t, targets(1, rows), temperature=temperature)
        for t in (stored, teacher)
    )
    gap_K = (log_p_NV - (student.logits().detach() / temperature).log_softmax(1))[0, ids_NK[0]]
    error = temperature**2 * gap_K.std() / draws**0.5
    assert abs(got.loss - whole.loss) < 4 * error
    mine, wanted = (torch.autograd.grad(x.loss, student[2])[0] for x in (got, whole))
    p_V = log_p_NV.exp()[0]
    assert ((mine - wanted).abs() < 4 * temperature * (p_V * (1 - p_V) / draws).sqrt()).all()
    bucketed = linear_distillation(
        student, top_k(teacher, 2, temperature), targets(1, rows), temperature=temperature
    )
    assert whole.loss - bucketed.loss > 4 * error


def test_what_stored_outputs_do_not_allow_is_refused() -> None:
    student, teacher = (projection(seed, 4, 3, 7, torch.float32) for seed in (1, 2))
    for wrong in ({"divergence": "reverse"}, {"alpha_mse": 1.0}):
        with pytest.raises(ConfigError, match="stored outputs"):
            linear_distillation(student, top_k(teacher, 2, 1.0), targets(4, 7), **wrong)
    with pytest.raises(ConfigError, match="did you mean 'forward'"):
        linear_distillation(student, teacher, targets(4, 7), divergence="foward")


def test_what_the_kernel_cannot_do_is_refused() -> None:
    student, teacher = (projection(seed, 4, 3, 7, torch.float32) for seed in (1, 2))
    stored = top_k(teacher, 2, 1.0)
    wrong: dict[str, tuple[Any, dict[str, Any]]] = {
        "divergence 'jsd'": (teacher, {"divergence": "jsd"}),
        "--alpha-mse": (teacher, {"alpha_mse": 1.0}),
        "--teacher-cache": (stored, {}),
    }
    for reason, (given, options) in wrong.items():
        with pytest.raises(ConfigError, match=reason):
            linear_distillation(student, given, targets(4, 7), backend="triton", **options)


def test_auto_takes_the_kernel_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("_chunks", "_fused_chunks"):
        monkeypatch.setattr(module, name, lambda *_, name=name: taken.append(name) or iter(()))
    monkeypatch.setattr(module, "SMALL_PROBLEM", 4 * 7 - 1)
    monkeypatch.setattr(module, "triton_serves", lambda device: True)
    # as on a GPU, where bf16 features are multiplied in bf16
    monkeypatch.setattr(module, "factor_type", lambda hidden, backend: hidden.dtype)
    half, full = (projection(1, 4, 3, 7, dtype) for dtype in (torch.bfloat16, torch.float32))
    teacher = projection(2, 4, 3, 7, torch.float32)

    def chosen(student: Projection, n: int = 4, given: Any = teacher, **options: Any) -> str:
        few = Projection(student[0][:n], *student[1:])
        linear_distillation(few, given, targets(4, 7)[:n], **options)
        return taken.pop()

    assert chosen(half) == "_fused_chunks"
    for others in ({"divergence": "reverse"}, {"alpha_mse": 1.0}, {"backend": "chunked"}):
        assert chosen(half, **others) == "_chunks"
    assert chosen(full) == chosen(half, n=3) == "_chunks"
    assert chosen(half, given=top_k(teacher, 2, 1.0)) == "_chunks"


# -- second derivatives ----------------------------------------------------------------------------


def test_functions_that_form_gradients_early_refuse_to_be_differentiated_twice() -> None:
    student, teacher = (projection(seed, 20, 3, 7, torch.float64) for seed in (1, 2))
    chunked = {
        "distillation": lambda: linear_distillation(student, teacher, targets(20, 7)).loss,
        "cross-entropy": lambda: linear_cross_entropy(
            student[0], student[1], targets(20, 7), backend="chunked"
        ).loss_N.sum(),
    }
    for name, loss in chunked.items():
        with pytest.raises(UnsupportedError, match="twice"):
            torch.autograd.grad(loss(), student[0], create_graph=True)
        assert torch.autograd.grad(loss(), student[0])[0].abs().max() > 0, name


def test_second_derivatives_of_the_reference_backends_and_of_dropout_are_right() -> None:
    student, teacher = (projection(seed, 3, 2, 4, torch.float64) for seed in (1, 2))
    target_N = targets(3, 4)

    def distilled(hidden_NC: Tensor) -> Tensor:
        operands = Projection(hidden_NC, *student[1:])
        return linear_distillation(operands, teacher, target_N, backend="reference").loss

    def entropy(hidden_NC: Tensor) -> Tensor:
        return linear_cross_entropy(hidden_NC, student[1], target_N, backend="reference").loss_N

    def dropped(hidden_NC: Tensor) -> Tensor:
        torch.manual_seed(0)
        return dropout(hidden_NC**3, 0.4, backend="packed")

    for function in (distilled, entropy, dropped):
        assert torch.autograd.gradgradcheck(function, student[0])
