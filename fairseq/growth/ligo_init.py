"""Where a LiGO operator starts.

Source: Wang et al. 2023 (LiGO), published code, with two repairs: interlacing works at any ratio,
and rows of noisy choices sum to one. ``zero``, ``average`` and ``copy`` are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.growth.layers import interpolate_map, stack_map
from fairseq.growth.ligo import apply_operator, axis_sizes, matrix_name
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Parts, role_name, roles_of

DEPTH = ("stack", "interlace", "rand", "sel")
WIDTH = ("rand", "rand_softmax", "sel", "sel_noisy", "zero", "average", "copy")


def depth_weights(kind: str, uniform: Tensor, noise: float) -> Tensor:
    """Return the first mixing weights; every row sums to one.

    Args:
        kind: ``stack`` or ``interlace`` (one at the layer that is copied), ``rand`` (U(0,1) divided
            by its sum), ``rand_softmax``, ``sel`` (one at a drawn layer); with ``_noisy``,
            U(0, noise) everywhere else, divided by the sum.
        uniform: draws of U(0,1), shape (L2, L1).
        noise: how large.
    """
    base, _, noisy = kind.partition("_")
    large, small = uniform.shape
    if kind == "rand_softmax":
        return uniform.softmax(-1)
    if base == "rand":
        return uniform / uniform.sum(-1, keepdim=True)
    if base in ("stack", "interlace"):
        chosen = torch.tensor((stack_map if base == "stack" else interpolate_map)(small, large))
    elif base == "sel":
        chosen = uniform.argmax(-1)
    else:
        raise ConfigError(
            f"unknown depth initialisation {kind}: {', '.join(DEPTH)}, or with _noisy"
        )
    rows = uniform * noise if noisy else torch.zeros_like(uniform)
    rows[torch.arange(large), chosen] = 1.0
    return rows / rows.sum(-1, keepdim=True)


def width_rows(kind: str, uniform: Tensor, noise: float) -> Tensor:
    """Return the first new rows C of ``B = [I; C]``.

    Args:
        kind: ``rand``, ``rand_softmax``, ``sel`` and ``sel_noisy`` as for depth, ``zero``,
            ``average`` (1 / n1 everywhere) or ``copy`` (row i is channel i mod n1).
        uniform: draws of U(0,1), shape (n2 - n1, n1).
        noise: how large, for ``sel_noisy``.
    """
    if kind == "zero":
        return torch.zeros_like(uniform)
    if kind == "average":
        return torch.full_like(uniform, 1 / uniform.shape[1])
    if kind == "copy":
        return torch.eye(uniform.shape[1], dtype=uniform.dtype)[
            torch.arange(len(uniform)) % uniform.shape[1]
        ]
    if kind not in WIDTH:
        raise ConfigError(f"unknown width initialisation {kind}: {', '.join(WIDTH)}")
    return depth_weights(kind, uniform, noise)


def matrices(parts: Parts, pair: Pair, share: str) -> Iterator[tuple[str, int, int]]:
    """Yield the name, n2 - n1 and n1 of every matrix that an operator for this pair has."""
    seen = set()
    named: list[tuple[str, Tensor, int | None]] = [
        (name, x, None) for name, x in parts.shared.items()
    ]
    named += [
        (name, x, layer)
        for layer in range(pair.large.layers)
        for name, x in parts.layers[0].items()
    ]
    for name, x, layer in named:
        module, _, kind = role_name(name).rpartition(".")
        for role in roles_of(name, x, pair.small.width != pair.large.width, parts.shared):
            # heads are repeated, not mixed; see ligo_maps
            if role is None or role == "+heads":
                continue
            small, large = axis_sizes(pair, role[1:])
            wanted = matrix_name(pair, share, role[1:], layer, module or kind, role[0] == "-")
            # a table narrower than the stream keeps its width: a projection lies between
            projected = role == "+emb" and module == "embed_tokens" and x.shape[1] != small
            if small != large and wanted not in seen and not projected:
                seen.add(wanted)
                yield wanted, large - small, small


def new_operator(
    parts: Parts,
    pair: Pair,
    generator: torch.Generator | None,
    depth: str = "stack_noisy",
    width: str = "rand",
    noise: tuple[float, float] = (0.03, 0.03),
    share: str = "layer",
) -> dict[str, Tensor]:
    """Return an operator that nothing trained, fp32.

    Args:
        parts: the source's tensors; shapes alone count.
        pair: the configurations.
        generator: of all draws; None for that of torch.
        depth: see :func:`depth_weights`.
        width: see :func:`width_rows`.
        noise: of depth and of width.
        share: see :func:`fairseq.growth.ligo.matrix_name`.
    """
    small, large = pair.small.layers, pair.large.layers

    def drawn(rows: int, columns: int) -> Tensor:
        return torch.rand(rows, columns, generator=generator)

    operator = {
        f"depth.{name}": depth_weights(depth, drawn(large, small), noise[0])
        for name in parts.layers[0]
    }
    for name, rows, columns in matrices(parts, pair, share):
        operator[name] = width_rows(width, drawn(rows, columns), noise[1])
    return operator


def _reason(pair: Pair, options: Options) -> str | None:
    return "nothing trained the operator"


@method(_reason, uses=())
def random(parts: Parts, pair: Pair, options: Options) -> Parts:
    """A LiGO operator that nothing trained: the control for a learned one."""
    operator = new_operator(parts, pair, options.generator("random"), "rand", "rand")
    return apply_operator(parts, operator, pair)
