"""Which layer of the source becomes which layer of the target, and layers that do nothing.

Sources: Gong et al. 2019 (StackBERT); Yang et al. 2020 (MSLT); Chen et al. 2022 (bert2BERT); layers
of zero output: Chen et al. 2016 (Net2Net), section 2.3, for residual blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.growth.methods import Options
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Parts


def stack_map(small: int, large: int) -> list[int]:
    """Return ``l mod L1``: the whole stack again and again."""
    return [layer % small for layer in range(large)]


def interpolate_map(small: int, large: int) -> list[int]:
    """Return ``floor(l L1 / L2)``: every layer is followed by its copies."""
    return [layer * small // large for layer in range(large)]


def interlace_map(small: int, large: int) -> list[int]:
    """Return each layer L2 // L1 times in a row; what remains are copies of the top layer."""
    return [min(layer // (large // small), small - 1) for layer in range(large)]


def bert2bert_map(small: int, large: int) -> list[int]:
    """Return the whole stack ``L2 // L1`` times, then its top ``L2 mod L1`` layers."""
    rest = large % small
    return [*range(small)] * (large // small) + [*range(small - rest, small)]


def mslt_map(small: int, large: int) -> list[int]:
    """Return the stack with its top block of ``L2 - L1`` layers (at most L1) on top again."""
    block = max(1, min(small, large - small))
    return [*range(small), *(small - block + step % block for step in range(large - small))]


def take(parts: Parts, layers: list[int]) -> Parts:
    """Return the layers named, in that order."""
    return parts._replace(
        layers=[dict(parts.layers[layer]) for layer in layers],
        as_top=[parts.as_top[layer] for layer in layers] if parts.as_top else (),
    )


def depth_reason(pair: Pair, layers: list[int]) -> str | None:
    """Return why these layers compute something else."""
    if layers == [*range(pair.small.layers)]:
        return None
    return f"layers {','.join(map(str, layers))} of the source are run one after the other"


# -- layers that do nothing ------------------------------------------------------------------------

# attn_ln is NormFormer's norm behind the attention, whose shift would be added even to zeros.
_OUTPUTS = ("self_attn.out_proj", "fc2", "attn_ln")  # what a block adds to the stream


def silenced(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer that adds nothing to the residual stream, and can learn to."""
    # outputs alone are zero: were the inside zero as well, no gradient would ever reach either
    result = {
        name: torch.zeros_like(x) if name.rpartition(".")[0] in _OUTPUTS else x
        for name, x in layer.items()
    }
    if "w_resid" in result:
        # NormFormer's scale of the residual itself, which has to pass unchanged
        result["w_resid"] = torch.ones_like(result["w_resid"])
    return result


def deepen(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Add layers that do nothing, copies of the lower ones with zero outputs, on top.

    Post-norm layers always do something: there, and where ``options.layers`` names a map, the
    layers of that map (without one: of :func:`interpolate_map`) are copied.
    """
    small, large = pair.small.layers, pair.large.layers
    if options.layers is not None or not pair.pre_norm:
        return take(parts, options.layer_map(pair, interpolate_map))
    grown = take(parts, stack_map(small, large))
    layers = [layer if n < small else silenced(layer) for n, layer in enumerate(grown.layers)]
    return grown._replace(layers=layers)


def deepen_reason(pair: Pair, options: Options) -> str | None:
    """Return why :func:`deepen` is not exact."""
    if options.layers is not None:
        return depth_reason(pair, list(options.layers))
    if pair.small.layers == pair.large.layers or pair.pre_norm:
        return None
    return "a post-norm layer cannot do nothing, LN(x + 0) is not x: more layers change the result"
