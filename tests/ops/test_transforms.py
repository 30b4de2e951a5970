"""What PyTorch's own tools do with a module, they do with ours, whatever ``auto`` takes here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from fairseq.modules.pointwise import project
from fairseq.ops import attention_rows
from fairseq.ops import linear as linear_room
from fairseq.ops import linear_cross_entropy as loss_room
from fairseq.ops.attention import attention
from fairseq.ops.attention_context import AttentionContext
from fairseq.ops.dropout import dropout
from fairseq.ops.linear_cross_entropy import linear_cross_entropy

Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def large_problems_on_that_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` take what it takes for large tensors on a processor that likes oneDNN."""
    monkeypatch.setattr(linear_room, "processor_prefers_onednn", lambda: True)
    monkeypatch.setattr(loss_room, "SMALL_PROBLEM", 0)
    monkeypatch.setattr(attention_rows, "AT_ONCE", 1)


def functions() -> dict[str, tuple[Function, Function]]:
    """Return ours and PyTorch's: functions of (128, 16) with one value."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 9)
    target_N = torch.arange(128) % 9

    def loss(x_NC: Tensor) -> Tensor:
        return linear_cross_entropy(x_NC, layer.weight, target_N, bias_V=layer.bias).loss_N.sum()

    def attended(x_NC: Tensor) -> Tensor:
        x_BHTD = x_NC.view(2, 2, 32, 16)
        # all weights but none dropped: rows are taken, and their values are those of the formula
        return attention(x_BHTD, x_BHTD, x_BHTD, AttentionContext(), dropout=1e-9).pow(2).sum()

    def attended_by_pytorch(x_NC: Tensor) -> Tensor:
        x_BHTD = x_NC.view(2, 2, 32, 16)
        weights_BHTS = torch.softmax(x_BHTD @ x_BHTD.mT / 4, -1)
        return (weights_BHTS @ x_BHTD).pow(2).sum()

    return {
        "linear": (
            lambda x: project(layer, x).pow(2).sum(),
            lambda x: F.linear(x, layer.weight, layer.bias).pow(2).sum(),
        ),
        "loss": (
            loss,
            lambda x: F.cross_entropy(
                F.linear(x, layer.weight, layer.bias), target_N, reduction="sum"
            ),
        ),
        "attention": (attended, attended_by_pytorch),
    }


def dual(function: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.flip(0)))).tangent
        assert tangent is not None
        return tangent


TOOLS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "gradient": lambda f, x: torch.func.grad(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.flip(0),))[1],
    "Hessian-vector product": lambda f, x: torch.func.jvp(torch.func.grad(f), (x,), (x.flip(0),))[
        1
    ],
    "gradients of samples": lambda f, x: torch.func.vmap(
        torch.func.grad(f), randomness="different"
    )(torch.stack([x, 2 * x, x.flip(0)])),
    "forward derivative": dual,
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", ["linear", "loss", "attention"])
def test_tools_of_pytorch(name: str, tool: str) -> None:
    ours, theirs = functions()[name]
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(TOOLS[tool](ours, x), TOOLS[tool](theirs, x), rtol=1e-4, atol=1e-4)


def test_dropout_of_samples() -> None:
    x = torch.ones(4, 1000)
    gradients = torch.func.vmap(
        torch.func.grad(lambda row: dropout(row, 0.5).sum()), randomness="different"
    )(x)
    assert set(gradients.unique().tolist()) == {0.0, 2.0}


def test_all_operations_are_counted() -> None:
    layer, x = nn.Linear(16, 9), torch.randn(128, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        project(layer, x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 128 * 16 * 9


def test_a_trace_is_for_any_number_of_rows() -> None:
    class Projecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 9)

        def forward(self, x: Tensor) -> Tensor:
            return project(self.layer, x)

    model = Projecting()
    traced, layer = torch.jit.trace(model, torch.randn(128, 16)), model.layer
    x = torch.randn(200, 16)
    torch.testing.assert_close(traced(x), F.linear(x, layer.weight, layer.bias))
