"""Estimators on matrices that are known: bias, coverage, variance, eigenvalues."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fairseq.evaluation.hessian.estimators import (
    Mean,
    draws,
    hutch_plus_plus,
    lanczos,
    whole_matrix,
)


def symmetric(size: int, seed: int = 0) -> Tensor:
    matrix_PP = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    return matrix_PP + matrix_PP.t()


def draw_of(kind: str, size: int, run: int = 0):
    return draws(kind, size, torch.zeros(1).double(), lambda number: 1000 * run + number)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_95_percent_interval_covers_the_trace_as_often_as_it_says(kind: str) -> None:
    matrix_PP, covered = symmetric(12), 0
    for run in range(100):
        draw, mean = draw_of(kind, 12, run), Mean()
        for number in range(30):
            probe_P = draw(number)
            mean.values.append(float(probe_P @ matrix_PP @ probe_P))
        low, high = mean.interval()
        covered += low <= float(matrix_PP.trace()) <= high
    assert 90 <= covered <= 99


def test_the_quantile_is_students() -> None:
    mean = Mean([-1.0, 1.0] * 5 + [0.0])  # 10 degrees of freedom: t = 2.2281
    low, high = mean.interval()
    assert math.isclose(high, 2.2281 * mean.se, rel_tol=2e-3) and low == -high
    assert math.isclose(mean.se, math.sqrt(10 / 10 / 11))


def test_one_sign_probe_is_exact_on_a_diagonal_and_the_variances_are_the_formulas() -> None:
    diagonal_P = torch.tensor([3.0, -1.0, 0.5]).double()
    probe_P = draw_of("rademacher", 3)(0)
    assert float(probe_P @ (diagonal_P * probe_P)) == 2.5
    matrix_PP = symmetric(5)
    square, on_diagonal = (
        float(matrix_PP.square().sum()),
        float(matrix_PP.diagonal().square().sum()),
    )
    for kind, wanted in (("gaussian", 2 * square), ("rademacher", 2 * (square - on_diagonal))):
        draw = draw_of(kind, 5)
        probes_MP = torch.stack([draw(number) for number in range(4000)])
        values_M = ((probes_MP @ matrix_PP) * probes_MP).sum(1)
        assert math.isclose(float(values_M.var()), wanted, rel_tol=0.15)
        assert abs(float(values_M.mean() - matrix_PP.trace())) < 4 * math.sqrt(wanted / 4000)


def test_hutch_plus_plus_is_unbiased_by_block_and_better_on_low_rank() -> None:
    """A few large eigenvalues, a tail of small ones: the sketch takes the large ones out."""
    generator = torch.Generator().manual_seed(1)
    basis_PP, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator).double())
    values_P = torch.tensor([50.0, -20, 10] + [0.1] * 27).double()
    matrix_PP = basis_PP * values_P @ basis_PP.t()
    both: dict[str, list[Tensor]] = {"hutch++": [], "hutchinson": []}
    for run in range(300):
        draw = draw_of("rademacher", 30, run)
        exact_P, rest = hutch_plus_plus(lambda rows: rows @ matrix_PP, draw, 18)
        assert len(rest) == 6
        both["hutch++"].append(exact_P + torch.stack(rest).mean(0))
        probes_MP = torch.stack([draw(number) for number in range(18)])
        both["hutchinson"].append((probes_MP * (probes_MP @ matrix_PP)).mean(0))
    for diagonals in both.values():
        found = torch.stack(diagonals)
        for rows in (slice(0, 10), slice(10, 30), slice(0, 30)):
            sums = found[:, rows].sum(1)
            wanted = matrix_PP.diagonal()[rows].sum()
            assert abs(float(sums.mean() - wanted)) < 4 * float(sums.std()) / math.sqrt(300) + 1e-9
    spread = {name: float(torch.stack(rows).sum(1).var()) for name, rows in both.items()}
    assert spread["hutch++"] < spread["hutchinson"] / 50
    low_rank = basis_PP[:, :3] * values_P[:3] @ basis_PP[:, :3].t()
    exact_P, rest = hutch_plus_plus(lambda rows: rows @ low_rank, draw_of("gaussian", 30), 12)
    assert torch.allclose(exact_P, low_rank.diagonal()) and max(r.abs().max() for r in rest) < 1e-9


def test_lanczos_finds_the_ends_of_the_spectrum_and_all_of_it_in_the_end() -> None:
    matrix_PP = symmetric(40)
    wanted_P = torch.linalg.eigvalsh(matrix_PP)
    products, start_P = (lambda rows: rows @ matrix_PP), draw_of("gaussian", 40)(0)
    whole = lanczos(products, start_P, 40)
    assert torch.allclose(whole.values_S, wanted_P) and torch.isclose(
        whole.weights_S.sum(), torch.ones(()).double()
    )
    for power in (1, 2, 5):  # moments of the matrix in the direction of the start
        moment = start_P @ torch.linalg.matrix_power(matrix_PP, power) @ start_P
        found = (whole.weights_S * whole.values_S**power).sum() * start_P.square().sum()
        assert torch.isclose(found, moment)
    some = lanczos(products, start_P, 25)
    for place in (0, 1, -2, -1):
        distance = (wanted_P - some.values_S[place]).abs().min()
        assert distance <= some.errors_S[place] + 1e-9
        assert some.errors_S[place] < 1e-2 * wanted_P.abs().max()


def test_lanczos_stops_where_the_space_ends() -> None:
    found = lanczos(lambda rows: 2 * rows, torch.ones(7).double(), 5)
    assert len(found.values_S) == 1 and math.isclose(float(found.values_S[0]), 2)
    assert float(found.errors_S[0]) < 1e-14
    rank_one = torch.ones(7, 7).double()
    found = lanczos(lambda rows: rows @ rank_one, draw_of("gaussian", 7)(0), 7)
    assert len(found.values_S) <= 3 and math.isclose(float(found.values_S[-1]), 7)


def test_the_whole_matrix_comes_in_parts() -> None:
    matrix_PP = symmetric(10)
    parts: list[int] = []

    def products(rows: Tensor) -> Tensor:
        parts.append(len(rows))
        return rows @ matrix_PP

    assert torch.equal(whole_matrix(products, matrix_PP[0], rows=4), matrix_PP)
    assert parts == [4, 4, 2]
