"""``fairseq.models.transformer`` for plug-ins: its names, and a model of encoder and decoder.

There is no ``--arch transformer``: translation is out of scope. A plug-in that registers a model
of its own may build it from these.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fairseq.config.schema import FairseqDataclass
from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.base import FairseqDecoder, FairseqEncoder, FairseqEncoderDecoderModel
from fairseq.modules.initial import Embedding, Linear
from fairseq.plugin_names.transformer.config import (
    DEFAULT_MAX_SOURCE_POSITIONS,
    DEFAULT_MAX_TARGET_POSITIONS,
    DEFAULT_MIN_PARAMS_TO_WRAP,
    TransformerConfig,
    base_architecture,
)
from fairseq.plugin_names.transformer.decoder import TransformerDecoder, TransformerDecoderBase
from fairseq.plugin_names.transformer.encoder import TransformerEncoder, TransformerEncoderBase
from fairseq.protocols import Settings, Task

__all__ = [
    "DEFAULT_MAX_SOURCE_POSITIONS",
    "DEFAULT_MAX_TARGET_POSITIONS",
    "DEFAULT_MIN_PARAMS_TO_WRAP",
    "Embedding",
    "Linear",
    "TransformerConfig",
    "TransformerDecoder",
    "TransformerDecoderBase",
    "TransformerEncoder",
    "TransformerEncoderBase",
    "TransformerModel",
    "TransformerModelBase",
    "base_architecture",
]


class TransformerModelBase(FairseqEncoderDecoderModel):
    """An encoder and a decoder."""

    encoder_class: type[TransformerEncoderBase] = TransformerEncoderBase
    decoder_class: type[TransformerDecoderBase] = TransformerDecoderBase

    def __init__(self, cfg: Settings, encoder: FairseqEncoder, decoder: FairseqDecoder) -> None:
        super().__init__(encoder, decoder)
        self.cfg, self.supports_align_args = cfg, True

    @classmethod
    def build_model(cls, cfg: FairseqDataclass, task: Task) -> TransformerModelBase:
        source, target = task.source_dictionary, task.target_dictionary
        settings = TransformerConfig.from_namespace(cfg)
        encoder_table = cls.build_embedding(cfg, source, settings.encoder.embed_dim)
        shared = settings.share_all_embeddings
        decoder_dim = settings.decoder.input_dim or settings.decoder.embed_dim
        table = encoder_table if shared else cls.build_embedding(cfg, target, decoder_dim)
        if shared:
            settings.share_decoder_input_output_embed = True
            cfg.share_decoder_input_output_embed = True
        encoder = cls.build_encoder(cfg, source, encoder_table)
        return cls(cfg, encoder, cls.build_decoder(cfg, target, table))

    @classmethod
    def build_embedding(
        cls, cfg: Settings, dictionary: Dictionary, embed_dim: int | None, path: str | None = None
    ) -> nn.Embedding:
        """Return an embedding table."""
        assert embed_dim is not None
        return Embedding(len(dictionary), embed_dim, dictionary.pad())

    @classmethod
    def build_encoder(cls, cfg: Settings, src_dict: Dictionary, embed_tokens: nn.Embedding) -> Any:
        """Return the encoder."""
        return cls.encoder_class(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: Settings, tgt_dict: Dictionary, embed_tokens: nn.Embedding) -> Any:
        """Return the decoder."""
        skip = TransformerConfig.from_namespace(cfg).no_cross_attention
        return cls.decoder_class(cfg, tgt_dict, embed_tokens, no_encoder_attn=skip)

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        prev_output_tokens: Tensor | None = None,
        return_all_hiddens: bool = True,
        features_only: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return ``(logits (B, T, V), extra)`` for the target so far, (B, T)."""
        assert prev_output_tokens is not None
        encoded = self.encoder(src_tokens, src_lengths, return_all_hiddens=return_all_hiddens)
        return self.decoder(
            prev_output_tokens,
            encoder_out=encoded,
            features_only=features_only,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
        )


class TransformerModel(TransformerModelBase):
    """The same, from a flat Namespace."""

    encoder_class, decoder_class = TransformerEncoder, TransformerDecoder

    @classmethod
    def build_model(cls, args: FairseqDataclass, task: Task) -> TransformerModelBase:
        """Fill in what ``args`` leaves open, and build."""
        base_architecture(args)
        return super().build_model(args, task)
