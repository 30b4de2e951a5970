"""Trace, eigenvalues and spectrum of a symmetric matrix of which only products are known.

Shapes: P rows of the matrix, K vectors, M probes, S steps of Lanczos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Products = Callable[[Tensor], Tensor]
Draw = Callable[[int], Tensor]


def draws(kind: str, size: int, like: Tensor, seed: Callable[[int], int]) -> Draw:
    """Return a function of a probe's number: that probe, a vector (P,) of variance one.

    Args:
        kind: ``rademacher`` (signs; never more variance) or ``gaussian``.
        size: P.
        like: a tensor of the type and on the device of the vectors.
        seed: number of a probe -> seed of its generator.
    """

    def draw(number: int) -> Tensor:
        generator = torch.Generator(like.device)
        generator.manual_seed(seed(number))
        probe_P = torch.empty(size, dtype=like.dtype, device=like.device)
        if kind == "gaussian":
            return probe_P.normal_(generator=generator)
        return probe_P.random_(0, 2, generator=generator) * 2 - 1

    return draw


@dataclass
class Mean:
    """A mean and its standard error, of values that come one by one."""

    values: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Return the mean, NaN of nothing."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def se(self) -> float:
        """Return the standard error of the mean, NaN of fewer than two values."""
        count = len(self.values)
        if count < 2:
            return math.nan
        squares = math.fsum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / (count - 1) / count)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of Student's t.

        Source of the quantile: Abramowitz and Stegun 1964, equation 26.7.5.
        """
        z, freedom = 1.959963984540054, max(1, len(self.values) - 1)
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        return self.mean - t * self.se, self.mean + t * self.se


def hutch_plus_plus(products: Products, draw: Draw, budget: int) -> tuple[Tensor, list[Tensor]]:
    """Return the exact part and the M estimates of the rest of the diagonal, (P,) each.

    Their sums over rows are ``tr Q^T A Q`` and estimates of ``tr (I - QQ^T) A (I - QQ^T)``, where Q
    spans A times a third of the probes. The trace is unbiased, and so is that of any block:
    ``diag A = diag(QQ^T A) + diag((I - QQ^T) A QQ^T) + diag((I - QQ^T) A (I - QQ^T))``.

    Args:
        products: the matrix.
        draw: makes probes.
        budget: products to spend, at least 3.

    Source: Meyer, Musco, Musco and Woodruff 2021, algorithm 1.
    """
    # a third each for the sketch, its image and the rest, which also gets what does not divide
    third = budget // 3
    sketch_KP = products(torch.stack([draw(number) for number in range(third)]))
    basis_PK = _orthonormal(sketch_KP.t())
    image_PK = products(basis_PK.t().contiguous()).t()
    outside_PK = image_PK - basis_PK @ (basis_PK.t() @ image_PK)
    exact_P = (basis_PK * (image_PK + outside_PK)).sum(1)
    rest = []
    for number in range(third, third + budget - 2 * third):
        probe_P = draw(number)
        inside_P = probe_P - basis_PK @ (basis_PK.t() @ probe_P)
        answer_P = products(inside_P[None])[0]
        rest.append(probe_P * (answer_P - basis_PK @ (basis_PK.t() @ answer_P)))
    return exact_P, rest


def _orthonormal(vectors_PK: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns; directions that are rounding are left out."""
    basis_PK, triangle_KK = torch.linalg.qr(vectors_PK)
    size_K = triangle_KK.diagonal().abs()
    return basis_PK[:, size_K > size_K.max() * torch.finfo(size_K.dtype).eps * len(vectors_PK)]


@dataclass(frozen=True)
class Ritz:
    """What S steps of Lanczos from one vector know of a spectrum.

    Attributes:
        values_S: approximate eigenvalues, rising.
        weights_S: share of the starting vector in each; they sum to one.
        errors_S: each value is within so much of an eigenvalue.
    """

    values_S: Tensor
    weights_S: Tensor
    errors_S: Tensor


def lanczos(products: Products, start_P: Tensor, steps: int) -> Ritz:
    """Run Lanczos with full reorthogonalisation, which keeps S vectors.

    Fewer steps than asked for are done where the space is exhausted. An eigenvalue that occurs
    several times is seen once.

    Source: Golub and Van Loan 2013, sections 10.1 and 10.3; weights: Golub and Welsch 1969.
    """
    basis = [start_P / start_P.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, len(start_P))):
        image_P = products(basis[-1][None])[0]
        diagonal.append(float(basis[-1] @ image_P))
        basis_PS = torch.stack(basis, 1)
        for _ in range(2):  # twice is enough (Parlett 1980, section 6.9)
            image_P = image_P - basis_PS @ (basis_PS.t() @ image_P)
        norm = float(image_P.norm())
        beside.append(norm)
        scale = max(map(abs, diagonal + beside))
        # what is left is rounding: the vectors so far span all that the matrix can reach
        if norm <= scale * torch.finfo(start_P.dtype).eps * 10:
            break
        basis.append(image_P / norm)
    matrix_SS = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off_S = torch.tensor(beside[:-1], dtype=torch.float64)
    matrix_SS += torch.diag(off_S, 1) + torch.diag(off_S, -1)
    values_S, vectors_SS = torch.linalg.eigh(matrix_SS)
    # first components are shares of the starting vector, last ones say what lies outside
    return Ritz(values_S, vectors_SS[0].square(), beside[-1] * vectors_SS[-1].abs())


def whole_matrix(products: Products, like_P: Tensor, rows: int = 64) -> Tensor:
    """Return the matrix (P, P) itself, made symmetric, ``rows`` products at a time."""
    eye_PP = torch.eye(len(like_P), dtype=like_P.dtype, device=like_P.device)
    matrix_PP = torch.cat([products(part_KP) for part_KP in eye_PP.split(rows)])
    return (matrix_PP + matrix_PP.t()) / 2
