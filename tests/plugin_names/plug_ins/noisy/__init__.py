"""Fine-tuning with a price for answers that noise on the embeddings changes."""

import math

import torch
import torch.nn.functional as F

from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion


@register_criterion("noisy_sentence_prediction")
class NoisySentencePrediction(FairseqCriterion):
    def __init__(self, task, spread, noise_weight, classification_head_name, regression_target):
        super().__init__(task)
        self.spread, self.noise_weight = spread, noise_weight
        self.classification_head_name = classification_head_name
        assert not regression_target

    @staticmethod
    def add_args(parser):
        parser.add_argument("--spread", type=float, default=1e-3)
        parser.add_argument("--noise-weight", type=float, default=1.0)
        parser.add_argument("--classification-head-name", default="sentence_classification_head")
        parser.add_argument("--regression-target", action="store_true")

    def _logits(self, model, sample, embeddings):
        return model(
            **sample["net_input"],
            features_only=True,
            return_all_hiddens=True,
            classification_head_name=self.classification_head_name,
            token_embeddings=embeddings,
        )[0]

    def forward(self, model, sample, reduce=True):
        assert self.classification_head_name in model.classification_heads
        embed = model.encoder.sentence_encoder.embed_tokens
        embeddings = embed(sample["net_input"]["src_tokens"])
        logits = self._logits(model, sample, embeddings)
        targets = model.get_targets(sample, [logits]).view(-1)
        loss = F.nll_loss(F.log_softmax(logits.float(), dim=-1), targets, reduction="sum")
        drift = loss.new_zeros(())
        if model.training:
            noise = torch.randn_like(embeddings) * self.spread
            noised = self._logits(model, sample, embeddings.detach().clone() + noise)
            drift = F.kl_div(
                F.log_softmax(noised.float(), dim=-1),
                F.softmax(logits.float(), dim=-1),
                reduction="sum",
            )
        sample_size = targets.numel()
        logging_output = {
            "loss": utils.item(loss.data),
            "drift": utils.item(drift.data),
            "ntokens": sample["ntokens"],
            "nsentences": sample_size,
            "sample_size": sample_size,
            "ncorrect": utils.item((logits.argmax(dim=1) == targets).sum()),
        }
        return loss + self.noise_weight * drift, sample_size, logging_output

    @staticmethod
    def aggregate_logging_outputs(logging_outputs):
        total = {
            name: sum(log.get(name, 0) for log in logging_outputs)
            for name in ("loss", "drift", "ntokens", "nsentences", "sample_size", "ncorrect")
        }
        size = total["sample_size"]
        return {
            **total,
            "loss": total["loss"] / size / math.log(2),
            "drift": total["drift"] / size,
            "accuracy": total["ncorrect"] / size,
        }
