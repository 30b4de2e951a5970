"""Products with a weight and attention on a CPU, by every backend there is: time and rate.

Usage: python benchmarks/products.py [--quick]

One thread. The backends take turns; figures are medians. Products are those of a step: N rows by a
weight of K inputs and M outputs, forward and for the gradient of the input. Attention is B rows of
H heads, T tokens and D channels, forward and backward, "rows" and "explicit" with weights dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import main, milliseconds

from fairseq.ops.attention import attention
from fairseq.ops.linear import linear
from fairseq.training.allocator import keep_freed_memory

PRODUCTS = (
    (4096, 256, 256), (4096, 256, 1024), (4096, 1024, 256), (4096, 768, 3072), (1024, 128, 128),
    (614, 256, 8001), (614, 256, 8064), (614, 256, 50265),
)  # fmt: skip
ATTENTION = ((32, 4, 128, 64), (16, 4, 64, 32), (16, 8, 64, 64), (4, 12, 512, 64))


def product_row(rows: int, inputs: int, outputs: int, rounds: int) -> dict[str, float]:
    """Return the rates of both libraries in GFLOP/s."""
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    upstream = torch.randn(rows, outputs)
    onednn = torch.ops.mkldnn._linear_pointwise
    runs: dict[str, Callable[[], Any]] = {
        "x W^T, torch": lambda: linear(x, weight, backend="torch"),
        "x W^T, onednn": lambda: linear(x, weight, backend="onednn"),
        "dy W, torch": lambda: torch.mm(upstream, weight),
        "dy W, onednn": lambda: onednn(upstream, weight.t(), None, "none", [], ""),
    }
    with torch.no_grad():
        taken = milliseconds(list(runs.values()), rounds, "cpu")
    flops = 2 * rows * inputs * outputs
    return {name: round(flops / ms / 1e6, 1) for name, ms in zip(runs, taken, strict=True)}


def attention_row(batch: int, heads: int, tokens: int, width: int, rounds: int) -> dict[str, float]:
    """Return milliseconds of the backends that ``auto`` chooses from on a CPU."""
    inputs = [torch.randn(batch, tokens, heads * width, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(batch, tokens, heads * width)

    def run(backend: str, dropout: float) -> None:
        apart = (x.view(batch, tokens, heads, width).transpose(1, 2) for x in inputs)
        joined = attention(*apart, dropout=dropout, backend=backend).transpose(1, 2)
        torch.autograd.grad(joined.reshape(batch, tokens, -1), inputs, upstream)

    runs: dict[str, Callable[[], None]] = {
        "explicit, dropout": lambda: run("explicit", 0.1),
        "rows, dropout": lambda: run("rows", 0.1),
        "rows": lambda: run("rows", 0.0),
        "sdpa": lambda: run("sdpa", 0.0),
    }
    taken = milliseconds(list(runs.values()), rounds, "cpu")
    return {name: round(ms, 2) for name, ms in zip(runs, taken, strict=True)}


def measure(products: int, attentions: int, rounds: int, device: str) -> dict[str, Any]:
    """Return the figures of the first shapes of both kinds."""
    keep_freed_memory()
    return {
        "products, GFLOP/s": {
            f"N={n}, K={k}, M={m}": product_row(n, k, m, rounds) for n, k, m in PRODUCTS[:products]
        },
        "attention, ms": {
            f"B={b}, H={h}, T={t}, D={d}": attention_row(b, h, t, d, rounds)
            for b, h, t, d in ATTENTION[:attentions]
        },
    }


if __name__ == "__main__":
    main("products", __doc__, measure, (len(PRODUCTS), len(ATTENTION), 15), (1, 1, 1))
