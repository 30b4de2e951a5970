"""Which layers of a deep model become the layers of a shallow one.

========  ======================================================  ==========================
name      layers                                                  of 12, 6 (3l: 3) are kept
========  ======================================================  ==========================
distil    spread                                                  0, 2, 4, 7, 9, 11
spread    evenly from the first to the last, rounded              0, 2, 4, 7, 9, 11
alt       every so many, from the first on                        0, 2, 4, 6, 8, 10
first     the lowest (also 6b)                                    0, 1, 2, 3, 4, 5
last      the highest (also 6t)                                   6, 7, 8, 9, 10, 11
3b3t      spread: published code lists the same layers for it     0, 2, 4, 7, 9, 11
3l        the first, the middle one and the last                  0, 6, 11
auto      those that change the hidden states most                by :func:`block_influence`
========  ======================================================  ==========================

Sources: distil: Sanh et al. 2019 (DistilBERT), published code; the other lists: Li et al. 2021 (A
Short Study on Compressing Decoder-Based Language Models), published code; auto: Men et al. 2024
(ShortGPT), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairseq.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

STRATEGIES = ("distil", "spread", "alt", "first", "last", "6b", "6t", "3b3t", "3l", "auto")


def choose_layers(
    strategy: str, layers: int, kept: int, influence: Sequence[float] | None = None
) -> list[int]:
    """Return the numbers of the layers to keep, ascending.

    Args:
        strategy: one of ``STRATEGIES``.
        layers: of the deep model.
        kept: how many of them.
        influence: of each layer on the hidden states, for ``auto``.

    Raises:
        ConfigError: for an unknown strategy, or a number of layers that it cannot give.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"unknown choice of layers '{strategy}'{did_you_mean(strategy, STRATEGIES)}: choose "
            f"one of {', '.join(STRATEGIES)}"
        )
    if not 1 <= kept <= layers:
        raise ConfigError(f"{kept} layers cannot be kept of {layers}")
    if strategy == "auto":
        if influence is None or len(influence) != layers:
            raise ConfigError(
                f"the choice 'auto' needs the influence of each of the {layers} layers"
            )
        # of equal influence the lower layer stays
        strongest = sorted(range(layers), key=lambda layer: (-influence[layer], layer))
        return sorted(strongest[:kept])
    if strategy == "3l" and kept != 3:
        raise ConfigError(f"the choice '3l' keeps 3 layers, not {kept}")
    if strategy in ("first", "6b"):
        return list(range(kept))
    if strategy in ("last", "6t"):
        return list(range(layers - kept, layers))
    if strategy == "alt":
        return [number * layers // kept for number in range(kept)]
    if strategy == "3l":
        # the first, middle and last layer; models of up to three layers stay whole
        return [0, layers // 2, layers - 1] if layers > 3 else list(range(3))
    # n (L - 1) / (K - 1) rounded half up, in whole numbers: round() takes halves to even ones
    return [(2 * n * (layers - 1) + kept - 1) // max(1, 2 * (kept - 1)) for n in range(kept)]


def block_influence(states: Sequence[Tensor], kept_BT: Tensor) -> list[float]:
    """Return ``1 - mean cosine`` between the input and the output of each layer.

    Args:
        states: the output of the embeddings and of every layer, (T, B, C) each, as models give
            them in ``extra["inner_states"]``.
        kept_BT: True at the tokens that count.

    Source: Men et al. 2024 (ShortGPT), section 3.
    """
    from torch.nn.functional import cosine_similarity

    # neighbouring states differ little: in fp32 one minus their cosine loses its digits
    rows = [state_TBC.transpose(0, 1)[kept_BT].double() for state_TBC in states]
    pairs = zip(rows[:-1], rows[1:], strict=True)
    return [1 - float(cosine_similarity(before, after, -1).mean()) for before, after in pairs]
