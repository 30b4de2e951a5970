"""What an attention is told about its tokens beside queries, keys and values.

Shapes: B batch, H heads, T queries (the last T of the tokens so far), S keys, R turned channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Alibi:
    """Linear biases on the scores: ``-slope_h * (|i - j| - 0.5 [asymmetric and j > i])``.

    Backends that know slopes compute the bias where they need it; for the others the largest
    dense bias is kept. It is fp32 whatever the model is: in half precision neighbouring keys
    become equal.

    Args:
        slopes_H: fp32, one per head.
        asymmetric: keys after the query are half a place nearer than keys before it.

    Source: Press et al. 2022, section 3; the encoder variants are those of the authors' issue 5.
    """

    def __init__(self, slopes_H: Tensor, asymmetric: bool = False) -> None:
        self.slopes_H, self.asymmetric = slopes_H, asymmetric
        # causal? -> the dense bias; neither parameter nor buffer, so model.half() cannot touch it
        self._kept: dict[bool, Tensor] = {}

    def bias(
        self, queries: int, keys: int, causal: bool = False, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the dense bias, fp32 of shape (1, H, T, S), for the last T of S tokens.

        With ``causal``, keys after the query get -inf.
        """
        kept = self._kept.get(causal)
        if kept is None or kept.shape[-1] < keys or kept.device != torch.device(device):
            self._kept[causal] = kept = self._dense(keys, causal, device)
        return kept[:, :, keys - queries : keys, :keys]

    @torch.inference_mode(False)  # what is kept must serve training, too
    def _dense(self, length: int, causal: bool, device: torch.device | str) -> Tensor:
        place_T = torch.arange(length, device=device, dtype=torch.float32)
        offset_TT = place_T[None, :] - place_T[:, None]  # key minus query
        distance_TT = offset_TT.abs()
        if self.asymmetric:
            distance_TT = distance_TT - 0.5 * (offset_TT > 0)
        bias_HTT = -self.slopes_H.to(device)[:, None, None] * distance_TT
        if causal:
            bias_HTT = bias_HTT.masked_fill_(offset_TT > 0, -torch.inf)
        return bias_HTT[None]

    def __getstate__(self) -> dict[str, object]:
        """Leave the dense biases out of copies and pickles; they are cheap to compute."""
        return {**self.__dict__, "_kept": {}}


@dataclass(frozen=True)
class Unpadded:
    """The tokens of a batch without its padding: N of B rows of T.

    Attributes:
        places_N: flat indices (b * T + t), int64, ascending.
        batch: B.
        length: T.
    """

    places_N: Tensor
    batch: int
    length: int

    def gather(self, rows: Tensor) -> Tensor:
        """Return what the tokens have in (B, T, ...), shape (N, ...)."""
        return rows.flatten(0, 1).index_select(0, self.places_N)

    def spread(self, tokens: Tensor) -> Tensor:
        """Return (B, T, ...) with what the tokens have, (N, ...), and zeros at pads."""
        rows = tokens.new_zeros(self.batch * self.length, *tokens.shape[1:])
        return rows.index_copy(0, self.places_N, tokens).unflatten(0, (self.batch, self.length))


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of a model are told about the tokens of one batch.

    Attributes:
        alibi: slopes of the linear biases, None without ALiBi.
        key_padding_mask_BS: True at keys that must not be seen. A query that sees no key at all
            gets something finite.
        causal: a query sees only keys up to its own place; the queries are the last T.
        documents_BS: number of the document that each token belongs to; tokens of other documents
            are not seen. None where a row is one document.
        rotary_TR: cosines and sines of the angles that queries and keys are turned by.
        unpadded: the tokens that are not hidden by ``key_padding_mask_BS``, where layers are given
            these alone, as (N, C).
    """

    alibi: Alibi | None = None
    key_padding_mask_BS: Tensor | None = None
    causal: bool = False
    documents_BS: Tensor | None = None
    rotary_TR: tuple[Tensor, Tensor] | None = None
    unpadded: Unpadded | None = None
    # frozen as it is for its layers, it gathers what the first of them computes
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def bias(self, queries: int, keys: int, device: torch.device | str) -> Tensor | None:
        """Return ALiBi's dense bias, (1, H, T, S), the future hidden; None without ALiBi."""
        if self.alibi is None:
            return None
        return self.alibi.bias(queries, keys, self.causal, device)

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return what ``compute`` gives, which the first layer to ask computes for all."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def other_documents(self, queries: int) -> Tensor | None:
        """Return a (B, 1, T, S) mask, True where the key belongs to another document."""
        if self.documents_BS is None:
            return None
        asking_BT = self.documents_BS[:, -queries:]
        return asking_BT[:, None, :, None] != self.documents_BS[:, None, None, :]

    def hidden(
        self, queries: int, keys: int, device: torch.device | str, future: bool
    ) -> Tensor | None:
        """Return a mask, True at pairs that must not be seen; None if all may be.

        Args:
            queries: T.
            keys: S.
            device: of the mask.
            future: hide keys after their query, too.

        Returns:
            a mask that broadcasts to (B, 1, T, S).
        """
        masks = []
        if self.key_padding_mask_BS is not None:
            masks.append(self.key_padding_mask_BS[:, None, None, :])
        others_B1TS = self.other_documents(queries)
        if others_B1TS is not None:
            masks.append(others_B1TS)
        if future:
            # the last query is the last key: earlier queries are the T - S before it
            everything_TS = torch.ones(queries, keys, dtype=torch.bool, device=device)
            masks.append(everything_TS.triu(keys - queries + 1)[None, None])
        return functools.reduce(torch.logical_or, masks) if masks else None


NOTHING = AttentionContext()
