"""Layers without padding compute what they compute with it.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_transformer_encoder import LENGTHS, PAD, SEGMENTS, TOKENS, VARIANTS, V, encoder
from torch import Tensor

from fairseq.modules.transformer_encoder import LEAST_PADDING, TransformerEncoder
from fairseq.modules.transformer_layer import QueryKeyValue

# two documents in the first row, one in the others
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7, [0] * 7])
MORE: dict[str, dict[str, Any]] = {
    "documents": {"documents": True},
    "documents with alibi": {"documents": True, "position": "alibi"},
    "documents with positions that start anew": {"documents": True, "position": "sinusoidal"},
    "layers that are left out": {"layerdrop": 0.5, "layers": 8},
    "recomputed layers": {"checkpoint_activations": True, "pre_norm": True},
    "NormFormer": {"scale_attn": True, "scale_fc": True, "scale_heads": True, "pre_norm": True},
    "scaled residual": {"scale_resids": True},
    "parallel": {"parallel_residual": True, "pre_norm": True},
}


def run(model: TransformerEncoder, documents: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return states (rows, then heads, of every layer) and gradients, all of the same draws."""
    tokens_BT = TOKENS.clone()
    if model.shape.zero_masking:
        tokens_BT[0, 3] = tokens_BT[1, 1] = V
    qkv: dict[int, QueryKeyValue] = {}
    torch.manual_seed(2)
    x_BTC, hiddens = model(
        tokens_BT, SEGMENTS, return_all_hiddens=True, qkv_layers=range(len(model.layers)), qkv=qkv,
        documents_BT=DOCUMENTS if documents else None,
    )  # fmt: skip
    kept_BT1 = tokens_BT.ne(PAD)[..., None]
    heads = [part.transpose(1, 2).flatten(-2) for one in qkv.values() for part in one]
    seen = [state * kept_BT1 for state in (x_BTC, *hiddens, *heads)]
    weights = [torch.linspace(-1, 1, state.numel()).view_as(state) for state in seen]
    loss = torch.stack([(s * w).sum() for s, w in zip(seen, weights, strict=True)]).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return [x_BTC, *hiddens, *seen], list(gradients)


@pytest.mark.parametrize("backend", ["auto", "explicit", "reference"])
@pytest.mark.parametrize("variant", {**VARIANTS, **MORE})
def test_states_and_gradients_are_those_of_padded_rows(variant: str, backend: str) -> None:
    settings = {**VARIANTS, **MORE}[variant]
    documents = settings.get("documents", False)
    how = {k: v for k, v in settings.items() if k != "documents"} | {"backend": backend}
    padded, unpadded = (
        run(encoder(**how, unpadded=mode).train(), documents) for mode in ("off", "on")
    )
    for ours, theirs in zip(unpadded[0], padded[0], strict=True):
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(
                ours[row, :length], theirs[row, :length], rtol=1e-6, atol=1e-6
            )
            assert not ours[row, length:].any()  # nothing at pads
    # sums over tokens in another order
    for ours, theirs in zip(unpadded[1], padded[1], strict=True):
        assert (ours - theirs).norm() <= 1e-6 * max(1.0, float(theirs.norm()))


def tokens_seen(model: TransformerEncoder, tokens_BT: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes that the first layer was given."""
    seen: list[tuple[int, ...]] = []
    hook = model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    model(tokens_BT)
    hook.remove()
    return seen


def test_when_padding_is_left_out() -> None:
    rows = (len(TOKENS), TOKENS.shape[1], 8)
    tokens = (sum(LENGTHS), 8)
    wanted = {
        ("off", False): rows, ("off", True): rows,
        ("auto", False): tokens, ("auto", True): rows,
        ("on", False): tokens, ("on", True): tokens,
    }  # fmt: skip
    for (mode, training), shape in wanted.items():
        assert tokens_seen(encoder(unpadded=mode).train(training), TOKENS) == [shape], mode
    whole = torch.full((4, 10), 5)
    little = whole.clone()
    little[0, 10 - int(40 * LEAST_PADDING) + 1 :] = PAD
    for mode in ("auto", "on"):
        assert tokens_seen(encoder(unpadded=mode), whole) == [(4, 10, 8)]
    assert tokens_seen(encoder(unpadded="auto"), little) == [(4, 10, 8)]
    assert len(tokens_seen(encoder(unpadded="on"), little)[0]) == 2


def test_a_batch_of_nothing_but_padding() -> None:
    model = encoder(unpadded="on").train()
    x_BTC, _ = model(torch.full((2, 3), PAD))
    assert x_BTC.shape == (2, 3, 8) and not x_BTC.any()
    x_BTC.sum().backward()
