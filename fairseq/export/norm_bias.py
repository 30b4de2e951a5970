"""A bias of the logits, for models whose vocabulary head has none: the last layer norm carries it.

What a layer norm gives is ``h = g * n + b`` where the channels of ``n`` add up to zero. So a row of
the output table that is a multiple of ``1 / g`` scores the same at every position:
``(x / g) . h = x sum(n) + x sum(b / g) = x sum(b / g)``. Adding such a multiple to a row adds a
constant to its logit, exactly, whatever the hidden state is.

Shapes: V rows of the output table, C channels.
"""

from __future__ import annotations

from torch import Tensor

# A gain this much smaller than the greatest one would drown the others in rounding errors.
SMALLEST_GAIN = 1e-4


def can_carry(gain_C: Tensor) -> bool:
    """Tell whether a layer norm of this gain can carry a bias in fp32."""
    sizes_C = gain_C.abs()
    return bool(sizes_C.min() > SMALLEST_GAIN * sizes_C.max())


def carry(
    table_VC: Tensor, gain_C: Tensor, shift_C: Tensor, bias_V: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output table, and the shift of the layer norm before it, that carry a bias.

    The shift grows by a multiple of the gain, so that ``sum(shift / gain) = C``; all hidden states
    then move by the same vector, and the rows take back what this adds to their logits.

    Args:
        table_VC: the output table.
        gain_C: ``g``, without zeros.
        shift_C: ``b``.
        bias_V: what is added to the logits.
    """
    table, gain, shift, bias = (x.double() for x in (table_VC, gain_C, shift_C, bias_V))
    channels = len(gain)
    factor = 1 - (shift / gain).sum() / channels
    moved_C = shift + factor * gain
    share_V = (bias - factor * (table @ gain)) / channels
    rows_VC = table + share_V[:, None] / gain
    return rows_VC.to(table_VC.dtype), moved_C.to(shift_C.dtype)
