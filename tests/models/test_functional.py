"""Whole models under ``torch.func``: gradients of samples, derivatives along a direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny_lm import tiny_lm
from tiny_roberta import tiny
from torch import Tensor, nn

MODELS: dict[str, Callable[[], nn.Module]] = {
    "roberta": tiny,
    "roberta, CLAP and ALiBi": lambda: tiny(position="alibi", head="clap"),
    "roberta, unpadded": lambda: tiny(unpadded="on"),
    "causal": tiny_lm,
    "causal, rotary": lambda: tiny_lm(position="rotary"),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_samples_and_derivatives_along_a_direction(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    weights = {key: weight.detach() for key, weight in model.named_parameters()}
    tokens_BT = torch.randint(4, 10, (3, 8))
    tokens_BT[1, 5:] = 1  # pads

    def value(weights: dict[str, Tensor], tokens_T: Tensor) -> Tensor:
        logits_BTV = torch.func.functional_call(model, weights, (tokens_T[None],))[0]
        return (logits_BTV[0] * tokens_T.ne(1)[:, None]).pow(2).mean()

    of_samples = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(weights, tokens_BT)
    direction = {key: torch.randn_like(weight) for key, weight in weights.items()}
    for number, tokens_T in enumerate(tokens_BT):
        leaves = {key: weight.clone().requires_grad_() for key, weight in weights.items()}
        value(leaves, tokens_T).backward()
        along = 0.0
        for key, leaf in leaves.items():
            wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(of_samples[key][number], wanted, rtol=1e-4, atol=1e-6)
            along += float((wanted * direction[key]).sum())
        _, tangent = torch.func.jvp(partial(value, tokens_T=tokens_T), (weights,), (direction,))
        assert float(tangent) == pytest.approx(along, rel=1e-3, abs=1e-5)
