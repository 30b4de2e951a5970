"""Layers are PyTorch's own: what others do to them, our products respect."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairseq.modules import pointwise
from fairseq.modules.pointwise import project
from tests.models.tiny_roberta import TOKENS, tiny


def double(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return 2 * output


def test_replaced_patched_and_watched_layers_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(70, 5)
    layer = nn.Linear(5, 3)
    expected = x @ layer.weight.t() + layer.bias
    torch.testing.assert_close(project(layer, x), expected)
    handle = layer.register_forward_hook(double)
    torch.testing.assert_close(project(layer, x), 2 * expected)
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(double)
    torch.testing.assert_close(project(layer, x), 2 * expected)
    handle.remove()
    seen: list[object] = []
    handle = layer.register_full_backward_hook(lambda *told: seen.append(told))
    project(layer, x).sum().backward()
    handle.remove()
    assert len(seen) == 1
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(2)
    torch.testing.assert_close(project(layer, x), 2 * expected - layer.bias)
    patched = nn.Linear(5, 3)
    monkeypatch.setattr(patched, "forward", lambda x: x[:, :3])
    assert torch.equal(project(patched, x), x[:, :3])


def test_a_plain_layer_is_multiplied_by_our_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "multiply", lambda x, weight, bias: x + 1)
    assert torch.equal(project(nn.Linear(2, 2), torch.zeros(3, 2)), torch.ones(3, 2))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization")
def test_quantization_finds_every_layer() -> None:
    model = tiny().eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    kinds = [type(module) for module in quantized.modules()]
    assert nn.Linear not in kinds
    before, after = model(TOKENS)[0], quantized(TOKENS)[0]
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, atol=0.2, rtol=0.2)
