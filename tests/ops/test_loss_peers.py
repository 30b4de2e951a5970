"""Optional loss backends: what is missing is named; what is there agrees with the reference."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.ops import linear_cross_entropy as module
from fairseq.ops.linear_cross_entropy import chunk_rows, linear_cross_entropy
from fairseq.ops.loss_peers import OPTIONAL

IGNORED = 1
PACKAGES = {"triton": "triton", "cce": "cut_cross_entropy", "liger": "liger_kernel"}


def operands(bias: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    given = {
        "hidden_NC": torch.randn(9, 5, requires_grad=True),
        "weight_VC": torch.randn(12, 5, requires_grad=True),
        "target_N": torch.randint(12, (9,)),
        "bias_V": torch.randn(12, requires_grad=True) if bias else None,
        "ignore_index": IGNORED,
    }
    given["target_N"][3] = IGNORED
    return given


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules in place of the packages, with the signatures that those document."""

    def cce(e: Tensor, c: Tensor, targets: Tensor, bias: Any, reduction: str, impl: str) -> Tensor:
        assert impl == "cce_kahan_full_c"
        return F.cross_entropy(F.linear(e, c, bias), targets, reduction=reduction)

    class LigerFusedLinearCrossEntropyLoss:
        def __init__(self, reduction: str, accum_dtype: torch.dtype) -> None:
            assert accum_dtype == torch.float32
            self.reduction = reduction

        def __call__(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Any) -> Tensor:
            logits = F.linear(_input, lin_weight, bias)
            return F.cross_entropy(logits, target, reduction=self.reduction)

    def put(path: str, name: str, value: Any) -> None:
        stand_in = ModuleType(path)
        setattr(stand_in, name, value)
        monkeypatch.setitem(sys.modules, path, stand_in)

    put("cut_cross_entropy", "linear_cross_entropy", cce)
    for path in ("liger_kernel", "liger_kernel.transformers"):
        put(path, "__path__", [])
    liger = LigerFusedLinearCrossEntropyLoss
    put("liger_kernel.transformers.fused_linear_cross_entropy", liger.__name__, liger)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", ["torch", "cce", "liger"])
def test_everything_follows_from_the_losses_of_others(backend: str, bias: bool) -> None:
    if backend == "torch" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("needs torch 2.13")
    given = operands(bias)
    inputs = [v for v in given.values() if isinstance(v, Tensor) and v.requires_grad]
    results = []
    for name in (backend, "reference"):
        out = linear_cross_entropy(**given, backend=name, want_sum_logits=True)
        assert out.sum_logits_N is not None and out.loss_N[3] == 0
        objective = (out.loss_N * torch.arange(9.0) + out.lse_N.square() + out.sum_logits_N).sum()
        results.append([*out[:2], out.sum_logits_N, *torch.autograd.grad(objective, inputs)])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="likeliest class"):
        linear_cross_entropy(**given, backend=backend, want_argmax=True)


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_missing_package_is_named(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[backend], None)
    with pytest.raises(ConfigError, match=f"'{backend}'.*pip install"):
        linear_cross_entropy(**operands(), backend=backend)


def test_an_older_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(ConfigError, match="2.13 or newer"):
        linear_cross_entropy(**operands(), backend="torch")


def test_our_kernel_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs the extra 'triton'")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        linear_cross_entropy(**operands(), backend="triton")


def test_chunks_by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert chunk_rows(cpu, 50265) == (1 << 24) // 50265
    assert [chunk_rows(gpu, v) for v in (8_000, 50_265, 250_000)] == [4096, 2670, 2048]


@pytest.mark.parametrize(
    "dtype, served, choice",
    [(torch.bfloat16, True, "triton"), (torch.bfloat16, False, "chunked")]
    + [(torch.float32, True, "chunked"), (torch.float64, True, "chunked")],
)
def test_auto_by_device_and_type(
    dtype: torch.dtype, served: bool, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "triton_serves", lambda device: served)
    with torch.device("meta"):  # tensors of a GPU that is not there
        hidden, weight = torch.empty(4096, 8, dtype=dtype), torch.empty(50_000, 8, dtype=dtype)
    monkeypatch.setattr(module, "factor_type", lambda hidden, backend: hidden.dtype)
    assert module._choice(hidden, weight) == choice
    assert module._choice(hidden[:8], weight) == "reference"


def test_backends_are_listed_once() -> None:
    from typing import get_args

    from fairseq.criterions.base import LossBackend

    assert get_args(LossBackend) == get_args(module.Backend)
    assert get_args(LossBackend) == ("auto", *module.BACKENDS, *OPTIONAL)
