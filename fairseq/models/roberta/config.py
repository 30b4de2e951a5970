"""The settings of RoBERTa, and what its encoder computes under them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

from fairseq.config.schema import (
    SHARE,
    option,
)
from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.base import Activation, ModelConfig
from fairseq.modules.transformer_encoder import EncoderShape
from fairseq.modules.transformer_layer import LayerShape


@dataclass
class RobertaConfig(ModelConfig):
    """Settings of RoBERTa; those marked new are not in the original."""

    side = "encoder"

    encoder_layers: int = option(12, "number of layers", minimum=0)
    encoder_embed_dim: int = option(768, "width of the model", minimum=1)
    encoder_ffn_embed_dim: int = option(3072, "width of the feed-forward networks", minimum=1)
    encoder_attention_heads: int = option(12, "attention heads", minimum=1)
    activation_fn: Activation = option("gelu", "activation of the feed-forward networks")
    pooler_activation_fn: Activation = option("tanh", "activation of classification heads")
    encoder_normalize_before: bool = option(False, "layer norm before each block, not after it")
    layernorm_embedding: bool = option(True, "layer norm on the embeddings", positive=True)
    dropout: float = option(0.1, "dropout on hidden states", **SHARE)
    attention_dropout: float = option(0.1, "dropout on attention weights", **SHARE)
    activation_dropout: float = option(0.0, "dropout inside the feed-forward networks", **SHARE)
    pooler_dropout: float = option(0.0, "dropout in classification heads", **SHARE)
    max_positions: int | None = option(
        None, "longest input where positions are learned (default: --tokens-per-sample)", minimum=1
    )
    load_checkpoint_heads: bool = option(
        False, "also load the classification heads of a checkpoint"
    )
    untie_weights_roberta: bool = option(False, "give the head weights of its own")
    encoder_layerdrop: float = option(0.0, "probability of skipping a layer in training", **SHARE)
    encoder_layers_to_keep: str | None = option(None, "layers to keep on loading, such as 0,2,4")
    min_params_to_wrap: int = option(
        100_000_000, "smallest module that FSDP shards on its own", inert=True, minimum=0
    )
    head: Literal["roberta", "clap", "none"] = option("roberta", "vocabulary head", new=True)
    clap_initial_beta: float = option(1.0, "first value of the CLAP head's scale", new=True)
    clap_normalize: bool = option(
        True,
        "CLAP: embeddings of unit length, at the input and in the head",
        positive=True,
        new=True,
    )
    clap_normalize_hidden: bool = option(False, "CLAP: hidden states of unit length too", new=True)
    position: Literal["learned", "sinusoidal", "alibi", "alibi-asymmetric", "none"] = option(
        "learned", "how tokens know where they stand", new=True
    )
    mask_embedding: Literal["learned", "zero"] = option(
        "learned", "<mask> is a learned row, or the zero vector outside the table", new=True
    )
    scale_embedding: bool = option(False, "multiply token embeddings by sqrt(width)", new=True)
    embedding_multiplier: float | None = option(
        None,
        "multiply token embeddings by this (default: 1, or as --scale-embedding)",
        new=True,
        above=0,
    )
    alibi_slopes: list[float] | None = option(
        None, "ALiBi: the slope of every head (default: the formula's)", new=True, minimum=0
    )
    segments: int = option(0, "segment embeddings, 2 for BERT", new=True, minimum=0)
    layer_norm_eps: float = option(1e-5, "added to variances, 1e-12 for BERT", new=True, minimum=0)
    position_offset: int | None = option(
        None,
        "position of the first token: pad id + 1 if not given, 0 for BERT",
        new=True,
        minimum=0,
    )
    attention_backend: str = option(
        "auto", "auto, sdpa, explicit, rows, reference, flex, flash or xformers", new=True
    )
    unpadded: Literal["auto", "on", "off"] = option(
        "auto",
        "give layers the tokens without their padding (auto: on a CPU, outside training)",
        new=True,
    )
    layer_norm: Literal["torch", "apex"] = option(
        "torch", "implementation of layer norms", new=True
    )
    freeze_encoder: bool = option(
        False, "train classification heads only, on features without dropout", new=True
    )
    pooling: Literal["cls", "mean", "concat", "positions"] = option(
        "cls",
        "what heads classify: first token, mean of the tokens, both, or all tokens side by side",
        new=True,
    )
    probe_head: Literal["dense", "linear"] = option(
        "dense",
        "classification heads: a hidden layer and a linear map, or that map alone",
        new=True,
    )
    checkpoint_activations: bool = option(False, "recompute layers to save memory", new=True)

    def settled(self, length: int | None) -> Self:
        """Return the settings with as many positions as the task's samples have, if it says so."""
        if self.max_positions is not None or length is None:
            return self
        return dataclasses.replace(self, max_positions=length)


def encoder_shape(
    config: RobertaConfig, dictionary: Dictionary, max_positions: int
) -> EncoderShape:
    """Return what an encoder of this configuration computes."""
    clap = config.head == "clap"
    layer = LayerShape(
        embed_dim=config.encoder_embed_dim,
        ffn_dim=config.encoder_ffn_embed_dim,
        heads=config.encoder_attention_heads,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        activation=config.activation_fn,
        pre_norm=config.encoder_normalize_before,
        eps=config.layer_norm_eps,
        norm=config.layer_norm,
        backend=config.attention_backend,
    )
    return EncoderShape(
        vocabulary=len(dictionary),
        padding_idx=dictionary.pad(),
        max_positions=max_positions,
        layers=config.layers(),
        layer=layer,
        position=config.position,
        position_offset=config.position_offset,
        normalize_embedding=clap and config.clap_normalize,
        zero_masking=config.mask_embedding == "zero",
        trainable_pad=clap or config.mask_embedding == "zero",
        scale_embedding=config.scale_embedding,
        embedding_multiplier=config.embedding_multiplier,
        alibi_slopes=None if config.alibi_slopes is None else tuple(config.alibi_slopes),
        layernorm_embedding=config.layernorm_embedding,
        layerdrop=config.encoder_layerdrop,
        segments=config.segments,
        checkpoint_activations=config.checkpoint_activations,
        unpadded=config.unpadded,
    )
