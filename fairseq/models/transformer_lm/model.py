"""Causal language models: a Transformer decoder that predicts the next token.

``--position`` says how tokens know where they stand, ``--head`` what the hidden states are
projected on; GPT, GPT-2, GPT-3, GPT-NeoX, NormFormer and Baevski and Auli's models are
combinations of settings.

Shapes: B batch, T tokens (in incremental decoding the new ones), S all tokens so far, C channels,
V vocabulary, N predicted positions.

Source: Radford et al. 2018 (GPT); Baevski and Auli 2019 (adaptive input and softmax).
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.checkpoint.tensor_names import upgrade_decoder_state
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.models import register_model
from fairseq.models.base import FairseqLanguageModel
from fairseq.models.transformer_lm.config import (
    TransformerLanguageModelConfig,
    cutoffs,
)
from fairseq.models.transformer_lm.decoder import TransformerDecoder
from fairseq.modules.adaptive_input import AdaptiveInput
from fairseq.modules.adaptive_softmax import AdaptiveProjection
from fairseq.modules.flops import FlopShape, matrix_entries
from fairseq.modules.heads import Projection, vocabulary_entries
from fairseq.modules.initial import Embedding
from fairseq.protocols import Settings, StateDict, Task

__all__ = ["TransformerLanguageModel"]
logger = logging.getLogger("fairseq.models.transformer_lm")

PUBLISHED = "https://dl.fbaipublicfiles.com/fairseq/models/lm"


@register_model("transformer_lm", dataclass=TransformerLanguageModelConfig)
class TransformerLanguageModel(FairseqLanguageModel):
    """A Transformer decoder as a language model."""

    decoder: TransformerDecoder

    def __init__(self, decoder: TransformerDecoder) -> None:
        super().__init__(decoder)
        # the decoder of a plug-in keeps its own settings, or none
        settings = getattr(decoder, "config", None) or getattr(decoder, "args", Namespace())
        self.args = settings
        self.config = TransformerLanguageModelConfig.from_namespace(settings)
        if self.config.freeze_decoder:
            decoder.requires_grad_(False)
            decoder.vocabulary_head().requires_grad_(True)

    def train(self, mode: bool = True) -> TransformerLanguageModel:
        """Switch dropout on or off; a frozen decoder stays without."""
        super().train(mode)
        if self.config.freeze_decoder:
            self.decoder.eval()
        return self

    @classmethod
    def build_model(cls, args: Settings, task: Task) -> TransformerLanguageModel:
        """Build the model; ``max_target_positions`` falls back to the task's sample length."""
        given = TransformerLanguageModelConfig.from_namespace(args)
        config = given.settled(getattr(task.cfg, "tokens_per_sample", None))
        dictionary = task.source_dictionary
        embed_tokens = cls.build_embedding(config, dictionary)
        target_dictionary = getattr(task, "target_dictionary", None) or dictionary
        return cls(TransformerDecoder(config, target_dictionary, embed_tokens))

    @classmethod
    def build_embedding(cls, args: Settings, dictionary: Dictionary, *unused: Any) -> Any:
        """Return the embedding table, N(0, C^-0.5) with a zero row for pads, or adaptive input.

        Args:
            args: the settings, of a plug-in perhaps as a Namespace.
            dictionary: of the input.
            *unused: what old callers give, the width among it.
        """
        config = TransformerLanguageModelConfig.from_namespace(args)
        size, dim, pad = len(dictionary), config.decoder_input_dim, dictionary.pad()
        if config.adaptive_input:
            bands = cutoffs(str(config.adaptive_input_cutoff), "--adaptive-input-cutoff")
            factor = config.adaptive_input_factor
            return AdaptiveInput(size, pad, dim, factor, config.decoder_embed_dim, bands)
        # a pad row of zero cannot be normalised
        return Embedding(size, dim, None if config.head == "clap" else pad)

    def forward(
        self, src_tokens: Tensor, predicted_positions: Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return ``(logits, extra)`` for tokens (B, T).

        Args:
            src_tokens: int64 ids; see :meth:`TransformerDecoder.extract_features`.
            predicted_positions: flat indices, int64 of shape (N,): return the operands of their
                projection instead of logits.
            **kwargs: ``incremental_state``, ``features_only``, ``return_all_hiddens``.
        """
        if predicted_positions is None:
            return self.decoder(src_tokens, **kwargs)
        hidden_BTC, extra = self.decoder.extract_features(src_tokens, **kwargs)
        hidden_NC = hidden_BTC.flatten(0, 1).index_select(0, predicted_positions)
        operands = self.projection(hidden_NC)
        if isinstance(operands, Projection):
            # as views: DDP misses parameters that leave the forward pass as they are
            operands = operands._replace(weight_VC=operands.weight_VC.view_as(operands.weight_VC))
        return operands, extra

    @property
    def projection(self) -> Callable[[Tensor], Projection | AdaptiveProjection]:
        """Return what makes the operands of the vocabulary projection from hidden states (N, C).

        Raises:
            AttributeError: if a plug-in makes the logits in a way of its own.
        """
        if getattr(type(self.decoder), "output_layer", None) is not TransformerDecoder.output_layer:
            raise AttributeError("projection")
        return self._projection

    def _projection(self, hidden_NC: Tensor) -> Projection | AdaptiveProjection:
        if self.decoder.adaptive_softmax is not None:
            return self.decoder.adaptive_softmax.projection(hidden_NC)
        return self.decoder.vocabulary_head().projection(hidden_NC)

    def flop_shape(self) -> FlopShape | None:
        """See the base class; nobody counted a decoder of a plug-in."""
        if type(self.decoder) is not TransformerDecoder:
            return None
        decoder, counts = self.decoder, self.decoder.dictionary.count
        tokens = matrix_entries([*decoder.layers, decoder.project_in_dim, decoder.project_out_dim])
        if isinstance(decoder.embed_tokens, AdaptiveInput):
            tokens += decoder.embed_tokens.entries(counts)
        predicted = vocabulary_entries(decoder.output_projection)
        if decoder.adaptive_softmax is not None:
            predicted = decoder.adaptive_softmax.entries(counts)
        sizes = len(decoder.dictionary), decoder.config.decoder_input_dim
        return FlopShape(decoder.shape, len(decoder.layers), *sizes, tokens, predicted)

    def embedding_table(self) -> Tensor:
        """Return the input embeddings, (V, C), of unit length if they enter the model so.

        Raises:
            ConfigError: if there is no such table, or it is not as wide as the hidden states.
        """
        config = self.decoder.config
        if config.adaptive_input or config.decoder_input_dim != config.decoder_output_dim:
            raise ConfigError(
                "this model has no table of embeddings as wide as its hidden states: it needs "
                "--decoder-input-dim equal to --decoder-output-dim, and no --adaptive-input"
            )
        weight_VC = self.decoder.table()
        clap = config.head == "clap" and config.clap_normalize
        return nn.functional.normalize(weight_VC, dim=-1) if clap else weight_VC

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Return logits from hidden states."""
        return self.decoder.output_layer(features, **kwargs)

    def max_decoder_positions(self) -> int:
        """Return the longest input of the decoder."""
        return self.decoder.max_positions()

    def upgrade_state_dict_named(self, state_dict: StateDict, name: str) -> None:
        """Rename old keys and fill tied tensors, in place."""
        upgrade_decoder_state(state_dict)
        table: Tensor | None = state_dict.get("decoder.embed_tokens.weight")
        output = "decoder.output_projection.weight"
        projection = self.decoder.output_projection
        if projection is None:
            for key in [key for key in state_dict if key.startswith("decoder.output_projection.")]:
                del state_dict[key]
        elif table is None or "weight" not in projection.state_dict():
            pass  # the head of a plug-in has the tensors that the file has
        elif output not in state_dict and table.shape == projection.weight.shape:
            logger.warning("the file has no vocabulary head: it begins as its embeddings")
            state_dict[output] = table
        elif projection.weight is self.decoder.embed_tokens.weight:
            kept = state_dict.setdefault(output, table)
            if kept.shape == table.shape and not torch.equal(kept, table):
                logger.warning(
                    "the file's output weights differ from its embeddings, but this model ties "
                    "them: the embeddings are used"
                )
            state_dict[output] = table
        version = float(state_dict.setdefault("decoder.version", torch.tensor([1.0]))[0])
        if version <= 2 and not any(key.startswith("decoder.layer_norm.") for key in state_dict):
            self.decoder.layer_norm = None  # models of that time had none

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        words: dict[str, Any] = {
            "gbw.adaptive_huge": f"{PUBLISHED}/adaptive_lm_gbw_huge.tar.bz2",
            "wiki103.adaptive": f"{PUBLISHED}/adaptive_lm_wiki103.v2.tar.bz2",
        }
        for language in ("en", "de", "ru"):
            path = f"{PUBLISHED}/wmt19.{language}.tar.bz2"
            words[f"wmt19.{language}"] = {"path": path, "tokenizer": "moses", "bpe": "fastbpe"}
        for language in ("en", "ta", "iu.news", "iu.nh"):
            path = f"{PUBLISHED}/wmt20.{language}.tar.gz"
            encoders = {"tokenizer": "space", "bpe": "sentencepiece"}
            words[f"wmt20.{language}"] = {"path": path, **encoders}
        return {f"transformer_lm.{name}": entry for name, entry in words.items()}
