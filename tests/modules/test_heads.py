"""Vocabulary and classification heads, against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairseq.errors import ConfigError
from fairseq.modules.heads import ClapHead, ClassificationHead, RobertaLMHead, VocabularyHead
from fairseq.modules.pointwise import ACTIVATIONS, LayerNorm, get_activation_fn

B, T, C, V = 2, 5, 6, 11


@pytest.fixture
def hidden_BTC() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(B, T, C)


@pytest.fixture
def table() -> nn.Parameter:
    torch.manual_seed(1)
    return nn.Parameter(torch.randn(V, C))


def layer_norm(x: torch.Tensor, module: nn.Module, eps: float) -> torch.Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * module.weight + module.bias


def shake(module: nn.Module) -> None:
    """Give every parameter a random value, so that none hides by being 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_roberta_head(hidden_BTC: torch.Tensor, table: nn.Parameter, eps: float) -> None:
    head = RobertaLMHead(C, V, "gelu", table, eps)
    shake(head)
    assert head.weight is table
    x = hidden_BTC @ head.dense.weight.T + head.dense.bias
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    x = layer_norm(x, head.layer_norm, eps)
    torch.testing.assert_close(head(hidden_BTC), x @ table.T + head.bias, rtol=1e-4, atol=1e-4)


def test_an_untied_roberta_head_has_weights_of_its_own() -> None:
    head = RobertaLMHead(C, V, "gelu")
    assert head.weight.shape == (V, C) and head.weight.requires_grad
    assert not head.bias.any()
    assert list(head.state_dict()) == [
        "weight", "bias", "dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("normalize_hidden", [False, True])
def test_clap_head(
    hidden_BTC: torch.Tensor, table: nn.Parameter, normalize: bool, normalize_hidden: bool
) -> None:
    head = ClapHead(table, 3.5, normalize, normalize_hidden)
    assert list(head.state_dict()) == ["beta", "weight"] and head.beta.shape == ()
    logits_BTV = head(hidden_BTC)
    for b, t, v in torch.cartesian_prod(*map(torch.arange, (B, T, V))).tolist():
        h, e = hidden_BTC[b, t], table[v]
        wanted = (
            3.5 * h @ e / (e.norm() if normalize else 1) / (h.norm() if normalize_hidden else 1)
        )
        torch.testing.assert_close(logits_BTV[b, t, v], wanted, rtol=1e-4, atol=1e-5)


def test_clap_gradients_have_no_radial_part(hidden_BTC: torch.Tensor, table: nn.Parameter) -> None:
    head = ClapHead(table, 2.0)
    F.cross_entropy(head(hidden_BTC).flatten(0, 1), torch.arange(B * T) % V).backward()
    assert table.grad is not None and head.beta.grad is not None and head.beta.grad.abs() > 0
    radial = (table.grad * table).sum(-1)
    torch.testing.assert_close(radial, torch.zeros(V), rtol=0, atol=1e-6)
    assert (table.grad.norm(dim=-1) > 1e-4).all()


def heads(table: nn.Parameter) -> list[VocabularyHead]:
    return [RobertaLMHead(C, V, "gelu", table), ClapHead(table)]


def test_masked_positions_come_in_row_major_order(
    hidden_BTC: torch.Tensor, table: nn.Parameter
) -> None:
    mask_BT = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)
    for head in heads(table):
        everything = head(hidden_BTC)
        rows = [everything[0, 1], everything[0, 4], everything[1, 0], everything[1, 3]]
        torch.testing.assert_close(head(hidden_BTC, mask_BT), torch.stack(rows))
        hidden_NC = hidden_BTC[mask_BT]
        torch.testing.assert_close(head.projection(hidden_NC).logits(), torch.stack(rows))


def test_classification_head(hidden_BTC: torch.Tensor) -> None:
    head = ClassificationHead(C, 7, 3, "tanh", dropout=0.5).eval()
    inner = torch.tanh(hidden_BTC[:, 0] @ head.dense.weight.T + head.dense.bias)
    wanted = inner @ head.out_proj.weight.T + head.out_proj.bias
    torch.testing.assert_close(head(hidden_BTC), wanted)
    other = hidden_BTC.clone()
    other[:, 1:] = 0  # only the first token counts
    assert head(other).equal(head(hidden_BTC))
    assert not head.train()(hidden_BTC).equal(wanted)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    formulas = {
        "relu": x.clamp(min=0),
        "gelu": 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        "gelu_fast": 0.5 * x * (1 + torch.tanh(inner)),
        "gelu_accurate": 0.5 * x * (1 + torch.tanh(inner)),
        "tanh": (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        "linear": x,
        "swish": x / (1 + (-x).exp()),
    }
    torch.testing.assert_close(get_activation_fn(name)(x), formulas[name])
    half = get_activation_fn(name)(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), formulas[name], rtol=2e-3, atol=2e-3)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown activation 'gelo'.*did you mean 'gelu'"):
        get_activation_fn("gelo")


def test_apex_layer_norm_is_refused_where_it_is_not_installed() -> None:
    try:
        import apex.normalization  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="--layer-norm torch"):
            LayerNorm(4, implementation="apex")
    assert LayerNorm(4, 1e-3).eps == 1e-3
