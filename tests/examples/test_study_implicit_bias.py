"""The statistics of the study, on numbers made up for it."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[2] / "examples/implicit_bias/study.py"
spec = importlib.util.spec_from_file_location("study_implicit_bias", PATH)
assert spec is not None and spec.loader is not None
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def points(kl: list[float], x: list[float], y: list[float]) -> list[dict[str, Any]]:
    return [{"kl_macro": k, "trace": a, "accuracy_A": b} for k, a, b in zip(kl, x, y, strict=True)]


def test_ranks_share_ties() -> None:
    np.testing.assert_allclose(study.ranks([3.0, 1.0, 3.0, 2.0]), [2.5, 0, 2.5, 1])


def test_only_models_of_equal_loss_are_compared() -> None:
    # within each bin trace and accuracy fall together; between them both rise
    x, y = [1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11]
    own = points([0.001] * 3 + [0.008] * 3, x, y)
    assert study.within_bins(own, "trace", "accuracy_A") == pytest.approx(-1)
    unsaturated = points([0.2] * 4, [1, 2, 3, 4], [1, 2, 3, 4])
    assert study.within_bins(own + unsaturated, "trace", "accuracy_A") == pytest.approx(-1)
    assert math.isnan(study.within_bins(unsaturated, "trace", "accuracy_A"))


def test_the_interval_covers_what_is_there() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(20):
        results = [
            {"name": "base", "points": points([0.001] * 2, *rng.normal(size=(2, 2)).tolist())}
            for _ in range(12)
        ]
        _, low, high = study.interval(results, "trace", "accuracy_A", draws=100)
        covered += low <= 0 <= high
    assert covered >= 15
