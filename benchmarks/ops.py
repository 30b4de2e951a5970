"""The hot operations on a CPU, by every backend and by what one would write without them.

Usage: python benchmarks/ops.py [--quick]

One thread. The contestants of a row take turns; figures are medians with quartiles. Products are
those of a step: N rows by a weight of K inputs and M outputs, forward and for the gradient of the
input. Attention is B rows of H heads, T tokens and D channels, forward and backward, "rows" and
"explicit" with weights dropped. Losses are of N tokens of 256 channels, forward and backward; their
floor is the three products. "PyTorch" is F.linear and F.cross_entropy; "the paper's form" of the
contrastive loss is cross-entropy over the products of all N with the embeddings of all N targets.
An update scales the gradients of a table and four layers, clips their norm and takes a step of
AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from heads import words_by_zipf
from timing import main, times

from benchmarks.rounds import spread
from fairseq.config.components import make_config
from fairseq.ops.attention import attention
from fairseq.ops.contrastive_weight_tying import contrastive_weight_tying
from fairseq.ops.linear import linear
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.optim import build_optimizer
from fairseq.training.allocator import keep_freed_memory

PRODUCTS = (
    (4096, 256, 256), (4096, 256, 1024), (4096, 1024, 256), (4096, 768, 3072), (1024, 128, 128),
    (614, 256, 8001), (614, 256, 8064), (614, 256, 50265),
)  # fmt: skip
ATTENTION = ((32, 4, 128, 64), (16, 4, 64, 32), (16, 8, 64, 64), (4, 12, 512, 64))
LOSSES = ((614, 8001), (614, 50265), (4096, 8001), (4096, 50265))
WIDTH = 256
Runs = dict[str, Callable[[], Any]]


def spreads(runs: Runs, rounds: int) -> dict[str, Any]:
    """Return milliseconds of each, which take turns."""
    taken = times(list(runs.values()), rounds, "cpu")
    return {name: spread(ms, 2) for name, ms in zip(runs, taken, strict=True)}


def product_row(rows: int, inputs: int, outputs: int, rounds: int) -> dict[str, Any]:
    """Return the rates of both libraries in GFLOP/s."""
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    upstream = torch.randn(rows, outputs)
    onednn = torch.ops.mkldnn._linear_pointwise
    runs: Runs = {
        "x W^T, torch": lambda: linear(x, weight, backend="torch"),
        "x W^T, onednn": lambda: linear(x, weight, backend="onednn"),
        "dy W, torch": lambda: torch.mm(upstream, weight),
        "dy W, onednn": lambda: onednn(upstream, weight.t(), None, "none", [], ""),
    }
    with torch.no_grad():
        taken = times(list(runs.values()), rounds, "cpu")
    gflop = 2 * rows * inputs * outputs / 1e6  # for milliseconds
    return {
        name: spread([gflop / ms for ms in each], 1) for name, each in zip(runs, taken, strict=True)
    }


def attention_row(batch: int, heads: int, tokens: int, width: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of the backends that ``auto`` chooses from on a CPU."""
    inputs = [torch.randn(batch, tokens, heads * width, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(batch, tokens, heads * width)

    def run(backend: str, dropout: float) -> None:
        apart = (x.view(batch, tokens, heads, width).transpose(1, 2) for x in inputs)
        joined = attention(*apart, dropout=dropout, backend=backend).transpose(1, 2)
        torch.autograd.grad(joined.reshape(batch, tokens, -1), inputs, upstream)

    return spreads(
        {
            "explicit, dropout": lambda: run("explicit", 0.1),
            "rows, dropout": lambda: run("rows", 0.1),
            "rows": lambda: run("rows", 0.0),
            "sdpa": lambda: run("sdpa", 0.0),
        },
        rounds,
    )


def loss_operands(rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states, a table and targets whose words are drawn by Zipf's law."""
    torch.manual_seed(0)
    hidden_NC = torch.randn(rows, WIDTH, requires_grad=True)
    table_VC = torch.randn(vocabulary, WIDTH).mul_(WIDTH**-0.5).requires_grad_()
    return hidden_NC, table_VC, words_by_zipf(rows, vocabulary, 0)


def loss_row(rows: int, vocabulary: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of cross-entropy over a vocabulary."""
    hidden_NC, table_VC, target_N = loss_operands(rows, vocabulary)
    logits_NV, grads = torch.empty(rows, vocabulary), (hidden_NC, table_VC)
    dhidden_NC, dtable_VC = torch.empty(rows, WIDTH), torch.empty(vocabulary, WIDTH)

    def floor() -> None:
        with torch.no_grad():
            torch.mm(hidden_NC, table_VC.t(), out=logits_NV)
            torch.mm(logits_NV, table_VC, out=dhidden_NC)
            torch.mm(logits_NV.t(), hidden_NC, out=dtable_VC)

    def ours(backend: str) -> None:
        loss_N = linear_cross_entropy(hidden_NC, table_VC, target_N, backend=backend).loss_N
        torch.autograd.grad(loss_N.sum(), grads)

    def theirs() -> None:
        loss = F.cross_entropy(F.linear(hidden_NC, table_VC), target_N, reduction="sum")
        torch.autograd.grad(loss, grads)

    return spreads(
        {
            "floor": floor,
            "chunked": lambda: ours("chunked"),
            "reference": lambda: ours("reference"),
            "PyTorch": theirs,
        },
        rounds,
    )


def contrast_row(rows: int, vocabulary: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of contrastive weight tying."""
    hidden_NC, table_VC, target_N = loss_operands(rows, vocabulary)
    grads, place_N = (hidden_NC, table_VC), torch.arange(rows)

    def ours() -> None:
        loss_N = contrastive_weight_tying(hidden_NC, table_VC, target_N).loss_N
        torch.autograd.grad(loss_N.sum(), grads)

    def theirs() -> None:
        similar_NN = F.linear(hidden_NC, F.embedding(target_N, table_VC))
        torch.autograd.grad(F.cross_entropy(similar_NN, place_N, reduction="sum"), grads)

    return spreads({"distinct": ours, "the paper's form": theirs}, rounds)


def update_row(vocabulary: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of what follows the backward pass."""
    inner, shapes = 4 * WIDTH, [(vocabulary, WIDTH)]
    shapes += 4 * [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (inner, WIDTH), (WIDTH, inner)]

    def parameters() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter)
        return made

    config = make_config({"data": "none", "optimizer": "adam", "lr": [1e-4], "task": "masked_lm"})
    optimizer = build_optimizer(config.optimizer, parameters())

    def ours() -> None:
        optimizer.multiply_grads(0.999)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()

    def theirs(**how: bool) -> Callable[[], None]:
        weights = parameters()
        adam = torch.optim.AdamW(weights, lr=1e-4, **how)

        def update() -> None:
            torch._foreach_mul_(
                [weight.grad for weight in weights if weight.grad is not None], 0.999
            )
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()

        return update

    return spreads(
        {
            "--optimizer adam": ours,
            "AdamW, fused": theirs(fused=True),
            "AdamW, foreach": theirs(foreach=True),
            "AdamW, one by one": theirs(foreach=False),
        },
        rounds,
    )


def measure(number: int, rounds: int, device: str) -> dict[str, Any]:
    """Return the figures of the first ``number`` shapes of each kind."""
    keep_freed_memory()
    return {
        "products, GFLOP/s": {
            f"N={n}, K={k}, M={m}": product_row(n, k, m, rounds) for n, k, m in PRODUCTS[:number]
        },
        "attention, ms": {
            f"B={b}, H={h}, T={t}, D={d}": attention_row(b, h, t, d, rounds)
            for b, h, t, d in ATTENTION[:number]
        },
        "cross-entropy, ms": {f"N={n}, V={v}": loss_row(n, v, rounds) for n, v in LOSSES[:number]},
        "contrastive, ms": {
            f"N={n}, V={v}": contrast_row(n, v, rounds) for n, v in LOSSES[1::2][:number]
        },
        "update, ms": {f"V={v}": update_row(v, rounds) for v in (8001, 50265)[:number]},
    }


if __name__ == "__main__":
    main("ops", __doc__, measure, (len(PRODUCTS), 15), (2, 1))
