"""The loss primitive: every backend against a formula written out in fp64.

Shapes: N positions, C channels, V classes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor

from fairseq.errors import ConfigError, UnsupportedError
from fairseq.ops import linear_cross_entropy as module
from fairseq.ops.linear_cross_entropy import BACKENDS, linear_cross_entropy

IGNORED = 1


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of 16 rows, so that small problems have several."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)


def problem(
    n: int, classes: int, bias: bool, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> dict[str, Any]:
    """Return the arguments of the primitive, drawn anew but always the same; ids 1 are ignored."""
    generator = torch.Generator().manual_seed(n * 1009 + classes)
    hidden = torch.randn(n, 6, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(classes, 6, generator=generator) * scale).to(dtype).requires_grad_()
    vector = torch.randn(classes, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(classes, (n,), generator=generator)
    return {
        "hidden_NC": hidden,
        "weight_VC": weight,
        "target_N": target,
        "bias_V": vector if bias else None,
        "ignore_index": IGNORED,
    }


def formula(arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, log-sum-exp and sum of logits in fp64, from the definition."""
    logits_NV = arguments["hidden_NC"].double() @ arguments["weight_VC"].double().t()
    if arguments["bias_V"] is not None:
        logits_NV = logits_NV + arguments["bias_V"].double()
    top_N1 = logits_NV.detach().amax(-1, keepdim=True)
    lse_N = (logits_NV - top_N1).exp().sum(-1).log() + top_N1[:, 0]
    target_N = arguments["target_N"]
    picked_N = logits_NV[torch.arange(len(target_N)), target_N.clamp(min=0)]
    return (lse_N - picked_N) * (target_N != IGNORED), lse_N, logits_NV.sum(-1)


def gradients(objective: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    wanted = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
    return [g.double() for g in torch.autograd.grad(objective, wanted)]


OBJECTIVES = {
    "sum": lambda loss, lse, total: loss.sum(),
    "mean": lambda loss, lse, total: loss.sum() / 7,
    "weighted": lambda loss, lse, total: (loss * torch.arange(1.0, len(loss) + 1)).sum(),
    "lse": lambda loss, lse, total: (lse**2).sum(),
    "sum_logits": lambda loss, lse, total: (total * 0.1).sum(),
    "all": lambda loss, lse, total: (loss * lse.detach() + lse + 0.1 * total).sum(),
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n, classes", [(0, 5), (1, 3), (16, 40), (37, 33)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_and_gradients_equal_the_formula(
    backend: str, dtype: torch.dtype, bias: bool, n: int, classes: int, objective: str
) -> None:
    arguments = problem(n, classes, bias, dtype)
    out = linear_cross_entropy(**arguments, backend=backend, want_argmax=True, want_sum_logits=True)
    expected = formula(arguments)
    assert out.argmax_N is not None and out.sum_logits_N is not None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    results = (out.loss_N, out.lse_N, out.sum_logits_N)
    # the factors are those of the test, so only the arithmetic may differ
    exact = 1e-11 if dtype == torch.float64 else 2e-5
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wide and result.shape == (n,)
        torch.testing.assert_close(result.double(), wanted, rtol=exact, atol=exact)
    score_NV = arguments["hidden_NC"].double() @ arguments["weight_VC"].double().t()
    if bias:
        score_NV = score_NV + arguments["bias_V"].double()
    assert out.argmax_N.equal(score_NV.argmax(-1))

    ours = gradients(OBJECTIVES[objective](*results), arguments)
    theirs = gradients(OBJECTIVES[objective](*expected), arguments)
    for gradient, wanted in zip(ours, theirs, strict=True):
        largest = max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
        torch.testing.assert_close(
            gradient / largest, wanted / largest, rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_positions_have_no_loss_and_no_gradient(backend: str) -> None:
    arguments = problem(20, 7, bias=True)
    arguments["target_N"] = torch.full((20,), IGNORED)
    out = linear_cross_entropy(**arguments, backend=backend)
    assert not out.loss_N.any()
    assert not any(g.any() for g in gradients(out.loss_N.sum(), arguments))
    arguments["ignore_index"] = -100  # the same ids are ordinary now
    assert linear_cross_entropy(**arguments, backend=backend).loss_N.gt(0).all()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["equal", "different"])
def test_gradients_agree_with_finite_differences(backend: str, weights: str) -> None:
    arguments = problem(18, 5, bias=True, dtype=torch.float64)
    factor_N = torch.ones(()) if weights == "equal" else torch.linspace(0.5, 2, 18)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        arguments.update(hidden_NC=hidden, weight_VC=weight, bias_V=bias)
        return (linear_cross_entropy(**arguments, backend=backend).loss_N * factor_N).sum()

    inputs = tuple(arguments[key] for key in ("hidden_NC", "weight_VC", "bias_V"))
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_chunks_are_as_accurate_as_the_reference(scale: float) -> None:
    errors: dict[str, list[float]] = {}
    for backend in BACKENDS:
        arguments = problem(200, 600, bias=True, scale=scale)
        loss_N = linear_cross_entropy(**arguments, backend=backend).loss_N
        expected_N = formula(arguments)[0]
        ours = [loss_N.detach(), *gradients(loss_N.sum(), arguments)]
        exact = [expected_N.detach(), *gradients(expected_N.sum(), arguments)]
        pairs = zip(ours, exact, strict=True)
        errors[backend] = [float((a.double() - b).norm()) for a, b in pairs]
    for chunked, reference in zip(errors["chunked"], errors["reference"], strict=True):
        assert chunked <= 2 * reference, errors


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits_stay_finite(backend: str) -> None:
    hidden = torch.tensor([[1e4], [-1e4], [1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    target = torch.tensor([0, 0, 2])
    loss_N = linear_cross_entropy(hidden, weight, target, backend=backend).loss_N
    assert loss_N.tolist() == [0.0, 2e4, 1e4]
    loss_N.sum().backward()
    assert hidden.grad is not None and hidden.grad[:, 0].tolist() == [0.0, -2.0, 1.0]
    assert weight.grad is not None and weight.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_ruled_out_by_an_infinite_bias(backend: str) -> None:
    arguments = problem(9, 6, bias=True)
    with torch.no_grad():
        arguments["bias_V"][4:] = -torch.inf  # rows that only fill up a round size
    arguments["target_N"] %= 4
    fewer = {**arguments, "weight_VC": arguments["weight_VC"][:4]}
    fewer["bias_V"] = arguments["bias_V"][:4]
    loss_N = linear_cross_entropy(**arguments, backend=backend).loss_N
    torch.testing.assert_close(loss_N, linear_cross_entropy(**fewer, backend="reference").loss_N)
    hidden, weight, bias = gradients(loss_N.sum(), arguments)
    assert hidden.isfinite().all()
    assert not weight[4:].any() and not bias[4:].any()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("frozen", ["hidden_NC", "weight_VC", "bias_V"])
def test_frozen_operands_get_no_gradient(frozen: str) -> None:
    arguments = problem(20, 7, bias=True)
    arguments[frozen].requires_grad_(False)
    for objective in ("sum", "weighted"):
        loss_N = linear_cross_entropy(**arguments, backend="chunked").loss_N
        expected_N = formula(arguments)[0]
        pairs = zip(
            gradients(OBJECTIVES[objective](loss_N, None, None), arguments),
            gradients(OBJECTIVES[objective](expected_N, None, None), arguments),
            strict=True,
        )
        for gradient, wanted in pairs:
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_second_derivatives_need_the_reference() -> None:
    arguments = problem(5, 4, bias=False, dtype=torch.float64)

    def slope(backend: str) -> Tensor:
        loss = linear_cross_entropy(**arguments, backend=backend).loss_N.sum()
        return (
            torch.autograd.grad(loss, arguments["hidden_NC"], create_graph=True)[0].square().sum()
        )

    torch.autograd.grad(slope("reference"), arguments["weight_VC"])
    with pytest.raises(UnsupportedError, match="--loss-backend reference"):
        slope("chunked")


@pytest.mark.parametrize("weights", ["equal", "different"])
def test_chunks_never_hold_all_logits(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    n, channels, classes = 400, 2, 20_000
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 40 * classes)
    largest = {}
    for backend in BACKENDS:
        torch.manual_seed(0)
        hidden = torch.randn(n, channels, requires_grad=True)
        weight = torch.randn(classes, channels, requires_grad=True)
        with LargestTensor() as seen:
            loss_N = linear_cross_entropy(
                hidden, weight, torch.randint(classes, (n,)), backend=backend
            ).loss_N
            (loss_N.sum() if weights == "equal" else (loss_N * loss_N.detach()).sum()).backward()
        largest[backend] = seen.elements
    assert largest["reference"] >= n * classes
    assert largest["chunked"] <= 40 * classes


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_logits_in_single_precision(backend: str, dtype: torch.dtype) -> None:
    arguments = problem(40, 30, bias=True)
    plain = linear_cross_entropy(**arguments, backend=backend)
    with torch.autocast("cpu", dtype=dtype):
        mixed = linear_cross_entropy(**arguments, backend=backend)
    assert mixed.loss_N.dtype == torch.float32
    torch.testing.assert_close(mixed.loss_N, plain.loss_N)
    # autograd's own products would be rounded if the reference went backward under autocast
    with torch.autocast("cpu", dtype=dtype, enabled=backend == "chunked"):
        ours = gradients((mixed.loss_N**2).sum(), arguments)
    theirs = gradients((plain.loss_N**2).sum(), arguments)
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_gradients_survive_half_precision_if_the_loss_is_scaled(backend: str) -> None:
    # 1/V is far below fp16's smallest number here: unscaled gradients would vanish
    hidden = torch.full((1, 1), 1e-6, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(1000, 1, dtype=torch.float16, requires_grad=True)
    loss_N = linear_cross_entropy(hidden, weight, torch.tensor([0]), backend=backend).loss_N
    (loss_N.sum() * 2.0**15).backward()
    assert weight.grad is not None
    expected = 1e-6 * 2.0**15 / 1000
    assert float(weight.grad[1]) == pytest.approx(expected, rel=5e-2)


def test_a_second_backward_pass_forms_the_gradients_again(small_chunks: None) -> None:
    """The first one gives its unit gradients away, scaled in place."""
    arguments = problem(40, 23, True)
    objective = 0.25 * linear_cross_entropy(**arguments, backend="chunked").loss_N.sum()
    wanted = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
    first = torch.autograd.grad(objective, wanted, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(objective, wanted)
    for before, now, again in zip(kept, first, second, strict=True):
        assert torch.equal(before, now)
        assert torch.allclose(now, again, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [1, 3, 16, 1023, 50265])
def test_softmax_in_place(classes: int) -> None:
    logits_RV = 30 * torch.randn(5, classes, generator=torch.Generator().manual_seed(classes))
    wide_RV = logits_RV.double()
    lse_R = module.softmax_(logits_RV)
    assert torch.allclose(lse_R.double(), wide_RV.logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert torch.allclose(logits_RV.double(), wide_RV.softmax(-1), rtol=3e-5, atol=1e-12)


def test_auto_chooses_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = problem(20, 7, bias=False)
    losses = [linear_cross_entropy(**arguments).loss_N for _ in range(2)]
    assert "Chunked" not in str(losses[0].grad_fn)
    monkeypatch.setattr(module, "SMALL_PROBLEM", 20 * 7 - 1)
    assert "Chunked" in str(linear_cross_entropy(**arguments).loss_N.grad_fn)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chunked'"):
        linear_cross_entropy(**problem(2, 3, bias=False), backend="chunkd")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("scaled", [False, True])
def test_bf16_on_a_gpu_multiplies_in_bf16_and_sums_in_single_precision(scaled: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(1000, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(1000, (300,), device="cuda")
    results = {}
    for backend in BACKENDS:
        loss_N = linear_cross_entropy(hidden, weight, target, backend=backend).loss_N
        objective = (loss_N * (loss_N.detach() if scaled else 1)).sum()
        results[backend] = [loss_N, *torch.autograd.grad(objective, [hidden, weight])]
    for ours, reference in zip(results["chunked"], results["reference"], strict=True):
        largest = float(reference.abs().max())
        torch.testing.assert_close(ours / largest, reference / largest, rtol=0, atol=1e-2)
