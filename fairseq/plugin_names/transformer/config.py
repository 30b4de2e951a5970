"""The settings of the Transformer that plug-ins build their layers, encoders and decoders from."""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from fairseq.config.schema import II, FairseqDataclass

DEFAULT_MIN_PARAMS_TO_WRAP = int(1e8)
DEFAULT_MAX_SOURCE_POSITIONS = 1024
DEFAULT_MAX_TARGET_POSITIONS = 1024
_FLAT = re.compile(r"(encoder|decoder|quant_noise)_(.+)")


@dataclass
class EncDecBaseConfig(FairseqDataclass):
    """What an encoder and a decoder have in common."""

    embed_path: str | None = None
    embed_dim: int | None = 512
    ffn_embed_dim: int = 2048
    layers: int = 6
    attention_heads: int = 8
    normalize_before: bool = False
    learned_pos: bool = False
    layerdrop: float = 0.0
    layers_to_keep: list[int] | None = None
    xformers_att_config: str | None = None


@dataclass
class DecoderConfig(EncDecBaseConfig):
    """What a decoder has beside; None means as wide as ``embed_dim``."""

    input_dim: int | None = None
    output_dim: int | None = None


@dataclass
class QuantNoiseConfig(FairseqDataclass):
    """Quantisation noise, which must stay 0."""

    pq: float = 0.0
    pq_block_size: int = 8
    scalar: float = 0.0


@dataclass
class TransformerConfig(FairseqDataclass):
    """The settings, nested; ``cfg.encoder_layers`` is ``cfg.encoder.layers``.

    A configuration made from a Namespace keeps whatever else the Namespace holds.
    """

    activation_fn: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    adaptive_input: bool = False
    encoder: EncDecBaseConfig = field(default_factory=EncDecBaseConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    quant_noise: QuantNoiseConfig = field(default_factory=QuantNoiseConfig)
    max_source_positions: int = DEFAULT_MAX_SOURCE_POSITIONS
    max_target_positions: int = DEFAULT_MAX_TARGET_POSITIONS
    share_decoder_input_output_embed: bool = False
    share_all_embeddings: bool = False
    merge_src_tgt_embed: bool = False
    no_token_positional_embeddings: bool = False
    adaptive_softmax_cutoff: list[int] | None = None
    adaptive_softmax_dropout: float = 0.0
    adaptive_softmax_factor: float = 4.0
    layernorm_embedding: bool = False
    tie_adaptive_weights: bool = False
    tie_adaptive_proj: bool = False
    no_scale_embedding: bool = False
    checkpoint_activations: bool = False
    offload_activations: bool = False
    no_cross_attention: bool = False
    cross_self_attention: bool = False
    min_params_to_wrap: int = DEFAULT_MIN_PARAMS_TO_WRAP
    char_inputs: bool = False
    relu_dropout: float = 0.0
    no_decoder_final_norm: bool = False
    scale_fc: bool = False
    scale_attn: bool = False
    scale_heads: bool = False
    scale_resids: bool = False
    export: bool = False
    ddp_backend: str = II("distributed_training.ddp_backend")

    def __getattr__(self, name: str) -> Any:
        """Look a flat name of old, such as ``encoder_layers``, up in its section."""
        match = _FLAT.fullmatch(name)
        if match is None or match[1] not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no setting '{name}'")
        return getattr(self.__dict__[match[1]], match[2])

    def __setattr__(self, name: str, value: object) -> None:
        """Set a flat name of old in its section."""
        match = _FLAT.fullmatch(name)
        section = self.__dict__.get(match[1]) if match else None
        if match and section is not None and match[2] in section:
            setattr(section, match[2], value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def from_namespace(cls, args: object) -> TransformerConfig:
        """Read flat settings; those of this project's models mean what they mean there."""
        if isinstance(args, cls):
            return args
        config = cls()
        if isinstance(args, argparse.Namespace):
            values = vars(args)
        else:
            values = {name: getattr(args, name) for name in _names(args)}
        for name, value in values.items():
            if value is not None and not name.startswith("__"):
                setattr(config, name, value)
        _translate(config, values)
        return config


def _names(args: Any) -> list[str]:
    if dataclasses.is_dataclass(args):
        return [f.name for f in dataclasses.fields(args)]
    return list(args) if hasattr(args, "keys") else list(vars(args))


def _translate(config: TransformerConfig, values: dict[str, Any]) -> None:
    """State in the original's settings what settings of this project say."""
    position = values.get("position")
    if position is not None:
        config.encoder.learned_pos = config.decoder.learned_pos = position == "learned"
        config.no_token_positional_embeddings = position not in ("learned", "sinusoidal")
    if "scale_embedding" in values:
        config.no_scale_embedding = not values["scale_embedding"]
    if values.get("max_positions") is not None and "max_source_positions" not in values:
        config.max_source_positions = values["max_positions"]
    if config.offload_activations:
        config.checkpoint_activations = True


def base_architecture(args: object) -> None:
    """Fill what ``args`` leaves open with the defaults of :class:`TransformerConfig`, flat."""
    default = TransformerConfig()
    for name in default._get_all_attributes():
        value = getattr(default, name)
        if isinstance(value, FairseqDataclass):
            for inner in value._get_all_attributes():
                flat = f"{name}_{inner}"
                if inner != "_name" and not hasattr(args, flat):
                    setattr(args, flat, getattr(value, inner))
        elif name not in ("_name", "ddp_backend") and not hasattr(args, name):
            setattr(args, name, value)
