"""The lookup table: a model that answers with the true conditionals of a known source.

Its loss is the lowest there is, and it has learned nothing: the baseline against which probes of
equally good models are read. Source: Liu et al. 2023, section 3.2.

Shapes: B batch, T time, N masked positions, W words of the source, V dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.errors import ConfigError
from fairseq.models import register_model
from fairseq.models.base import BaseFairseqModel
from fairseq.pcfg.source import load_source
from fairseq.pcfg.truth import Truth
from fairseq.protocols import Task

LOWEST = -1e4
"""Logit of what cannot stand there: its probability is 0 in any float type."""


@dataclass
class PcfgLookupConfig(FairseqDataclass):
    """Settings of the lookup table."""

    grammar: str | None = option(
        II("task.grammar"), "file of a grammar or hidden-Markov model", path=True
    )


@register_model("pcfg_lookup", dataclass=PcfgLookupConfig)
class PcfgLookup(BaseFairseqModel):
    """Log q at temperature ``exp(log_temperature)``, the one parameter; at 0 it is the truth."""

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        self.truth = truth
        self.log_temperature = nn.Parameter(torch.zeros(()))

    @classmethod
    def build_model(cls, cfg: PcfgLookupConfig, task: Task) -> PcfgLookup:
        """Read the source.

        Raises:
            ConfigError: if none is named, or the task masks nothing.
        """
        grammar = cfg.grammar or getattr(task.cfg, "grammar", None)
        mask = getattr(task, "mask_idx", None)
        if not grammar or mask is None:
            raise ConfigError("--arch pcfg_lookup needs --grammar, and a task that masks words")
        return cls(Truth(load_source(grammar), task.source_dictionary, mask))

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        masked_tokens: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits (B, T, V), or (N, V) at ``masked_tokens`` (B, T)."""
        q_BTW = self.extract_features(src_tokens)[0]
        if masked_tokens is not None:
            q_BTW = q_BTW[masked_tokens]
        entries = len(self.truth.dictionary)
        logits = q_BTW.new_full((*q_BTW.shape[:-1], entries), LOWEST)
        log_q = q_BTW.log().clamp(min=LOWEST)
        logits[..., torch.from_numpy(self.truth.ids_W).to(logits.device)] = log_q
        return logits / self.log_temperature.exp(), {}

    def extract_features(self, src_tokens: Tensor, **unused: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return q (B, T, W): at every word its distribution given the others, else zeros."""
        q_BTW, _, _ = self.truth.conditionals(src_tokens.cpu().numpy())
        return torch.from_numpy(q_BTW).to(self.log_temperature), {}
