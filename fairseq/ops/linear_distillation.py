"""Distillation of one linear projection into another, without keeping the logits of either.

For a row with student logits s, teacher logits t, temperature T, p = softmax(t/T), q = softmax(s/T)
and m = beta p + (1 - beta) q:

=======  ================================================  =====================================
name     value                                             gradient with respect to s
=======  ================================================  =====================================
forward  T^2 KL(p || q)                                    T (q - p)
reverse  T^2 KL(q || p)                                    T q (log q/p - KL(q || p))
jsd      T^2 (beta KL(p || m) + (1 - beta) KL(q || m))     T (1 - beta) q (log q/m - KL(q || m))
mse      sum_v (s - t)^2                                   2 (s - t)
nll      -log softmax(s)[target]                           softmax(s) - onehot(target)
=======  ================================================  =====================================

Sources: forward: Hinton et al. 2015, section 2; reverse: Gu et al. 2024 (MiniLLM), section 2; jsd:
Agarwal et al. 2024 (GKD), section 2. Shapes: N positions, C channels (each side its own), V
vocabulary, R positions of one chunk, K stored entries of a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError, did_you_mean
from fairseq.ops.linear_cross_entropy import (
    SMALL_PROBLEM,
    ProjectionGradients,
    chunk_rows,
    factor_type,
    logit_chunks,
)
from fairseq.ops.loss_peers import require_kernel, triton_serves
from fairseq.ops.single_backward import single_backward
from fairseq.protocols import Context

if TYPE_CHECKING:
    from fairseq.modules.heads import Projection

DIVERGENCES = ("forward", "reverse", "jsd")
BACKENDS = ("reference", "chunked", "triton")
# Several chunks of this size live at once, so they are smaller than those of the cross-entropy.
CHUNK_ELEMENTS = 1 << 22


class SparseTeacher(NamedTuple):
    """What is stored of a teacher's distributions p, all at one temperature.

    Attributes:
        ids_NK: int64; an id may repeat (samples).
        log_p_NK: log p of each id.
        weight_NK: what each counts: p itself, or 1/K where the ids are K draws from p.
        log_tail_N: log of the probability of all other ids together; None if the entries stand for
            all of p, as draws do.
    """

    ids_NK: Tensor
    log_p_NK: Tensor
    weight_NK: Tensor
    log_tail_N: Tensor | None = None


class Distillation(NamedTuple):
    """The loss, and what it is made of.

    Attributes:
        loss: the weighted sum over all terms and positions, a scalar that can be differentiated.
        divergence_N: the (T^2-scaled) divergence of each position in nats, without its weight.
        nll_N: -log p(target), 0 where ``ignore_index`` stands.
        mse_N: squared differences, summed over the vocabulary; zero unless they are wanted.
    """

    loss: Tensor
    divergence_N: Tensor
    nll_N: Tensor
    mse_N: Tensor


class _Terms(NamedTuple):
    temperature: float
    alphas: tuple[float, float, float]  # of divergence, likelihood and squared difference
    divergence: str
    beta: float
    ignore_index: int
    trained: bool  # whether gradients are recorded; inside the function they never are
    fused: bool = False  # by the kernel


Operands = tuple[Tensor, Tensor, Tensor | None]  # hidden_NC, weight_VC, bias_V
Values = tuple[Tensor, Tensor, Tensor]  # divergence_R, nll_R, mse_R


def linear_distillation(
    student: Projection,
    teacher: Projection | SparseTeacher,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    alpha_ce: float = 1.0,
    alpha_lm: float = 0.0,
    alpha_mse: float = 0.0,
    divergence: str = "forward",
    jsd_beta: float = 0.5,
    ignore_index: int = -100,
    backend: str = "auto",
) -> Distillation:
    """Return ``sum_n alpha_ce D_n + alpha_lm nll_n + alpha_mse mse_n``, see the module.

    Everything is fp32 (fp64 for fp64 input) whatever the projections are; the teacher gets no
    gradient.

    Args:
        student: its projection; the widths of the two may differ, not the vocabularies.
        teacher: its projection, or what was stored of its distributions at this temperature, which
            allows only the forward divergence: over the stored ids and one bucket for all others,
            or, for draws, its unbiased estimate.
        target_N: int64; ``ignore_index`` gives no likelihood term.
        temperature: T, of the divergence only.
        alpha_ce: weight of the divergence.
        alpha_lm: weight of the likelihood of the targets.
        alpha_mse: weight of the squared difference of the logits.
        divergence: forward, reverse or jsd.
        jsd_beta: share of the teacher in the mixture, in (0, 1).
        ignore_index: target that is skipped.
        backend: ``chunked`` forms the gradient in the forward pass, block by block; ``triton``
            does so with a kernel of our own (forward divergence and likelihood); ``reference``
            keeps everything in fp64 and leaves the gradient to autograd; ``auto`` takes triton
            where the cross-entropy would and the kernel can, else chunked.

    Raises:
        ConfigError: for an unknown backend or divergence, or one that stored outputs do not allow;
            for what the kernel cannot do.
        UnsupportedError: when another backend than the reference is differentiated twice.
    """
    for value, known in ((divergence, DIVERGENCES), (backend, ("auto", *BACKENDS))):
        if value not in known:
            raise ConfigError(
                f"'{value}'{did_you_mean(value, known)}: choose one of {', '.join(known)}"
            )
    sparse = isinstance(teacher, SparseTeacher)
    if sparse and (divergence != "forward" or alpha_mse):
        raise ConfigError(
            "stored outputs of a teacher allow the forward divergence only: --divergence forward "
            "and --alpha-mse 0, or train with the teacher itself (--teacher-path alone)"
        )
    dtype = factor_type(student.hidden_NC, "chunked")  # that of autocast, where it is on
    if backend == "triton":
        check_kernel_can(divergence, alpha_mse, sparse)
        require_kernel(student.hidden_NC)
    fused = backend == "triton" or (
        backend == "auto"
        and dtype == torch.bfloat16
        and not kernel_lacks(divergence, alpha_mse, sparse)
        and len(target_N) * len(student.weight_VC) > SMALL_PROBLEM
        and triton_serves(target_N.device)
    )
    alphas, trained = (alpha_ce, alpha_lm, alpha_mse), torch.is_grad_enabled()
    terms = _Terms(temperature, alphas, divergence, jsd_beta, ignore_index, trained, fused)
    with torch.autocast(target_N.device.type, enabled=False):
        if backend == "reference":
            return _reference(student, teacher, target_N, terms)
        if isinstance(teacher, SparseTeacher):
            theirs, stored = None, teacher
        else:  # in its own precision: an fp32 teacher of a bf16 student is not rounded
            teacher_type = factor_type(teacher.hidden_NC, "chunked")
            wider = dtype if torch.float64 in (teacher_type, dtype) else teacher_type
            theirs, stored = _cast(teacher, wider), None
        return Distillation(
            *_Chunked.apply(*_cast(student, dtype), theirs, stored, target_N, terms)
        )


def kernel_lacks(divergence: str, alpha_mse: float, stored: bool) -> str:
    """Return which of the wanted terms the Triton kernel cannot compute, '' if it can all."""
    if divergence != "forward":
        return f"the divergence '{divergence}'"
    if alpha_mse:
        return "squared differences of logits (--alpha-mse)"
    return "stored outputs of a teacher (--teacher-cache)" if stored else ""


def check_kernel_can(divergence: str, alpha_mse: float, stored: bool) -> None:
    """Raise ``ConfigError`` if the Triton kernel cannot compute what is wanted."""
    if lacks := kernel_lacks(divergence, alpha_mse, stored):
        raise ConfigError(
            "the loss backend 'triton' distils by the forward divergence and the likelihood, and "
            f"cannot compute {lacks}: choose auto or chunked"
        )


def _cast(operands: Projection, dtype: torch.dtype) -> Operands:
    """Return hidden, weight and bias as the products want them."""
    hidden_NC, weight_VC, bias_V = operands
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return hidden_NC.to(dtype), weight_VC.to(dtype), None if bias_V is None else bias_V.to(wide)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits / temperature if temperature != 1 else logits, -1)


# -- divergences of a chunk: (value_R, gradient_RV), both before the factors T^2 and T -------------


def _dense(log_q_RV: Tensor, log_p_RV: Tensor, terms: _Terms) -> tuple[Tensor, Tensor]:
    """Return the divergence from a teacher's whole distribution; overwrites both arguments."""
    if terms.divergence == "forward":
        p_RV = log_p_RV.exp()
        value_R = p_RV.mul(log_p_RV.sub_(log_q_RV)).sum(-1)
        return value_R, log_q_RV.exp_().sub_(p_RV)
    if terms.divergence == "reverse":
        q_RV = log_q_RV.exp()
        value_R = q_RV.mul(log_q_RV.sub_(log_p_RV)).sum(-1)
        return value_R, log_q_RV.sub_(value_R[:, None]).mul_(q_RV)
    beta = terms.beta
    # as logarithms, since p and q both underflow where neither model expects a word
    log_m_RV = torch.logaddexp(log_p_RV + _log(beta), log_q_RV + _log(1 - beta))
    q_RV = log_q_RV.exp()
    teachers_R = log_p_RV.exp().mul_(log_p_RV.sub_(log_m_RV)).sum(-1)
    students_R = q_RV.mul(log_q_RV.sub_(log_m_RV)).sum(-1)
    gradient_RV = log_q_RV.sub_(students_R[:, None]).mul_(q_RV).mul_(1 - beta)
    return beta * teachers_R + (1 - beta) * students_R, gradient_RV


def _log(share: float) -> float:
    return float(torch.tensor(share, dtype=torch.float64).log())


def _sparse(log_q_RV: Tensor, stored: SparseTeacher) -> tuple[Tensor, Tensor]:
    """Return the divergence from stored entries (and the bucket of the others)."""
    ids_RK = stored.ids_NK
    value_R = (stored.weight_NK * (stored.log_p_NK - log_q_RV.gather(1, ids_RK))).sum(-1)
    if stored.log_tail_N is None:
        gradient_RV = log_q_RV.exp_()
    else:
        rest_RV = log_q_RV.scatter(1, ids_RK, -torch.inf)
        log_rest_R = rest_RV.logsumexp(-1)
        tail_R = stored.log_tail_N.exp()
        some_R = tail_R > 0
        value_R = value_R + torch.where(some_R, tail_R * (stored.log_tail_N - log_rest_R), 0.0)
        # within the bucket the student keeps its proportions
        share_R1 = torch.where(some_R, stored.log_tail_N - log_rest_R, -torch.inf)[:, None]
        gradient_RV = log_q_RV.exp_().sub_((rest_RV + share_R1).exp_())
    return value_R, gradient_RV.scatter_add_(1, ids_RK, -stored.weight_NK)


def _rows(stored: SparseTeacher, rows: slice, dtype: torch.dtype) -> SparseTeacher:
    """Return a chunk of what is stored, in the type of the logits."""
    tail_N = stored.log_tail_N
    return SparseTeacher(
        stored.ids_NK[rows],
        stored.log_p_NK[rows].to(dtype),
        stored.weight_NK[rows].to(dtype),
        None if tail_N is None else tail_N[rows].to(dtype),
    )


class _Chunked(torch.autograd.Function):
    """Blocks of rows; as the loss is one number, its backward pass only scales what is there."""

    @staticmethod
    def forward(
        ctx: Context,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        theirs: Operands | None,
        stored: SparseTeacher | None,  # instead of the teacher's operands
        target_N: Tensor,
        terms: _Terms,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the terms and, if anything needs it, the gradient of the loss."""
        wide = torch.float64 if hidden_NC.dtype == torch.float64 else torch.float32
        divergence_N, nll_N, mse_N = hidden_NC.new_zeros(3, len(hidden_NC), dtype=wide)
        wanted = terms.trained and any(ctx.needs_input_grad)
        gradients = ProjectionGradients(ctx, hidden_NC, weight_VC) if wanted else None
        operands = (hidden_NC, weight_VC, bias_V)
        if terms.fused and theirs is not None:
            chunks = _fused_chunks(operands, theirs, target_N, terms, wanted)
        else:
            chunks = _chunks(operands, theirs, stored, target_N, terms, wanted)
        for rows, values, dlogits_RV in chunks:
            divergence_N[rows], nll_N[rows], mse_N[rows] = values
            if gradients is not None:
                gradients.add(rows, dlogits_RV)
            del dlogits_RV  # before the next chunk is made
        ctx.save_for_backward(*((None,) * 3 if gradients is None else gradients.tensors()))
        ctx.mark_non_differentiable(divergence_N, nll_N, mse_N)
        alphas = zip(terms.alphas, (divergence_N, nll_N, mse_N), strict=True)
        loss = sum(
            (alpha * term_N.sum() for alpha, term_N in alphas), hidden_NC.new_zeros((), dtype=wide)
        )
        return loss, divergence_N, nll_N, mse_N

    @staticmethod
    @single_backward
    def backward(ctx: Context, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that the forward pass formed."""
        units = ctx.saved_tensors
        return (*(unit if unit is None else unit * upstream[0] for unit in units), *[None] * 4)


def _chunks(
    ours: Operands,
    theirs: Operands | None,
    stored: SparseTeacher | None,
    target_N: Tensor,
    terms: _Terms,
    wanted: bool,
) -> Iterator[tuple[slice, Values, Tensor]]:
    """Yield (rows, their terms, the gradient of their logits)."""
    teachers = iter(() if theirs is None else logit_chunks(*theirs, elements=CHUNK_ELEMENTS))
    for rows, logits_RV in logit_chunks(*ours, CHUNK_ELEMENTS):
        teacher = next(teachers)[1] if stored is None else _rows(stored, rows, logits_RV.dtype)
        values, dlogits_RV = _chunk(logits_RV, teacher, target_N[rows], terms, wanted)
        del teacher, logits_RV
        yield rows, values, dlogits_RV
        del dlogits_RV


def _fused_chunks(
    ours: Operands, theirs: Operands, target_N: Tensor, terms: _Terms, wanted: bool
) -> Iterator[tuple[slice, Values, Tensor]]:
    """Do as :func:`_chunks`, by the kernel."""
    from fairseq.ops.triton.distillation_rows import distillation_rows
    from fairseq.ops.triton.linear_cross_entropy import Operands as Blocks

    step = chunk_rows(target_N.device, len(ours[1]))
    students, teachers = (
        Blocks(hidden_NC, weight_VC, None, None, target_N, terms.ignore_index, step).blocks()
        for hidden_NC, weight_VC, _ in (ours, theirs)
    )
    for (rows, s_RV), (_, t_RV) in zip(students, teachers, strict=True):
        divergence_R, nll_R = distillation_rows(
            s_RV, t_RV, target_N[rows], student_bias_V=ours[2], teacher_bias_V=theirs[2],
            temperature=terms.temperature, alpha_kl=terms.alphas[0], alpha_lm=terms.alphas[1],
            ignore_index=terms.ignore_index, gradient=wanted,
        )  # fmt: skip
        # the kernel has put the gradient where the student's logits stood
        yield rows, (divergence_R, nll_R, torch.zeros_like(nll_R)), s_RV


def _chunk(
    s_RV: Tensor, teacher: Tensor | SparseTeacher, target_R: Tensor, terms: _Terms, wanted: bool
) -> tuple[Values, Tensor]:
    """Return the three terms of each row and the gradient of their weighted sum."""
    temperature, (alpha_ce, alpha_lm, alpha_mse) = terms.temperature, terms.alphas
    mse_R = s_RV.new_zeros(len(s_RV))
    dlogits_RV: Tensor = torch.zeros((), dtype=s_RV.dtype, device=s_RV.device)
    if alpha_mse:
        assert isinstance(teacher, Tensor)
        gap_RV = s_RV - teacher
        # squares and sums in one pass, without another tensor of this size
        mse_R = torch.linalg.vecdot(gap_RV, gap_RV)
        dlogits_RV = gap_RV.mul_(2 * alpha_mse)
        del gap_RV
    keep_R = target_R != terms.ignore_index
    index_R1 = target_R.where(keep_R, 0)[:, None]
    lse_R = s_RV.logsumexp(-1)
    nll_R = torch.where(keep_R, lse_R - s_RV.gather(1, index_R1)[:, 0], 0.0)
    if alpha_lm and wanted:
        p_RV = (s_RV - lse_R[:, None]).exp_()
        p_RV.scatter_add_(1, index_R1, p_RV.new_full((), -1.0).expand(index_R1.shape))
        dlogits_RV = p_RV.mul_(keep_R[:, None]).mul_(alpha_lm).add_(dlogits_RV)
        del p_RV
    log_q_RV = _log_softmax(s_RV, temperature)
    if isinstance(teacher, Tensor):
        value_R, gradient_RV = _dense(log_q_RV, _log_softmax(teacher, temperature), terms)
    else:
        value_R, gradient_RV = _sparse(log_q_RV, teacher)
    if wanted:
        dlogits_RV = gradient_RV.mul_(alpha_ce * temperature).add_(dlogits_RV)
    return (temperature**2 * value_R, nll_R, mse_R), dlogits_RV


def _reference(
    student: Projection, teacher: Projection | SparseTeacher, target_N: Tensor, terms: _Terms
) -> Distillation:
    """Return the same from whole logits in fp64, differentiated by autograd."""
    s_NV = F.linear(*_cast(student, torch.float64))
    temperature, beta = terms.temperature, terms.beta
    log_q_NV = _log_softmax(s_NV, temperature)
    q_NV, mse_N = log_q_NV.exp(), s_NV.new_zeros(len(s_NV))
    if isinstance(teacher, SparseTeacher):
        stored = _rows(teacher, slice(None), torch.float64)
        gap_NK = stored.log_p_NK - log_q_NV.gather(1, stored.ids_NK)
        value_N = (stored.weight_NK * gap_NK).sum(-1)
        if stored.log_tail_N is not None:
            other_NV = torch.ones_like(q_NV).scatter(1, stored.ids_NK, 0.0)
            tail_N = stored.log_tail_N.exp()
            some_N = tail_N > 0  # of a whole distribution nothing is left, on either side
            log_rest_N = torch.where(some_N, (q_NV * other_NV).sum(-1), 1.0).log()
            log_tail_N = torch.where(some_N, stored.log_tail_N, 0.0)
            value_N = value_N + tail_N * (log_tail_N - log_rest_N)
    else:
        t_NV = F.linear(*_cast(teacher, torch.float64)).detach()
        log_p_NV = _log_softmax(t_NV, temperature)
        p_NV, mse_N = log_p_NV.exp(), (s_NV - t_NV).square().sum(-1)
        log_m_NV = (beta * p_NV + (1 - beta) * q_NV).log()
        value_N = {
            "forward": lambda: (p_NV * (log_p_NV - log_q_NV)).sum(-1),
            "reverse": lambda: (q_NV * (log_q_NV - log_p_NV)).sum(-1),
            "jsd": lambda: (
                beta * (p_NV * (log_p_NV - log_m_NV)).sum(-1)
                + (1 - beta) * (q_NV * (log_q_NV - log_m_NV)).sum(-1)
            ),
        }[terms.divergence]()
    nll_N = F.cross_entropy(s_NV, target_N, ignore_index=terms.ignore_index, reduction="none")
    parts = (temperature**2 * value_N, nll_N, mse_N)
    loss = sum((a * x.sum() for a, x in zip(terms.alphas, parts, strict=True)), s_NV.new_zeros(()))
    return Distillation(loss, *(part.detach() for part in parts))
