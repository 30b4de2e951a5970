"""Cross-entropy and a price that the model itself names."""

import math
from dataclasses import dataclass

from omegaconf import II

from fairseq import metrics, utils
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.dataclass import FairseqDataclass


@dataclass
class PricedConfig(FairseqDataclass):
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("priced_cross_entropy", dataclass=PricedConfig)
class PricedCriterion(CrossEntropyCriterion):
    def __init__(self, task, sentence_avg):
        super().__init__(task, sentence_avg)

    def forward(self, model, sample, reduce=True):
        net_output = model(**sample["net_input"])
        loss, price, span = self.compute_loss(model, net_output, sample, reduce=reduce)
        size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": size,
            "total_loss": (loss + price * size).data,
            "span": span * size,
        }
        return loss + price * size, size, logging_output

    def compute_loss(self, model, net_output, sample, reduce=True):
        loss, _ = super().compute_loss(model, net_output, sample, reduce)
        return loss, model.price(), utils.item(model.decoder.span.detach())

    @staticmethod
    def reduce_metrics(logging_outputs):
        def total(name):
            return sum(log.get(name, 0) for log in logging_outputs)

        size = total("sample_size")
        metrics.log_scalar("loss", total("loss") / size / math.log(2), size, round=3)
        metrics.log_scalar("span", total("span") / size, size, round=3)
        metrics.log_scalar("total_loss", total("total_loss") / size / math.log(2), size, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["loss"].avg))

    @staticmethod
    def logging_outputs_can_be_summed():
        return True
