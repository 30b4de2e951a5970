"""What width does to the scores of headless training: no tensor can take it back, a setting does.

Contrastive weight tying scores a hidden state h by the rows e of the embeddings, ``h . e / T``.
Where every channel of both is there k times, the scores are k times as large, and T has to be.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fairseq.growth.sizes import Config, Pair, sizes_of

REPEATING = ("enlarge", "hyperclone", "lemon")  # methods that are exact in width


def score_factor(pair: Pair) -> float:
    """Return what ``h . e`` is multiplied by when channels are repeated.

    Measured in the tests, as all of exactness is.
    """
    small, large = pair.small.width, pair.large.width
    # a decoder's norm takes the shares of a tied table; tables of their own width do not grow
    if small == large or pair.projected or (pair.tied and pair.side == "decoder"):
        return 1.0
    # new channels of means are zero in the hidden states
    k = large / small if large % small == 0 else 1.0
    # rows of length one are as long as before, so that each of their copies is shorter
    return k**0.5 if pair.unit_rows else k / pair.growth_of_scale


def _contrast(criterion: Any) -> bool:
    return getattr(criterion, "contrastive_temperature", None) is not None


def settled_contrast(name: str, source: Config, target: Config, criterion: Any) -> Any:
    """Return the settings of the source's loss with the temperature that its scores need.

    Args:
        name: of the method.
        source, target: configurations of the models.
        criterion: settings of the loss; others than headless training's are returned as they are.
    """
    if name not in REPEATING or not _contrast(criterion) or criterion.contrastive_normalize:
        return criterion
    temperature = criterion.contrastive_temperature * score_factor(Pair(source, target))
    return dataclasses.replace(criterion, contrastive_temperature=temperature)


def contrast_reason(
    name: str, source: Config, target: Config, before: Any, after: Any
) -> str | None:
    """Return why the loss of headless training is another one, though the hidden states are not.

    Args:
        name: of the method.
        source, target: configurations of the models.
        before: settings of the source's loss.
        after: settings of the loss that the target is trained on.
    """
    if not _contrast(before) or not _contrast(after):
        return None
    if before.contrastive_projection:
        return "the learned map of --contrastive-projection begins anew"
    if sizes_of(source).width == sizes_of(target).width or before.contrastive_normalize:
        return None
    wanted = settled_contrast(name, source, target, before).contrastive_temperature
    if abs(after.contrastive_temperature / wanted - 1) < 1e-6:
        return None
    return (
        f"hidden states are the same, but their products with embeddings are not: give "
        f"--contrastive-temperature {wanted:.9g}"
    )
