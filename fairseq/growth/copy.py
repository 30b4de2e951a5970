"""Direct copy: the small tensors in the upper-left corner of the large ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Parts, join, split


def _reason(pair: Pair, options: Options) -> str | None:
    return None if pair.small == pair.large else "new weights are not trained"


@method(_reason, needs_fresh=True, uses=("fill",))
def copy(parts: Parts, pair: Pair, options: Options) -> Parts:
    """The source in the upper-left corner of every tensor; the rest is fresh, or zero."""
    if options.fresh is None:
        raise ConfigError("copy needs the weights of a new model of the target's sizes")
    small, grown = join(parts), {}
    kind = next(x.dtype for x in small.values() if x.dim() > 1)
    for name, fresh in options.fresh.items():
        rest = fresh if options.fill == "fresh" else torch.zeros_like(fresh)
        rest = rest.to(kind) if rest.is_floating_point() else rest
        grown[name] = _corner(small[name], rest) if name in small else rest
    return split(grown)


def _corner(small: Tensor, large: Tensor) -> Tensor:
    if small.shape == large.shape:
        return small
    result = large.clone()
    result[tuple(slice(size) for size in small.shape)] = small
    return result
