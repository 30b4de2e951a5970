"""Growth in depth: layers of the target are copies of layers of the source.

A wider target is widened first, as ``fpi`` does it. Sources: Gong et al. 2019 (StackBERT, MSLT's
ancestor); Yang et al. 2020 (MSLT); Du et al. 2024 (G_stack); Chen et al. 2022 (bert2BERT).
"""

from __future__ import annotations

from fairseq.errors import ConfigError, UnsupportedError
from fairseq.growth.copies import copies_reason, widen_by_copies
from fairseq.growth.layers import (
    depth_reason,
    interlace_map,
    interpolate_map,
    mslt_map,
    stack_map,
    take,
)
from fairseq.growth.methods import LayerMap, Options, Reason, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Parts


def _reason(usual: LayerMap) -> Reason:
    def reason(pair: Pair, options: Options) -> str | None:
        return copies_reason(pair, options) or depth_reason(pair, options.layer_map(pair, usual))

    return reason


def _grow(usual: LayerMap, parts: Parts, pair: Pair, options: Options) -> Parts:
    return take(widen_by_copies(parts, pair, options), options.layer_map(pair, usual))


@method(_reason(stack_map))
def stack(parts: Parts, pair: Pair, options: Options) -> Parts:
    """StackBERT: layer l is a copy of layer l mod L1."""
    return _grow(stack_map, parts, pair, options)


@method(_reason(interpolate_map))
def interpolate(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Layer l is a copy of layer floor(l L1 / L2)."""
    return _grow(interpolate_map, parts, pair, options)


@method(_reason(interlace_map))
def interlace(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Every layer is repeated L2 // L1 times; the rest are copies of the top layer."""
    return _grow(interlace_map, parts, pair, options)


@method(_reason(mslt_map))
def mslt(parts: Parts, pair: Pair, options: Options) -> Parts:
    """One stage of multi-stage layerwise training: copies of the top layers on top.

    The stage's other half is training: only the new layers and the head, then everything.
    """
    return _grow(mslt_map, parts, pair, options)


@method(_reason(stack_map))
def gstack(parts: Parts, pair: Pair, options: Options) -> Parts:
    """G_stack: the whole stack L2 / L1 times, a whole number."""
    if pair.large.layers % pair.small.layers:
        raise ConfigError(
            f"gstack repeats the whole stack: {pair.large.layers} layers are no multiple of "
            f"{pair.small.layers}; use stack or interpolate"
        )
    return _grow(stack_map, parts, pair, options)


def _extract_reason(pair: Pair, options: Options) -> str | None:
    layers = options.layers
    if layers is None:
        raise ConfigError("extract needs --grow-layers, such as 0,1,1,3")
    small, large = pair.small, pair.large
    if small._replace(layers=0) != large._replace(layers=0):
        raise UnsupportedError("extract takes whole layers: widths and heads stay as they are")
    return depth_reason(pair, list(layers))


@method(_extract_reason, any_depth=True, uses=())
def extract(parts: Parts, pair: Pair, options: Options) -> Parts:
    """The layers that ``--grow-layers`` names, in any order, repeated or left out."""
    return take(parts, list(options.layers or ()))
