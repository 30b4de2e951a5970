"""A narrower model: neighbouring channels are averaged; the inverse of growth.

Source: the width reduction of Hugging Face's distillation examples: average pooling with stride 1
and windows of n1 - n2 + 1, here for queries, keys and values apart.
"""

from __future__ import annotations

from fairseq.growth.layers import depth_reason, interpolate_map, take
from fairseq.growth.maps import Pool
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import AxisMap, Parts, widen


def _reason(pair: Pair, options: Options) -> str | None:
    if pair.small != pair.large._replace(layers=pair.small.layers):
        return "averages of channels are no channels"
    return depth_reason(pair, options.layer_map(pair, interpolate_map))


@method(_reason, shrinks=True, uses=())
def pool(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Means of neighbouring channels; layers as ``--grow-layers`` says, else spread evenly."""
    small, large = pair.small, pair.large
    sizes = {"ffn": (small.ffn, large.ffn), "heads": (small.heads, large.heads)}

    def maps(axis: str, layer: int | None, module: str, reads: bool) -> AxisMap | None:
        inputs, outputs = sizes.get(axis, (small.width, large.width))
        return None if inputs == outputs else Pool(inputs, outputs)

    # layers that are left out need no means
    return widen(take(parts, options.layer_map(pair, interpolate_map)), maps)
