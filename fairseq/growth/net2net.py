"""Net2Net: wider by copies of drawn channels, deeper by layers that do nothing yet.

Source: Chen et al. 2016 (Net2Net), section 2.
"""

from __future__ import annotations

import dataclasses

from fairseq.growth.copies import copies_reason, widen_by_copies
from fairseq.growth.layers import deepen, deepen_reason
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Parts


def _reason(pair: Pair, options: Options) -> str | None:
    return copies_reason(pair, options) or deepen_reason(pair, options)


@method(_reason)
def net2net(parts: Parts, pair: Pair, options: Options) -> Parts:
    """Copies of drawn channels, with noise that cancels, and layers that do nothing yet."""
    if options.noise is None:
        # 1 % of a tensor's spread: equal copies get equal gradients and would stay equal for ever
        options = dataclasses.replace(options, noise=0.01)
    return deepen(widen_by_copies(parts, pair, options), pair, options)
