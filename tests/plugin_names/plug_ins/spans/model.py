"""A decoder of one recurrent layer whose memory spans batches."""

from dataclasses import dataclass

import torch
from fairseq.modules.layer_norm import LayerNorm
from torch import nn

from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqIncrementalDecoder, FairseqLanguageModel, register_model


@dataclass
class SpansConfig(FairseqDataclass):
    d_model: int = 32
    max_span: int = 64


@register_model("spans", dataclass=SpansConfig)
class Spans(FairseqLanguageModel):
    @classmethod
    def build_model(cls, cfg, task):
        return cls(SpansDecoder(cfg, task))

    def price(self):
        return 1e-3 * self.decoder.span.abs()


class SpansDecoder(FairseqIncrementalDecoder):
    def __init__(self, cfg, task):
        super().__init__(task.target_dictionary)
        self.max_span, words = cfg.max_span, len(task.target_dictionary)
        self.embed = nn.Embedding(words, cfg.d_model)
        self.layer = nn.GRU(cfg.d_model, cfg.d_model, batch_first=True)
        self.norm, self.out = LayerNorm(cfg.d_model), nn.Linear(cfg.d_model, words)
        self.span = nn.Parameter(torch.ones(()))
        self._memory = None

    def forward(self, src_tokens, incremental_state=None, encoder_out=None):
        memory = self._memory
        if memory is not None and memory.shape[1] != src_tokens.shape[0]:
            memory = None
        hidden, memory = self.layer(self.embed(src_tokens), memory)
        self._memory = memory.detach()
        return (self.out(self.norm(hidden) * self.span),)

    def max_positions(self):
        return self.max_span
