"""The checker of grammars on files made here, from arithmetic by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.references import pcfg

RULES = "X X X 0.4\nX a 0.35\nX b 0.25\n"
Q = [0.35 / 0.6, 0.25 / 0.6]  # of every position, whatever stands elsewhere


def record(**changes: float) -> dict[str, object]:
    """Return a reference about two sentences and a model that answers one half everywhere."""
    entropy = -sum(q * math.log(q) for q in Q)
    return {
        "grammar_text": RULES,
        "terminals": ["a", "b"],
        "sentences": ["a b", "b"],
        "condprob": [Q + Q, Q + [0.0, 0.0]],
        "model_answers": [[0.5] * 4, [0.5] * 4],
        "entropy": entropy,
        "cross_entropy": math.log(2),
        "kl": math.log(2) - entropy,
        **changes,
    }


def test_rows_and_the_answers_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(record()))
    assert pcfg.check(tmp_path) == 0
    printed = capsys.readouterr().out
    assert all(f"  {key}: " in printed for key in ("condprob", "cross_entropy", "kl", "entropy"))
    for key in ("cross_entropy", "kl", "entropy"):
        path.write_text(json.dumps(record(**{key: 0.5})))
        assert pcfg.check(tmp_path) == 1


def test_a_perceptron_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Second derivatives by functional transforms of the loss, written once more."""
    torch.manual_seed(0)
    shapes = {"w1": (2, 4), "b1": (2,), "w2": (3, 2), "b2": (3,)}
    arrays = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    x_NC, y_N = torch.randn(5, 4).double(), torch.tensor([0, 2, 1, 1, 0])

    def loss(flat_P: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = (
            part.view(shape)
            for part, shape in zip(flat_P.split([8, 2, 6, 3]), shapes.values(), strict=True)
        )
        logits_NV = torch.tanh(x_NC @ w1.T + b1) @ w2.T + b2
        return (logits_NV.logsumexp(1) - logits_NV[torch.arange(5), y_N]).mean()

    flat_P = torch.cat([value.reshape(-1) for value in arrays.values()])
    hessian_PP = torch.func.hessian(loss)(flat_P)
    values_P = torch.linalg.eigvalsh(hessian_PP)
    wanted = {
        "trace": float(hessian_PP.trace()),
        "eig_min": float(values_P[0]),
        "eig_max": float(values_P[-1]),
        "grad_norm": float(torch.func.grad(loss)(flat_P).norm()),
    }
    saved = {name: value.numpy() for name, value in (arrays | {"x": x_NC, "y": y_N}).items()}
    np.savez(tmp_path / "mlp.npz", **saved)
    for off in (0.0, 1e-4):
        wanted["trace"] += off
        (tmp_path / "hessian.json").write_text(json.dumps({"mlp": wanted}))
        assert pcfg.check(tmp_path) == (1 if off else 0), capsys.readouterr().out
