"""The decoder stack of causal language models: embeddings, causal layers, output layer.

Shapes: B batch, T tokens (in incremental decoding the new ones), S all tokens so far, C channels,
H heads, D channels of a head, V vocabulary, N predicted positions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.models.base import FairseqIncrementalDecoder
from fairseq.models.transformer_lm.config import (
    DEFAULT_MAX_TARGET_POSITIONS,
    TransformerLanguageModelConfig,
    cutoffs,
    layer_shape,
)
from fairseq.modules.adaptive_input import AdaptiveInput
from fairseq.modules.adaptive_softmax import AdaptiveSoftmax
from fairseq.modules.heads import ClapHead, LinearHead, VocabularyHead
from fairseq.modules.initial import Linear, redrawn
from fairseq.modules.pointwise import LayerNorm
from fairseq.modules.positions import (
    LearnedPositionalEmbedding,
    RotaryPositions,
    SinusoidalPositionalEmbedding,
    alibi_slopes,
)
from fairseq.modules.transformer_layer import QueryKeyValue, TransformerLayer
from fairseq.ops.attention_context import Alibi, AttentionContext
from fairseq.ops.dropout import dropout
from fairseq.ops.transforms import is_transformed

UNLIMITED = 1_000_000


# layer number -> keys and values of the tokens so far, (B, H, S, D) each
IncrementalState = dict[int, dict[str, Tensor]]


def adaptive_softmax(cfg: Any, words: int, dim: int, table: nn.Module) -> AdaptiveSoftmax:
    """Return the output layer for ``words`` at ``dim`` channels that settings describe.

    It shares the weights of ``table``, an adaptive input, if they say so.
    """
    return AdaptiveSoftmax(
        words,
        dim,
        cutoffs(str(cfg.adaptive_softmax_cutoff), "--adaptive-softmax-cutoff"),
        dropout=cfg.adaptive_softmax_dropout,
        factor=cfg.adaptive_softmax_factor,
        adaptive_inputs=cast("AdaptiveInput", table) if cfg.tie_adaptive_weights else None,
        tie_proj=cfg.tie_adaptive_proj,
    )


class TransformerDecoder(FairseqIncrementalDecoder):
    """Embeddings, causal layers and output layer, under the names of the original's checkpoints.

    Args:
        config: its settings, settled.
        dictionary: of the targets.
        embed_tokens: the embedding table, or adaptive input.
    """

    def __init__(
        self,
        config: TransformerLanguageModelConfig,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding | AdaptiveInput,
    ) -> None:
        super().__init__(dictionary)
        self.config = config
        self.shape = layer_shape(config)
        dim, kind = config.decoder_embed_dim, config.position_kind()
        self.padding_idx = embed_tokens.padding_idx
        self.pad = dictionary.pad()
        # the original's mark of its current layout, by which it knows how to read a file
        self.register_buffer("version", torch.tensor([3.0]))
        self.embed_tokens = embed_tokens
        # embeddings start with std C^-1/2; times C^1/2 they are as large as the positions they
        # are added to
        self.embed_scale = 1.0 if config.no_scale_embedding else dim**0.5
        # a grown model with rows of unit length keeps the factor of the width it comes from
        if config.embedding_multiplier is not None:
            self.embed_scale = config.embedding_multiplier
        inputs, outputs = embed_tokens.embedding_dim, config.decoder_output_dim
        self.project_in_dim = None if inputs == dim else Linear(inputs, dim, bias=False)
        self.embed_positions = self._positions(kind)
        self.layernorm_embedding = self._layer_norm() if config.layernorm_embedding else None
        self.layers = nn.ModuleList(TransformerLayer(self.shape) for _ in range(config.layers()))
        # post-norm layers end in a norm already; of pre-norm ones the residual sum has none
        final_norm = config.decoder_normalize_before and not config.no_decoder_final_norm
        self.layer_norm = self._layer_norm() if final_norm else None
        self.project_out_dim = None if outputs == dim else Linear(dim, outputs, bias=False)
        self.output_projection: VocabularyHead | None = None
        if config.adaptive_softmax_cutoff is not None:
            self.adaptive_softmax = adaptive_softmax(
                config, len(dictionary), config.decoder_output_dim, embed_tokens
            )
        else:
            self.output_projection = self._vocabulary_head()
        heads = config.decoder_attention_heads
        self.alibi = Alibi(alibi_slopes(heads, config.alibi_slopes)) if kind == "alibi" else None
        self.rotary = (
            RotaryPositions(dim // heads, config.rotary_fraction) if kind == "rotary" else None
        )

    # -- parts -----------------------------------------------------------------------------------

    def _layer_norm(self) -> nn.Module:
        return LayerNorm(self.shape.embed_dim, self.shape.eps, implementation=self.shape.norm)

    def _positions(
        self, kind: str
    ) -> LearnedPositionalEmbedding | SinusoidalPositionalEmbedding | None:
        dim, offset = self.shape.embed_dim, self.config.position_offset
        length = self.config.max_target_positions or DEFAULT_MAX_TARGET_POSITIONS
        if kind == "learned":
            first = self.pad + 1 if offset is None else offset
            # as the token embeddings, before their scale
            return redrawn(LearnedPositionalEmbedding(length + first, dim, self.pad, offset))
        if kind == "sinusoidal":
            # one row more than the longest input: positions begin behind the pad's row
            return SinusoidalPositionalEmbedding(dim, self.pad, length + self.pad + 1, offset)
        return None

    def table(self) -> nn.Parameter:
        """Return the one table of embeddings, which adaptive input does not have."""
        return cast("nn.Parameter", self.embed_tokens.weight)

    def _vocabulary_head(self) -> VocabularyHead | None:
        config = self.config
        if config.head == "none":
            return None
        if config.head == "clap":
            return ClapHead(
                self.table(),
                config.clap_initial_beta,
                config.clap_normalize,
                config.clap_normalize_hidden,
            )
        tied = self.table() if config.share_decoder_input_output_embed else None
        size = len(self.dictionary)
        return LinearHead(config.decoder_output_dim, size, tied, config.head_bias)

    # -- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: object = None,
        incremental_state: IncrementalState | None = None,
        features_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return ``(logits (B, T, V), extra)``; see :meth:`extract_features`.

        With ``features_only``, and with the adaptive softmax, which has no logits, hidden states
        (B, T, C) come instead.
        """
        features, extra = self.extract_features(
            prev_output_tokens, encoder_out, incremental_state=incremental_state, **kwargs
        )
        return features if features_only else self.output_layer(features), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: object = None,
        incremental_state: IncrementalState | None = None,
        return_all_hiddens: bool = False,
        qkv_layers: Collection[int] = (),
        documents: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return hidden states (B, T, C) and ``{"attn": [None], "inner_states": ...}``.

        ``extra["features"]`` are the hidden states, after the norm behind the last layer;
        ``extra["inner_states"]`` are from before it.

        Args:
            prev_output_tokens: int64 ids of all tokens so far, (B, S). In training, pads stand on
                the right, where causality hides them; outside, pads on the left are hidden, too.
            encoder_out: None; there is no encoder.
            incremental_state: what earlier calls remembered, an empty dict in the first one. Only
                tokens that it does not hold are run, T of them.
            return_all_hiddens: also give the embedding output and the output of every layer, a
                list of (T, B, C).
            qkv_layers: numbers of layers whose queries, keys and values of the new tokens, before
                rotary positions, are put into ``extra["qkv"][layer]``.
            documents: number of the document of each token, (B, S), where a row holds several that
                do not see each other; positions start anew with each.
            **unused: ignored, such as ``src_lengths``.
        """
        context, tokens = self._context(prev_output_tokens, incremental_state, documents)
        x_BTC = self._embed(prev_output_tokens, tokens, documents)
        hiddens, qkv = [x_BTC], dict[int, QueryKeyValue]()
        layerdrop = self.config.decoder_layerdrop if self.training else 0.0
        recompute = self.config.checkpoint_activations and self.training
        for number, layer in enumerate(self.layers):
            # one draw for the whole batch, on the CPU: the device is not asked, so nothing waits
            if layerdrop and torch.rand(()) < layerdrop:
                continue
            memory = None if incremental_state is None else incremental_state.setdefault(number, {})
            record: list[QueryKeyValue] | None = [] if number in qkv_layers else None
            if recompute:
                x_BTC = checkpoint(layer, x_BTC, context, memory, record, use_reentrant=False)
            else:
                x_BTC = layer(x_BTC, context, memory, record)
            if record:
                qkv[number] = record[0]  # the backward pass may append it once more
            hiddens.append(x_BTC)
        if self.layer_norm is not None:
            x_BTC = self.layer_norm(x_BTC)
        if self.project_out_dim is not None:
            x_BTC = self.project_out_dim(x_BTC)
        inner = [x.transpose(0, 1) for x in hiddens] if return_all_hiddens else None
        extra = {"attn": [None], "inner_states": inner, "features": x_BTC}
        return x_BTC, {**extra, "qkv": qkv} if qkv_layers else extra

    def _context(
        self,
        tokens_BS: Tensor,
        state: IncrementalState | None,
        documents_BS: Tensor | None = None,
    ) -> tuple[AttentionContext, slice]:
        """Return what layers are told, and which of the S tokens are new."""
        if documents_BS is not None and state is not None:
            raise ConfigError(
                "incremental decoding goes on with one document: give no documents, or run all "
                "tokens at once"
            )
        length = tokens_BS.shape[1]
        # layer 0 stands for all: no layer is dropped outside of training
        first = state[0]["key"].shape[2] if state else 0
        new = slice(first, length)
        if first >= length:
            raise ConfigError(
                f"incremental decoding was given {length} tokens, but remembers {first} of them; "
                "give all tokens so far, the new ones included"
            )
        rotary_TR = None
        if self.rotary is not None:
            cos_SR, sin_SR = self.rotary(length, tokens_BS.device)
            rotary_TR = cos_SR[new], sin_SR[new]
        # bool() waits for the device: in training causality hides pads, which stand on the right
        left_padded = not self.training and (
            is_transformed() or bool(tokens_BS[:, 0].eq(self.pad).any())
        )
        pad_BS = tokens_BS.eq(self.pad) if left_padded else None
        return AttentionContext(self.alibi, pad_BS, True, documents_BS, rotary_TR), new

    def _embed(self, tokens_BS: Tensor, new: slice, documents_BS: Tensor | None = None) -> Tensor:
        """Return the input of the first layer at the new tokens, shape (B, T, C)."""
        x_BTC = self.embed_tokens(tokens_BS[:, new])
        # the head compares with rows of length one, so the input reads rows of length one, too
        if self.config.head == "clap" and self.config.clap_normalize:
            x_BTC = nn.functional.normalize(x_BTC, dim=-1)
        x_BTC = x_BTC * self.embed_scale
        if self.project_in_dim is not None:
            x_BTC = self.project_in_dim(x_BTC)
        if self.embed_positions is not None:  # a token's position depends on all before it
            places_BSC = self.embed_positions(tokens_BS, documents_BT=documents_BS)
            x_BTC = x_BTC + places_BSC[:, new]
        if self.layernorm_embedding is not None:
            x_BTC = self.layernorm_embedding(x_BTC)
        return dropout(x_BTC, self.shape.dropout, self.training)

    def output_layer(self, features: Tensor, **unused: Any) -> Tensor:
        """Return logits from hidden states; the hidden states themselves for adaptive softmax."""
        if self.adaptive_softmax is not None:
            return features
        return self.vocabulary_head()(features)

    def vocabulary_head(self) -> VocabularyHead:
        """Return the output layer.

        Raises:
            ConfigError: if the model was built without one, or with an adaptive softmax.
        """
        if self.output_projection is None:
            raise ConfigError(
                "this model has no vocabulary head (--head none or adaptive softmax): it gives "
                "features, but no logits"
            )
        return self.output_projection

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Keep the remembered rows that ``new_order`` (int64, B') names, in its order."""
        for memory in incremental_state.values():
            for name, remembered in memory.items():
                memory[name] = remembered.index_select(0, new_order)

    def max_positions(self) -> int:
        """Return the longest input; ALiBi and rotary positions set no limit."""
        if self.alibi is not None or self.rotary is not None:
            return UNLIMITED
        return self.config.max_target_positions or DEFAULT_MAX_TARGET_POSITIONS
