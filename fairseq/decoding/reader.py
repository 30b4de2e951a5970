"""Reading with a causal language model: rows grow, and what was read is not read again.

Shapes: R rows, S tokens so far, T new ones, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.models.base import FairseqIncrementalDecoder
from fairseq.models.transformer_lm.decoder import TransformerDecoder
from fairseq.modules.predictions import asks_hidden, from_output
from fairseq.protocols import Model


class Reader:
    """Runs one model over growing rows, and remembers what it has read if the model can.

    Args:
        model: a causal language model.
        temperature: log-probabilities are divided by it and normalised again.

    Raises:
        ConfigError: if the model is none.
    """

    def __init__(self, model: Model, temperature: float = 1.0) -> None:
        self.decoder: Any = getattr(model, "decoder", None)
        if self.decoder is None or hasattr(model, "encoder"):
            raise ConfigError(
                f"{type(model).__name__} cannot generate: only causal language models, which are "
                "a decoder without an encoder, can"
            )
        self.model: Any = model
        self.temperature = temperature
        self.state: Any = {} if isinstance(self.decoder, FairseqIncrementalDecoder) else None
        self.hidden_RTC: Tensor | None = None
        self.rest: tuple[Any, ...] = ()

    def read(self, tokens_RS: Tensor, new: int) -> None:
        """Run the model on the last ``new`` tokens of rows whose others it has read."""
        # decoders of plug-ins may look at nothing but the last token, as the original's do
        one_by_one = self.state is not None and not isinstance(self.decoder, TransformerDecoder)
        length = tokens_RS.shape[1]
        ends = range(length - new + 1, length + 1) if one_by_one else [length]
        kwargs: dict[str, Any] = {} if self.state is None else {"incremental_state": self.state}
        kwargs |= asks_hidden(self.model)
        parts = []
        for end in ends:
            hidden_RTC, *rest = self.model(tokens_RS[:, :end], **kwargs)
            parts.append(hidden_RTC)
            self.rest = tuple(rest)
        self.hidden_RTC = torch.cat(parts, dim=1)[:, -new:]

    def log_probs(self, first: int, last: int | None) -> Tensor:
        """Return what the model expects after the tokens ``first`` to ``last`` of those just read.

        Returns:
            log-probabilities in fp32, (R, last - first, V).
        """
        assert self.hidden_RTC is not None
        some_RTC = self.hidden_RTC[:, first:last]
        log_p_NV = from_output(self.model, some_RTC.flatten(0, 1), self.rest).log_probs()
        log_p_RTV = log_p_NV.unflatten(0, some_RTC.shape[:2])
        if self.temperature != 1:
            log_p_RTV = (log_p_RTV / self.temperature).log_softmax(-1)
        return log_p_RTV

    def reorder(self, order_R: Tensor) -> None:
        """Keep what was remembered of these rows, in this order."""
        unchanged = torch.arange(len(order_R), device=order_R.device)
        same = self.hidden_RTC is not None and len(self.hidden_RTC) == len(order_R)
        if self.state is not None and not (same and torch.equal(order_R, unchanged)):
            self.decoder.reorder_incremental_state(self.state, order_R)
