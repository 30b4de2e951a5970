"""A criterion in one file: ``--criterion smoothed_masked_lm`` is the masked-LM loss, smoothed."""

from dataclasses import dataclass, field

import torch.nn.functional as F

from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.dataclass import FairseqDataclass


@dataclass
class SmoothedConfig(FairseqDataclass):
    smoothing: float = field(default=0.1, metadata={"help": "share of the uniform distribution"})


@register_criterion("smoothed_masked_lm", dataclass=SmoothedConfig)
class SmoothedMaskedLm(MaskedLmLoss):  # brings reduce_metrics, which logs loss and perplexity
    def __init__(self, cfg, task):
        super().__init__(cfg, task)
        self.smoothing = cfg.smoothing

    def forward(self, model, sample, reduce=True):
        target_BT = sample["target"]  # padding_idx wherever nothing is predicted
        predicted_BT = target_BT != self.padding_idx
        logits_NV = model(**sample["net_input"])[0][predicted_BT]
        smooth = {"label_smoothing": self.smoothing, "reduction": "sum"}
        loss = F.cross_entropy(logits_NV.float(), target_BT[predicted_BT], **smooth)
        figures = {"loss": loss.detach(), "sample_size": len(logits_NV)}
        figures |= {name: sample[name] for name in ("ntokens", "nsentences")}
        return loss, len(logits_NV), figures  # a sum, its denominator, what is logged
