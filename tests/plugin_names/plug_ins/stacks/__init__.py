"""Models from the layers and stacks that plug-ins import, a schedule, and small parts."""

from dataclasses import dataclass

import torch
from fairseq.models.transformer import (
    DEFAULT_MAX_TARGET_POSITIONS,
    Embedding,
    Linear,
    TransformerConfig,
    TransformerDecoder,
    TransformerDecoderBase,
    TransformerModelBase,
)
from fairseq.modules.learned_positional_embedding import LearnedPositionalEmbedding
from fairseq.modules.sinusoidal_positional_embedding import SinusoidalPositionalEmbedding
from fairseq.optim.lr_scheduler.cosine_lr_scheduler import CosineLRSchedule, CosineLRScheduleConfig
from torch import nn

from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    BaseFairseqModel,
    FairseqLanguageModel,
    register_model,
    register_model_architecture,
)
from fairseq.models.roberta import RobertaEncoder, RobertaModel, init_bert_params
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from fairseq.modules import (
    FairseqDropout,
    GradMultiply,
    LayerDropModuleList,
    LayerNorm,
    MultiheadAttention,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    TransformerSentenceEncoder,
)
from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask


@register_model("stack_lm", dataclass=TransformerConfig)
class StackLM(FairseqLanguageModel):
    """A decoder from a nested configuration."""

    @classmethod
    def build_model(cls, cfg, task):
        cfg.decoder.layers, cfg.decoder.embed_dim, cfg.decoder.ffn_embed_dim = 2, 32, 32
        cfg.decoder.attention_heads, cfg.decoder.layerdrop = 2, 0.2
        assert cfg.max_target_positions == DEFAULT_MAX_TARGET_POSITIONS
        words = task.target_dictionary
        table = Embedding(len(words), 32, words.pad())
        return cls(TransformerDecoderBase(cfg, words, table, no_encoder_attn=True))


class GatedLayer(TransformerDecoderLayer):
    def build_fc1(self, input_dim, output_dim, q_noise, qn_block_size):
        return nn.Sequential(Linear(input_dim, 2 * output_dim), nn.GLU())


class GatedDecoder(TransformerDecoder):
    def build_decoder_layer(self, args, no_encoder_attn=False):
        assert self.args.gates == 3
        return GatedLayer(args, no_encoder_attn)


@register_model("gated_lm")
class GatedLM(TransformerLanguageModel):
    """Ours, with a decoder of the plug-in's, from a flat Namespace."""

    @staticmethod
    def add_args(parser):
        TransformerLanguageModel.add_args(parser)
        parser.add_argument("--gates", type=int, default=3)

    @classmethod
    def build_model(cls, args, task):
        table = cls.build_embedding(args, task.source_dictionary, args.decoder_input_dim)
        return cls(GatedDecoder(args, task.target_dictionary, table, no_encoder_attn=True))


@register_model_architecture("gated_lm", "gated_lm")
def gated_lm(args):
    args.decoder_layers = getattr(args, "decoder_layers", 2)
    args.decoder_embed_dim = getattr(args, "decoder_embed_dim", 32)
    args.decoder_attention_heads = getattr(args, "decoder_attention_heads", 2)
    base_lm_architecture(args)


@dataclass
class BareConfig(FairseqDataclass):
    width: int = 32


@register_model("bare_layers", dataclass=BareConfig)
class BareLayers(BaseFairseqModel):
    """Layers and small parts, put together by hand."""

    def __init__(self, width, words):
        super().__init__()
        cfg = TransformerConfig()
        cfg.encoder_embed_dim = cfg.decoder_embed_dim = width
        cfg.encoder_ffn_embed_dim = cfg.decoder_ffn_embed_dim = width
        cfg.encoder_attention_heads = cfg.decoder_attention_heads = 2
        self.pad = words.pad()
        self.embed = nn.Embedding(len(words), width, self.pad)
        self.learned = LearnedPositionalEmbedding(64 + self.pad + 1, width, self.pad)
        self.sines = SinusoidalPositionalEmbedding(width, self.pad, 64)
        self.layers = LayerDropModuleList(p=0.2)
        self.layers.extend(TransformerEncoderLayer(cfg) for _ in range(2))
        self.attention = MultiheadAttention(width, 2, self_attention=True)
        self.dropout_module = FairseqDropout(0.1, module_name="x")
        self.norm = LayerNorm(width)
        self.apply(init_bert_params)

    @classmethod
    def build_model(cls, cfg, task):
        return cls(cfg.width, task.source_dictionary)

    @property
    def supported_targets(self):
        return {"future"}

    def forward(self, src_tokens, src_lengths=None, **unused):
        x = self.embed(src_tokens) + self.learned(src_tokens) + self.sines(src_tokens)
        x = GradMultiply.apply(self.dropout_module(x).transpose(0, 1), 0.5)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, src_tokens.eq(self.pad), attn_mask=future)
        mask = torch.zeros(future.shape).masked_fill(future, float("-inf"))
        x, weights = self.attention(x, x, x, attn_mask=mask)
        assert weights.shape == (src_tokens.shape[0], *future.shape)
        return self.norm(x).transpose(0, 1) @ self.embed.weight.T, None


class OldRobertaEncoder(RobertaEncoder):
    """The encoder made of plain numbers, and a head of the plug-in's."""

    def build_encoder(self, args, dictionary, embed_tokens):
        sizes = 1, args.encoder_embed_dim, 32, 2
        words = dictionary.pad(), len(dictionary)
        return _AsEncoder(TransformerSentenceEncoder(*words, *sizes, apply_bert_init=True))

    def build_lm_head(self, embed_dim, output_dim, activation_fn, weight):
        return _Head(embed_dim, output_dim)


class _AsEncoder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.embed_tokens = inner, inner.embed_tokens

    def forward(self, src_tokens, return_all_hiddens=False, token_embeddings=None):
        states, _ = self.inner(src_tokens, token_embeddings=token_embeddings)
        return {"encoder_out": states[-1:], "encoder_states": states}


class _Head(nn.Module):
    def __init__(self, dim, words):
        super().__init__()
        self.out = nn.Linear(dim, words)

    def forward(self, features, masked_tokens=None):
        return self.out(features if masked_tokens is None else features[masked_tokens])


@register_model("old_roberta")
class OldRoberta(RobertaModel):
    @classmethod
    def build_model(cls, args, task):
        return cls(args, OldRobertaEncoder(args, task.source_dictionary))


@register_model_architecture("old_roberta", "old_roberta")
def old_roberta(args):
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 32)


@register_model_architecture("roberta", "roberta_small")
def roberta_small(args):
    """A name of the catalogue, for another size."""
    args.encoder_layers, args.encoder_embed_dim, args.encoder_ffn_embed_dim = 1, 16, 16
    args.encoder_attention_heads = 2


@register_model("copier", dataclass=TransformerConfig)
class Copier(TransformerModelBase):
    """An encoder and a decoder."""

    @classmethod
    def build_model(cls, cfg, task):
        for side in (cfg.encoder, cfg.decoder):
            side.layers, side.embed_dim, side.ffn_embed_dim, side.attention_heads = 1, 32, 32, 2
        cfg.share_all_embeddings = True
        return super().build_model(cfg, task)


@register_task("copying", dataclass=LanguageModelingConfig)
class Copying(LanguageModelingTask):
    """The source is the text, and so is the target."""

    def train_step(self, sample, model, *rest, **kwargs):
        return super().train_step(self._with_target(sample), model, *rest, **kwargs)

    def valid_step(self, sample, model, criterion):
        return super().valid_step(self._with_target(sample), model, criterion)

    def build_model(self, cfg, from_checkpoint=False):
        self.targets = ["self"]
        from fairseq import models

        return models.build_model(cfg, self)

    @staticmethod
    def _with_target(sample):
        inputs = sample["net_input"]
        before = torch.roll(sample["target"], 1, dims=1)
        return {**sample, "net_input": {**inputs, "prev_output_tokens": before}}


@register_criterion("halved", dataclass=CrossEntropyCriterionConfig)
class Halved(CrossEntropyCriterion):
    """Half of the cross-entropy, of any model."""

    def compute_loss(self, model, net_output, sample, reduce=True):
        loss, _ = super().compute_loss(model, net_output, sample, reduce)
        return loss / 2, loss


@register_lr_scheduler("floored_cosine", dataclass=CosineLRScheduleConfig)
class FlooredCosine(CosineLRSchedule):
    def step_update(self, num_updates):
        super().step_update(num_updates)
        self.optimizer.set_lr(max(self.optimizer.get_lr(), 1e-4))
        return self.optimizer.get_lr()
