"""A vocabulary head in one file: ``--arch roberta_scaled`` has one factor for all logits.

A head says what is multiplied: hidden states, a table with a row for every word, a bias or None.
Losses, generation and the hub all ask it; whole logits are never kept.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from fairseq.models import register_model
from fairseq.models.roberta import RobertaConfig, RobertaEncoder, RobertaModel
from fairseq.modules.heads import Projection, VocabularyHead


@dataclass
class ScaledConfig(RobertaConfig):  # the flags of --arch roberta, such as --encoder-layers
    first_scale: float = field(default=1.0, metadata={"help": "factor of the logits at the start"})


class ScaledHead(VocabularyHead):
    def __init__(self, weight_VC, scale):
        super().__init__()
        # registered as "weight", the name that the table of a head has in checkpoints
        self.weight, self.scale = weight_VC, nn.Parameter(torch.tensor(scale))

    def projection(self, hidden_NC):
        return Projection(hidden_NC * self.scale, self.weight, None)


class ScaledEncoder(RobertaEncoder):
    def build_lm_head(self, embed_dim, output_dim, activation_fn, weight):
        # In place of RoBERTa's head, dense layer and layer norm included, whatever --head says
        # (clap would still change the embeddings). To keep them, change what
        # super().build_lm_head(...) returns. Linear layers of a head start as BERT's.
        if weight is None:  # --untie-weights-roberta; else the table of embeddings
            weight = nn.Linear(embed_dim, output_dim, bias=False).weight
        return ScaledHead(weight, self.args.first_scale)


@register_model("roberta_scaled", dataclass=ScaledConfig)
class ScaledRoberta(RobertaModel):
    encoder_class = ScaledEncoder
