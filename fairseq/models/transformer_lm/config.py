"""The settings of causal language models, and what a layer computes under them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from fairseq.config.schema import (
    II,
    SHARE,
    option,
)
from fairseq.errors import ConfigError
from fairseq.models.base import Activation, ModelConfig
from fairseq.modules.transformer_layer import LayerShape

DEFAULT_MAX_TARGET_POSITIONS = 1024


@dataclass
class TransformerLanguageModelConfig(ModelConfig):
    """Settings of causal language models; those marked new are not in the original."""

    side = "decoder"

    activation_fn: Activation = option("relu", "activation of the feed-forward networks")
    dropout: float = option(0.1, "dropout on hidden states", **SHARE)
    attention_dropout: float = option(0.0, "dropout on attention weights", **SHARE)
    activation_dropout: float = option(0.0, "dropout inside the feed-forward networks", **SHARE)
    relu_dropout: float = option(0.0, "old name of --activation-dropout", **SHARE)
    decoder_embed_dim: int = option(512, "width of the model", minimum=1)
    decoder_output_dim: int = option(512, "width of what is projected on the vocabulary", minimum=1)
    decoder_input_dim: int = option(512, "width of the token embeddings", minimum=1)
    decoder_ffn_embed_dim: int = option(2048, "width of the feed-forward networks", minimum=1)
    decoder_layers: int = option(6, "number of layers", minimum=0)
    decoder_attention_heads: int = option(8, "attention heads", minimum=1)
    decoder_normalize_before: bool = option(False, "layer norm before each block, not after it")
    no_decoder_final_norm: bool = option(
        False, "with --decoder-normalize-before: no layer norm after the last layer"
    )
    adaptive_softmax_cutoff: str | None = option(
        None, "adaptive softmax: sizes of the vocabulary's bands, such as 20000,60000"
    )
    adaptive_softmax_dropout: float = option(
        0.0, "dropout in the bands of the adaptive softmax", **SHARE
    )
    adaptive_softmax_factor: float = option(4.0, "each band is narrower by this factor", above=0)
    no_token_positional_embeddings: bool = option(False, "no position embeddings")
    share_decoder_input_output_embed: bool = option(
        False, "the output layer is the embedding table"
    )
    adaptive_input: bool = option(False, "narrower embeddings for rarer words")
    adaptive_input_factor: float = option(4.0, "each band is narrower by this factor", above=0)
    adaptive_input_cutoff: str | None = option(
        None, "adaptive input: sizes of the vocabulary's bands"
    )
    tie_adaptive_weights: bool = option(False, "adaptive softmax: share the input's embeddings")
    tie_adaptive_proj: bool = option(False, "adaptive softmax: share the input's projections")
    decoder_learned_pos: bool = option(False, "learned positions, not sinusoidal ones")
    layernorm_embedding: bool = option(False, "layer norm on the embeddings", positive=True)
    no_scale_embedding: bool = option(False, "do not multiply token embeddings by sqrt(width)")
    checkpoint_activations: bool = option(False, "recompute layers to save memory")
    offload_activations: bool = option(
        False, "the same as --checkpoint-activations: nothing is moved to the CPU"
    )
    decoder_layerdrop: float = option(0.0, "probability of skipping a layer in training", **SHARE)
    decoder_layers_to_keep: str | None = option(None, "layers to keep on loading, such as 0,2,4")
    min_params_to_wrap: int = option(
        100_000_000, "smallest module that FSDP shards on its own", inert=True, minimum=0
    )
    scale_fc: bool = option(False, "NormFormer: layer norm inside feed-forward networks")
    scale_attn: bool = option(False, "NormFormer: layer norm after the attention")
    scale_heads: bool = option(False, "NormFormer: a learned factor for every head")
    scale_resids: bool = option(False, "NormFormer: a learned factor for the second residual")
    add_bos_token: bool = II("task.add_bos_token")
    tokens_per_sample: int = II("task.tokens_per_sample")
    max_target_positions: int | None = II("task.max_target_positions")
    position: Literal["learned", "sinusoidal", "alibi", "rotary", "none"] | None = option(
        None,
        "how tokens know where they stand: learned, sinusoidal, alibi, rotary or none "
        "(default: as --decoder-learned-pos and --no-token-positional-embeddings say)",
        new=True,
    )
    rotary_fraction: float = option(
        1.0, "rotary: share of a head's channels", new=True, above=0, maximum=1
    )
    position_offset: int | None = option(
        None,
        "position of the first token: pad id + 1 if not given, 0 for GPT-2",
        new=True,
        minimum=0,
    )
    embedding_multiplier: float | None = option(
        None,
        "multiply token embeddings by this (default: as --scale-embedding says)",
        new=True,
        above=0,
    )
    alibi_slopes: list[float] | None = option(
        None, "ALiBi: the slope of every head (default: the formula's)", new=True, minimum=0
    )
    head: Literal["vocabulary", "clap", "none"] = option("vocabulary", "output layer", new=True)
    head_bias: bool = option(False, "vocabulary head: add a bias to the logits", new=True)
    clap_initial_beta: float = option(1.0, "first value of the CLAP head's scale", new=True)
    clap_normalize: bool = option(
        True,
        "CLAP: embeddings of unit length, at the input and in the head",
        positive=True,
        new=True,
    )
    clap_normalize_hidden: bool = option(False, "CLAP: hidden states of unit length too", new=True)
    freeze_decoder: bool = option(False, "train the vocabulary head alone", new=True)
    parallel_residual: bool = option(
        False, "attention and feed-forward network side by side, as in GPT-NeoX", new=True
    )
    layer_norm_eps: float = option(1e-5, "added to variances", new=True, minimum=0)
    attention_backend: str = option(
        "auto", "auto, sdpa, explicit, rows, reference, flex, flash or xformers", new=True
    )
    layer_norm: Literal["torch", "apex"] = option(
        "torch", "implementation of layer norms", new=True
    )

    def position_kind(self) -> str:
        """Return how tokens know where they stand: ``--position``, or what the old flags say."""
        if self.position is not None:
            return self.position
        if self.no_token_positional_embeddings:
            return "none"
        return "learned" if self.decoder_learned_pos else "sinusoidal"

    def settled(self, length: int | None) -> Self:
        """Return the settings with positions in the original's flags where it has them, checked.

        Args:
            length: tokens of the task's samples, which ``max_target_positions`` falls back to.

        Raises:
            ConfigError: for settings that contradict each other.
        """
        changes: dict[str, Any] = {}
        if self.position is not None:
            changes["decoder_learned_pos"] = self.position == "learned"
            without = self.position in ("alibi", "rotary", "none")
            changes["no_token_positional_embeddings"] = without
            if self.position in ("learned", "sinusoidal", "none"):
                changes["position"] = None  # the flags say it, and the original understands them
        if self.offload_activations:
            changes["checkpoint_activations"] = True
        if self.max_target_positions is None:
            tokens = self.tokens_per_sample or length
            changes["max_target_positions"] = tokens or DEFAULT_MAX_TARGET_POSITIONS
        made = dataclasses.replace(self, **changes)
        made._check()
        return made

    def _check(self) -> None:
        if self.parallel_residual and not self.decoder_normalize_before:
            raise ConfigError("--parallel-residual needs --decoder-normalize-before")
        self._check_table()
        self._check_tying()
        own_head = self.head == "vocabulary" and self.adaptive_softmax_cutoff is None
        if self.freeze_decoder and (not own_head or self.share_decoder_input_output_embed):
            raise ConfigError(
                "--freeze-decoder leaves the vocabulary head to train: it must have weights of its "
                "own, neither tied to the embeddings nor adaptive"
            )

    def _check_table(self) -> None:
        width = self.decoder_output_dim
        if self.head_bias and (self.head != "vocabulary" or self.adaptive_softmax_cutoff):
            raise ConfigError("--head-bias needs --head vocabulary without adaptive softmax")
        if self.head == "clap":
            adaptive = self.adaptive_input or self.adaptive_softmax_cutoff is not None
            if adaptive or self.decoder_input_dim != width:
                raise ConfigError(
                    "--head clap projects on the embedding table: it needs --decoder-input-dim "
                    "equal to --decoder-output-dim, and neither adaptive input nor softmax"
                )
        elif self.head == "none" and self.adaptive_softmax_cutoff is not None:
            raise ConfigError("--head none and --adaptive-softmax-cutoff exclude each other")
        if self.share_decoder_input_output_embed:
            if self.adaptive_input:
                raise ConfigError(
                    "--share-decoder-input-output-embed needs one embedding table, but "
                    "--adaptive-input has several; use --tie-adaptive-weights"
                )
            if self.decoder_input_dim != width:
                raise ConfigError(
                    "--share-decoder-input-output-embed needs --decoder-input-dim "
                    f"({self.decoder_input_dim}) equal to --decoder-output-dim ({width})"
                )

    def _check_tying(self) -> None:
        if self.adaptive_input and self.adaptive_input_cutoff is None:
            raise ConfigError("--adaptive-input needs --adaptive-input-cutoff")
        if not self.tie_adaptive_weights:
            if self.tie_adaptive_proj:
                raise ConfigError("--tie-adaptive-proj needs --tie-adaptive-weights")
            return
        if not self.adaptive_input or self.adaptive_softmax_cutoff is None:
            raise ConfigError(
                "--tie-adaptive-weights needs --adaptive-input and --adaptive-softmax-cutoff"
            )
        same = (
            self.adaptive_input_factor == self.adaptive_softmax_factor,
            self.adaptive_input_cutoff == self.adaptive_softmax_cutoff,
            self.decoder_input_dim == self.decoder_output_dim == self.decoder_embed_dim,
        )
        if not all(same):
            raise ConfigError(
                "--tie-adaptive-weights needs equal cutoffs, factors and widths "
                "(--decoder-input-dim, -embed-dim, -output-dim) at the input and the output"
            )


def layer_shape(config: TransformerLanguageModelConfig) -> LayerShape:
    """Return what a layer of this configuration computes."""
    return LayerShape(
        embed_dim=config.decoder_embed_dim,
        ffn_dim=config.decoder_ffn_embed_dim,
        heads=config.decoder_attention_heads,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout or config.relu_dropout,
        activation=config.activation_fn,
        pre_norm=config.decoder_normalize_before,
        eps=config.layer_norm_eps,
        norm=config.layer_norm,
        backend=config.attention_backend,
        xavier_attention=True,
        parallel_residual=config.parallel_residual,
        scale_attn=config.scale_attn,
        scale_fc=config.scale_fc,
        scale_heads=config.scale_heads,
        scale_resids=config.scale_resids,
    )


def cutoffs(text: str, flag: str) -> list[int]:
    """Return the bands of a vocabulary from text such as ``20000,60000``.

    Raises:
        ConfigError: unless it names ascending positive numbers.
    """
    try:
        bands = [int(part) for part in str(text).strip("[]() ").split(",")]
    except ValueError:
        bands = []
    if not bands or bands[0] <= 0 or sorted(set(bands)) != bands:
        raise ConfigError(f"{flag} must be ascending numbers such as 20000,60000, not {text!r}")
    return bands
