"""The model, its encoder and its layers."""

from fairseq.models.transformer import TransformerEncoder
from torch import nn

from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import (
    RobertaEncoder,
    RobertaModel,
    init_bert_params,
    roberta_base_architecture,
)
from fairseq.modules import TransformerEncoderLayer
from fairseq.utils import safe_hasattr

from .attention import SummaryAttention


class SqueezedLayer(TransformerEncoderLayer):
    def __init__(self, args, shared):
        self.shared = [shared]  # in a list: it belongs to the encoder
        super().__init__(args)

    def build_self_attention(self, embed_dim, args):
        return SummaryAttention(
            embed_dim,
            args.encoder_attention_heads,
            args.dropout,
            args.max_positions,
            args.summaries,
            self.shared[0],
            args.quant_noise_pq,
            args.quant_noise_pq_block_size,
        )


class SqueezedEncoder(TransformerEncoder):
    def __init__(self, args, dictionary, embed_tokens):
        self.sums = None
        super().__init__(args, dictionary, embed_tokens)

    def build_encoder_layer(self, args):
        if self.args.share_sums and self.sums is None:
            self.sums = nn.Linear(self.args.max_positions, self.args.summaries, bias=False)
        return SqueezedLayer(args, self.sums)


class SqueezedRobertaEncoder(RobertaEncoder):
    def build_encoder(self, args, dictionary, embed_tokens):
        encoder = SqueezedEncoder(args, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder


@register_model("squeezed_roberta")
class SqueezedModel(RobertaModel):
    @staticmethod
    def add_args(parser):
        RobertaModel.add_args(parser)
        parser.add_argument("--summaries", type=int, help="number of summaries")
        parser.add_argument("--share-sums", action="store_true")

    @classmethod
    def build_model(cls, args, task):
        squeezed_roberta(args)
        if not safe_hasattr(args, "max_positions"):
            args.max_positions = args.tokens_per_sample
        return cls(args, SqueezedRobertaEncoder(args, task.source_dictionary))


@register_model_architecture("squeezed_roberta", "squeezed_roberta")
def squeezed_roberta(args):
    args.summaries = getattr(args, "summaries", 4)
    args.share_sums = getattr(args, "share_sums", False)
    roberta_base_architecture(args)


@register_model_architecture("squeezed_roberta", "squeezed_roberta_small")
def squeezed_roberta_small(args):
    args.encoder_layers = getattr(args, "encoder_layers", 2)
    squeezed_roberta(args)
