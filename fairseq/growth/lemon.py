"""LEMON: lossless growth to any width, with copies that differ from the start.

Multiples of the width repeat channels, and readers give the copies unequal shares. Any other width
needs pre-norm layers: new channels of the stream carry the mean of the old ones (see
:class:`fairseq.growth.maps.Average`).

Source: Wang et al. 2024 (LEMON), sections 4 and 5; the shares and conditions are derived anew.
"""

from __future__ import annotations

import torch

from fairseq.growth.copies import copies
from fairseq.growth.enlarge import position_reason, tile_reason
from fairseq.growth.layers import deepen, deepen_reason
from fairseq.growth.maps import Average, FirstCopies, Select
from fairseq.growth.methods import Options, method
from fairseq.growth.scales import settle_scales
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import AxisMap, Maps, Parts, widen


def averages(pair: Pair) -> bool:
    """Tell whether new channels of the stream carry means."""
    return pair.large.width % pair.small.width != 0


def _average_reason(pair: Pair) -> str | None:
    source, small, large = pair.source, pair.small, pair.large
    if not pair.final_norm:
        return f"width {large.width} is no multiple of {small.width}, which needs pre-norm layers"
    if source["layernorm_embedding"]:
        return "the layer norm on the embeddings would have to know the mean of its output"
    if any(source.get(name) for name in ("scale_attn", "scale_heads", "scale_resids", "scale_fc")):
        return "NormFormer's scales inside a layer do not commute with the mean over channels"
    if pair.unit_rows:
        return "CLAP's embeddings of length one become shorter by their means"
    if source.get("head") == "roberta":
        return "the head's own layer norm comes after an activation (hidden states are exact)"
    wanted = float(source["layer_norm_eps"]) * small.width / large.width
    # whoever types the eps that the message names gives nine digits of it
    if abs(float(pair.target["layer_norm_eps"]) / wanted - 1) > 1e-6:
        return (
            f"variances shrink by {small.width}/{large.width}: give --layer-norm-eps {wanted:.9g}"
        )
    return position_reason(pair)


def _reason(pair: Pair, options: Options) -> str | None:
    wide = _average_reason(pair) if averages(pair) else tile_reason(pair, options)
    return wide or deepen_reason(pair, options)


def unequal(pair: Pair, options: Options) -> Maps:
    """Return how every axis grows: copies with unequal shares, or means in the stream."""
    base = copies(pair, options, tiled=True)
    small, large = pair.small.width, pair.large.width
    made: dict[tuple[str, int | None], AxisMap | None] = {}

    def build(axis: str, layer: int | None) -> AxisMap | None:
        equal = base(axis, layer, "", False)
        if not isinstance(equal, Select):
            return equal
        drawn = options.generator(f"share {axis}", layer)
        if averages(pair) and axis == "emb":
            return Average(small, large, drawn)
        # between a half and one and a half before they are scaled: no copy is mute, none takes it
        # all
        weight = 0.5 + torch.rand(len(equal.index_M), generator=drawn, dtype=torch.float64)
        sums = torch.zeros(equal.inputs, dtype=torch.float64).index_add_(0, equal.index_M, weight)
        # the table behind the head holds means in its new columns, which must not count in logits
        kind = FirstCopies if averages(pair) and axis == "cls" else Select
        return kind(equal.index_M, equal.inputs, weight / sums[equal.index_M])

    def maps(axis: str, layer: int | None, module: str, reads: bool) -> AxisMap | None:
        key = (axis, layer)
        if key not in made:
            made[key] = build(*key)
        return made[key]

    return maps


@method(_reason, uses=())
def lemon(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Copies with unequal shares, means where the width is no multiple, layers that do nothing."""
    maps = unequal(pair, options)
    return deepen(settle_scales(parts, widen(parts, maps), pair, maps), pair, options)
