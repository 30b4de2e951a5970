"""Exact enlargement: every channel k times, and layers that do nothing.

Source: the exactness table is measured in the tests; HyperCloning: Samragh et al. 2024.
"""

from __future__ import annotations

import dataclasses

import torch

from fairseq.growth.copies import widen_by_copies
from fairseq.growth.layers import deepen, deepen_reason
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair, slopes_of
from fairseq.growth.tensors import Parts


def position_reason(pair: Pair) -> str | None:
    """Return why a wider model knows positions in another way."""
    if pair.position == "sinusoidal" and pair.small.width != pair.large.width:
        return "the table of sinusoidal positions depends on the width"
    if pair.position.startswith("alibi") and pair.small.heads != pair.large.heads:
        # repeated heads stand in the order of the old ones: head h is a copy of head h mod H1
        kept, here = slopes_of(pair.source), slopes_of(pair.target)
        if not torch.equal(kept[torch.arange(len(here)) % len(kept)], here):
            return "ALiBi's slopes depend on the number of heads, so old heads get other slopes"
    return None


def tile_reason(pair: Pair, options: Options) -> str | None:
    """Return why a model whose channels are repeated computes something else."""
    small, large = pair.small, pair.large
    if pair.source.get("scale_fc") and large.ffn % small.ffn:
        return (
            f"the feed-forward network has a layer norm inside, so its width must be a multiple "
            f"of {small.ffn}"
        )
    if small.width == large.width:
        return None
    if large.width % small.width:
        return f"width {large.width} is no multiple of {small.width}: layer norms see other means"
    if (reason := position_reason(pair)) is not None:
        return reason
    k = large.width / small.width
    # the multiplier is written into a configuration in decimal, hence not to the last bit
    if pair.unit_rows and abs(pair.growth_of_scale - k**0.5) > 1e-6:
        if not pair.source["layernorm_embedding"]:
            return (
                "CLAP's embeddings have length one, so every channel shrinks, and nothing scales "
                "them back: there is no rule without --scale-embedding"
            )
        return (
            "CLAP's embeddings have length one, so every channel shrinks, and the eps of the layer "
            "norm on them weighs more (logits move by about 0.001)"
        )
    if pair.tied and pair.side == "decoder" and pair.pre_norm and not pair.final_norm:
        return "the embeddings read the hidden states without a layer norm that could scale them"
    return None


def _reason(pair: Pair, options: Options) -> str | None:
    return tile_reason(pair, options) or deepen_reason(pair, options)


@method(_reason, exact_only=True)
def enlarge(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Every channel and head k times; the same function, or a refusal with the reason.

    Copies stay equal in training without dropout: ``--grow-noise`` sets them apart, exactly.
    """
    return deepen(widen_by_copies(parts, pair, options, tiled=True), pair, options)


@method(_reason)
def hyperclone(parts: Parts, pair: Pair, options: Options) -> Parts:
    """HyperCloning: like ``enlarge``, with noise on readers that cancels over the copies."""
    if options.noise is None:
        # 1 % of a tensor's spread: equal copies get equal gradients and would stay equal for ever
        options = dataclasses.replace(options, noise=0.01)
    return deepen(widen_by_copies(parts, pair, options, tiled=True), pair, options)
