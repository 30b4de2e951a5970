"""Bases and wrappers of models that only plug-ins import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.config.sections import DistributedTrainingConfig, EMAConfig
from fairseq.distributed.wrap import wrap_model
from fairseq.models import base
from fairseq.models.base import (
    BaseFairseqModel,
    FairseqDecoder,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
)
from fairseq.models.ema import EMA
from fairseq.plugin_names.incremental_state import IncrementalState, reorder, with_incremental_state


@with_incremental_state
class FairseqIncrementalDecoder(base.FairseqIncrementalDecoder):
    """Base of decoders that remember something between the steps of decoding."""

    def reorder_incremental_state(
        self, incremental_state: IncrementalState | None, new_order: Tensor
    ) -> None:
        reorder(self, incremental_state, new_order)


FairseqModel = FairseqEncoderDecoderModel  # its name of old


class FairseqMultiModel(BaseFairseqModel):
    """Pairs of encoders and decoders, by name."""

    def __init__(
        self, encoders: Mapping[str, FairseqEncoder], decoders: Mapping[str, FairseqDecoder]
    ) -> None:
        super().__init__()
        assert encoders.keys() == decoders.keys(), (list(encoders), list(decoders))
        self.keys = list(encoders)
        self.models: Any = nn.ModuleDict(
            {key: FairseqEncoderDecoderModel(encoders[key], decoders[key]) for key in self.keys}
        )

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **kwargs: object
    ) -> dict[str, Any]:
        """Return what every pair gives."""
        return {
            key: model(src_tokens, src_lengths, prev_output_tokens, **kwargs)
            for key, model in self.models.items()
        }

    def max_positions(self) -> dict[str, Any]:
        return {key: model.max_positions() for key, model in self.models.items()}

    @property
    def encoder(self) -> nn.Module:
        """Return the first encoder."""
        return self.models[self.keys[0]].encoder

    @property
    def decoder(self) -> nn.Module:
        """Return the first decoder."""
        return self.models[self.keys[0]].decoder


class CompositeEncoder(FairseqEncoder):
    """Several encoders that read the same tokens.

    Args:
        encoders: by name; the dictionary is that of the first.
    """

    def __init__(self, encoders: Mapping[str, FairseqEncoder]) -> None:
        super().__init__(next(iter(encoders.values())).dictionary)
        self.encoders = encoders
        for name, encoder in encoders.items():
            self.add_module(name, encoder)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: object
    ) -> dict[str, Any]:
        """Return what every encoder gives, by name."""
        return {name: enc(src_tokens, src_lengths) for name, enc in self.encoders.items()}

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Return the output with the rows that ``new_order`` names."""
        return {
            name: encoder.reorder_encoder_out(encoder_out[name], new_order)  # type: ignore[operator]
            for name, encoder in self.encoders.items()
        }

    def max_positions(self) -> int | float:
        return min(encoder.max_positions() for encoder in self.encoders.values())


def DistributedFairseqModel(
    args: DistributedTrainingConfig,
    model: nn.Module,
    process_group: object,
    device: torch.device,
) -> nn.Module:
    """Wrap a model for several processes; ``process_group`` is for old callers."""
    return wrap_model(args, model, device)


def build_ema(model: nn.Module, cfg: EMAConfig, device: torch.device | str | None = None) -> EMA:
    """Return a moving average of a model's weights."""
    return EMA(model, cfg, device)
