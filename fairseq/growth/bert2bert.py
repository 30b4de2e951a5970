"""bert2BERT: function-preserving initialisation (FPI) and advanced knowledge (AKI).

Source: Chen et al. 2022 (bert2BERT), sections 3.2 to 3.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.growth.copies import copies_reason, widen_by_copies
from fairseq.growth.layers import bert2bert_map, depth_reason, take
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Parts, is_norm, roles_of


def _reason(pair: Pair, options: Options) -> str | None:
    return copies_reason(pair, options) or depth_reason(
        pair, options.layer_map(pair, bert2bert_map)
    )


@method(_reason)
def fpi(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Copies of drawn channels, whole heads; then the stack again and its top layers."""
    return take(widen_by_copies(parts, pair, options), options.layer_map(pair, bert2bert_map))


def _aki_reason(pair: Pair, options: Options) -> str | None:
    if pair.small._replace(layers=0) != pair.large._replace(layers=0):
        return "new channels come from the layer above"
    return depth_reason(pair, options.layer_map(pair, bert2bert_map))


@method(_aki_reason, uses=("noise", "norms"))
def aki(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Like ``fpi``, but new channels are those of the layer above; the top layer is its own."""
    wide = widen_by_copies(parts, pair, options)
    above = [*wide.layers[1:], wide.layers[-1]]
    layers = [
        {
            name: _with_rows_of(upper[name], x, len(small[name]), name, options.norms)
            for name, x in layer.items()
        }
        for layer, upper, small in zip(wide.layers, above, parts.layers, strict=True)
    ]
    return take(wide._replace(layers=layers), options.layer_map(pair, bert2bert_map))


def _with_rows_of(above: Tensor, layer: Tensor, rows: int, name: str, norms: str) -> Tensor:
    """Return ``layer`` with all rows after the first ``rows`` taken from ``above``."""
    if not str(roles_of(name, layer)[0]).startswith("+") or (is_norm(name) and norms == "own"):
        return layer
    return torch.cat([layer[:rows], above[rows:]])
