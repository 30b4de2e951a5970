"""Which document of a packed row each token belongs to.

In binarized text an empty line parts documents (docs/corpora.md): its end-of-sentence stands right
behind another one. Shapes: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADS = -1  # the number of what belongs to no document


def number_documents(tokens_BT: Tensor, *, eos: int, pad: int, shifted: bool = False) -> Tensor:
    """Return the number of the document of each token, int64 (B, T); pads have one of their own.

    Numbers count from 0 in each row. The end-of-sentence of the empty line belongs to the document
    before it. In the sources of causal models (``shifted``), where every token stands one place
    late, it belongs to the one behind it: the first token is predicted from it, as the first token
    of a text is.

    Args:
        tokens_BT: int64 ids, as they are before anything is masked.
        eos: end-of-sentence id.
        pad: padding id.
        shifted: whether these are sources of a causal model.
    """
    ends_BT = tokens_BT.eq(eos)
    parts_BT = torch.zeros_like(ends_BT)
    # a second </s> in a row is an empty line, which parts documents
    parts_BT[:, 1:] = ends_BT[:, 1:] & ends_BT[:, :-1]
    number_BT = parts_BT.cumsum(1)
    if not shifted:  # not counted until the place behind it
        number_BT = number_BT - parts_BT.long()
    return number_BT.masked_fill(tokens_BT.eq(pad), PADS)
