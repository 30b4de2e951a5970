"""Growth in width by copies of channels, as Net2Net and bert2BERT do it.

Heads grow as wholes; queries, keys and values share a map. The stream has one map for the whole
model, the inside of attention and FFN one per layer.

Source: Chen et al. 2016 (Net2Net), section 2; Chen et al. 2022 (bert2BERT), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.growth.maps import Select
from fairseq.growth.methods import Options
from fairseq.growth.scales import settle_scales
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import AxisMap, Maps, Parts, widen

# RoBERTa's head ("cls") takes the map of the stream: a tied table, whose columns grow with the
# stream, reads its output.
MARKS = {"emb": "g_emb", "cls": "g_emb", "ffn": "g_ffn", "heads": "g_head"}


def drawn_map(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Return ``0 .. n1 - 1``, then channels drawn uniformly; int64 of shape (n2,)."""
    extra = torch.randint(small, (large - small,), generator=generator)
    return torch.cat([torch.arange(small), extra])


def tiled_map(small: int, large: int) -> Tensor:
    """Return ``i mod n1``, int64 of shape (n2,)."""
    return torch.arange(large) % small


def per_channel(heads_H: Tensor, head_dim: int) -> Tensor:
    """Return the map of channels that a map of heads means."""
    return (heads_H[:, None] * head_dim + torch.arange(head_dim)).flatten()


def copies(pair: Pair, options: Options, tiled: bool = False) -> Maps:
    """Return how every axis grows by copies.

    Args:
        pair: the configurations.
        options: ``maps`` gives the maps; otherwise they are drawn, or
        tiled: the small axis is repeated.
    """
    small, large = pair.small, pair.large
    counts = {
        "emb": (small.width, large.width),
        "cls": (small.width, large.width),
        "ffn": (small.ffn, large.ffn),
        "heads": (small.heads, large.heads),
    }
    fixed = options.maps or {}
    made: dict[tuple[str, int | None], AxisMap | None] = {}

    def index(axis: str, layer: int | None) -> Tensor:
        mark = MARKS[axis] if layer is None else f"{MARKS[axis]}.{layer}"
        if mark in fixed:
            return fixed[mark].long()
        low, high = counts[axis]
        if tiled:
            return tiled_map(low, high)
        return drawn_map(low, high, options.generator(MARKS[axis], layer))

    def build(axis: str, layer: int | None) -> AxisMap | None:
        low, high = counts.get(axis, (small.width, large.width))
        if low == high:
            return None
        if axis in counts:
            chosen = index(axis, layer)
        elif f"g_qkv.{layer}" in fixed:
            chosen = fixed[f"g_qkv.{layer}"].long()
        else:
            # drawn anew for q, k and v, but from one generator: scores multiply channels of q and
            # k, so all three must be copied alike
            chosen = per_channel(index("heads", layer), small.head_dim)
        if chosen.shape != (high,) or int(chosen.min()) < 0 or int(chosen.max()) >= low:
            raise ConfigError(f"the map of axis {axis} does not lead from {low} to {high} channels")
        noise = options.noise or 0.0
        return Select(chosen, low, None, noise, options.generator(f"noise {axis}", layer))

    def maps(axis: str, layer: int | None, module: str, reads: bool) -> AxisMap | None:
        # residual connections add up what all layers write, so the stream has one map for the model
        key = (axis, None if axis in ("emb", "cls") else layer)
        if key not in made:
            made[key] = build(*key)
        return made[key]

    return maps


def widen_by_copies(parts: Parts, pair: Pair, options: Options, tiled: bool = False) -> Parts:
    """Return the tensors of the source, its depth unchanged, in the width of the target."""
    maps = copies(pair, options, tiled)
    return settle_scales(parts, widen(parts, maps), pair, maps)


def copies_reason(pair: Pair, options: Options) -> str | None:
    """Return why copies of drawn channels change what the model computes."""
    small, large = pair.small, pair.large
    if small.width != large.width:
        return "layer norms see drawn channels more often than others (enlarge repeats all alike)"
    if small.ffn != large.ffn and pair.source.get("scale_fc"):
        return "the layer norm inside the feed-forward network sees drawn channels more often"
    return None
