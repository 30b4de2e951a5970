"""A model in one file: ``--arch bag`` predicts every hidden word from the mean of all words."""

from dataclasses import dataclass, field

from torch import nn

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model


@dataclass
class BagConfig(FairseqDataclass):
    width: int = field(default=32, metadata={"help": "channels of a word"})  # becomes --width


@register_model("bag", dataclass=BagConfig)
class Bag(BaseFairseqModel):
    def __init__(self, cfg, task):
        super().__init__()
        self.words = nn.Embedding(len(task.source_dictionary), cfg.width)

    @classmethod
    def build_model(cls, cfg, task):
        return cls(cfg, task)

    def forward(self, src_tokens, masked_tokens=None, **unused):  # int and bool, both (B, T)
        mean_B1C = self.words(src_tokens).mean(dim=1, keepdim=True)
        logits_BTV = (mean_B1C @ self.words.weight.T).expand(-1, src_tokens.shape[1], -1)
        # only the positions that are asked for; the second value is anything else of interest
        return logits_BTV if masked_tokens is None else logits_BTV[masked_tokens], {}
