"""The sizes of a model, and whether one model can grow into another."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq.errors import ConfigError, UnsupportedError
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig
from fairseq.modules.positions import alibi_slopes

Config = RobertaConfig | TransformerLanguageModelConfig

FIELDS = {
    "layers": "{}_layers",
    "width": "{}_embed_dim",
    "ffn": "{}_ffn_embed_dim",
    "heads": "{}_attention_heads",
}
# what two models must have in common, since it changes what their tensors mean
COMMON = (
    *("head", "clap_normalize", "clap_normalize_hidden", "untie_weights_roberta", "head_bias"),
    *("encoder_normalize_before", "decoder_normalize_before", "no_decoder_final_norm"),
    *("parallel_residual", "layernorm_embedding", "scale_embedding", "no_scale_embedding"),
    *("position_offset", "rotary_fraction", "mask_embedding", "segments", "activation_fn"),
    *("share_decoder_input_output_embed", "adaptive_input", "adaptive_input_cutoff"),
    *("adaptive_softmax_cutoff", "tie_adaptive_weights", "tie_adaptive_proj"),
    *("scale_fc", "scale_attn", "scale_heads", "scale_resids"),
    *("max_positions", "max_target_positions"),
)


class Sizes(NamedTuple):
    """Layers L, width D of the hidden states, width F of the feed-forward networks, heads H."""

    layers: int
    width: int
    ffn: int
    heads: int

    @property
    def head_dim(self) -> int:
        """Return the channels of a head."""
        return self.width // self.heads


def side_of(config: Config) -> str:
    """Return ``encoder`` or ``decoder``.

    Raises:
        UnsupportedError: for models of other kinds.
    """
    for side in ("encoder", "decoder"):
        if f"{side}_embed_dim" in config and f"{side}_layers" in config:
            return side
    raise UnsupportedError(
        f"growth knows roberta and transformer_lm, not the model '{config._name}'"
    )


def sizes_of(config: Config) -> Sizes:
    """Return the sizes of a model; only layers that are kept count."""
    side = side_of(config)
    values = {name: int(config[field.format(side)]) for name, field in FIELDS.items()}
    values["layers"] = config.layers()
    return Sizes(**values)


def resized(config: Config, **sizes: int | None) -> Config:
    """Return a configuration with other sizes; what is not named follows.

    A new width takes FFN and heads along in proportion (the width of a head stays), and in a
    decoder the widths of table and output where these were the model's.

    Args:
        config: of the source.
        **sizes: ``layers``, ``width``, ``ffn``, ``heads``; None for what follows.
    """
    side, old = side_of(config), sizes_of(config)
    width = sizes.get("width") or old.width
    wanted = {
        "layers": sizes.get("layers") or old.layers,
        "width": width,
        "ffn": sizes.get("ffn") or old.ffn * width // old.width,
        "heads": sizes.get("heads") or max(1, width // old.head_dim),
    }
    changes: dict[str, Any] = {FIELDS[name].format(side): wanted[name] for name in wanted}
    # numbers of the source's layers, which loading has pruned already
    changes[f"{side}_layers_to_keep"] = None
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if name in config and config[name] == old.width:
            changes[name] = width
    if wanted["heads"] != old.heads:
        changes["alibi_slopes"] = None  # one for each head: other heads have the formula's
    return dataclasses.replace(config, **changes)


class Pair(NamedTuple):
    """The configurations of the source and of the target."""

    source: Config
    target: Config

    @property
    def side(self) -> str:
        """Return ``encoder`` or ``decoder``."""
        return side_of(self.source)

    @property
    def small(self) -> Sizes:
        """Return the sizes of the source."""
        return sizes_of(self.source)

    @property
    def large(self) -> Sizes:
        """Return the sizes of the target."""
        return sizes_of(self.target)

    @property
    def pre_norm(self) -> bool:
        """Tell whether layer norms stand before the blocks."""
        return bool(self.source[f"{self.side}_normalize_before"])

    @property
    def final_norm(self) -> bool:
        """Tell whether a layer norm stands after the last layer."""
        return self.pre_norm and not self.source.get("no_decoder_final_norm", False)

    @property
    def position(self) -> str:
        """Return how tokens know where they stand."""
        return position_of(self.source)

    @property
    def clap(self) -> bool:
        """Tell whether the head is CLAP's."""
        return self.source.get("head") == "clap"

    @property
    def unit_rows(self) -> bool:
        """Tell whether embeddings as wide as the hidden states are normalised to length one."""
        return self.clap and bool(self.source.get("clap_normalize")) and not self.projected

    @property
    def tied(self) -> bool:
        """Tell whether a linear vocabulary head reads the hidden states through the embeddings."""
        if self.side == "encoder":
            return self.source.get("head") == "roberta" and not self.source["untie_weights_roberta"]
        shared = bool(self.source["share_decoder_input_output_embed"])
        return shared and self.source.get("head") == "vocabulary" and not self.projected

    @property
    def one_table(self) -> bool:
        """Tell whether the head's weights are the table of embeddings."""
        shared = self.source.get("share_decoder_input_output_embed", False)
        return self.tied or self.clap or (shared and self.source.get("head") == "vocabulary")

    @property
    def projected(self) -> bool:
        """Tell whether a decoder's tables are of another width than its hidden states."""
        width = self.small.width
        return self.side == "decoder" and (
            self.source["decoder_input_dim"] != width or self.source["decoder_output_dim"] != width
        )

    @property
    def projects_in(self) -> bool:
        """Tell whether a linear map leads from the embeddings to the hidden states."""
        width = self.small.width
        return self.side == "decoder" and self.source["decoder_input_dim"] != width

    @property
    def growth_of_scale(self) -> float:
        """Return by how much the factor of token embeddings grows."""
        return scale_of(self.target) / scale_of(self.source)


def scale_of(config: Config) -> float:
    """Return what token embeddings are multiplied with: a given number, sqrt(D) or 1."""
    if (factor := config.get("embedding_multiplier")) is not None:
        return float(factor)
    on = config.get("scale_embedding", False)
    if side_of(config) == "decoder":
        on = not config["no_scale_embedding"]
    return sizes_of(config).width ** 0.5 if on else 1.0


def position_of(config: Config) -> str:
    """Return how tokens know where they stand."""
    kind = getattr(config, "position_kind", None)
    return str(kind() if kind is not None else config.get("position"))


def slopes_of(config: Config) -> Tensor:
    """Return the slopes of a model with ALiBi, fp32 of shape (H,)."""
    return alibi_slopes(sizes_of(config).heads, config.get("alibi_slopes"))


def settings_reason(pair: Pair) -> str | None:
    """Return which setting makes equal tensors compute something else, None if none does.

    What depends on the sizes (slopes of more heads, scales of wider tables) is left to the methods.
    """
    eps, new = (float(config["layer_norm_eps"]) for config in pair)
    ratio = pair.small.width / pair.large.width  # what means in new channels need, see LEMON
    wanted = (1.0, ratio) if pair.large.width % pair.small.width else (1.0,)
    if all(abs(new - eps * factor) > 1e-6 * eps for factor in wanted):
        return f"layer norms had another eps: give --layer-norm-eps {eps:g}"
    if pair.small.width != pair.large.width:
        return None
    if abs(pair.growth_of_scale - 1) > 1e-9:
        return f"embeddings were multiplied by {scale_of(pair.source):g}: --embedding-multiplier"
    slopes = [slopes_of(config) for config in pair] if pair.position.startswith("alibi") else []
    if slopes and not torch.equal(*slopes):
        return "ALiBi's slopes were others: --alibi-slopes"
    return None


def check_pair(pair: Pair, shrinks: bool = False, any_depth: bool = False) -> None:
    """Make sure that the source can become the target at all.

    Args:
        pair: both configurations.
        shrinks: sizes may decrease, but not increase.
        any_depth: the number of layers may do both.

    Raises:
        ConfigError: naming the setting that does not fit, and both values.
    """
    if side_of(pair.source) != side_of(pair.target):
        raise ConfigError(
            f"the source is {_a(side_of(pair.source))}, the target {_a(side_of(pair.target))}: "
            "growth stays within a family; choose --arch accordingly"
        )
    if position_of(pair.source) != position_of(pair.target):
        raise ConfigError(_unequal("position", position_of(pair.source), position_of(pair.target)))
    for name in COMMON:
        here, there = pair.source.get(name), pair.target.get(name)
        # a limit that the target leaves open is settled when its model is built
        if name in pair.source and here != there and not (name.startswith("max_") and not there):
            raise ConfigError(_unequal(name, here, there))
    _check_sizes(pair, shrinks, any_depth)


def _check_sizes(pair: Pair, shrinks: bool, any_depth: bool) -> None:
    small, large = pair.small, pair.large
    for name, old, new in zip(Sizes._fields, small, large, strict=True):
        flag = "--" + FIELDS[name].format(pair.side).replace("_", "-")
        if name == "layers" and any_depth and new > 0:
            continue
        if new < 1 or (new > old if shrinks else new < old):
            verb = "increase" if shrinks else "decrease"
            hint = "growth methods enlarge" if shrinks else "extract and pool make models smaller"
            raise ConfigError(f"{flag} would {verb} from {old} to {new}; {hint}")
    if large.width % large.heads:
        raise ConfigError(f"width {large.width} is not divisible by {large.heads} heads")
    # attention divides scores by sqrt(head_dim): wider heads would compute something else
    if not shrinks and small.head_dim != large.head_dim:
        flag = f"--{pair.side}-attention-heads"
        raise ConfigError(
            f"heads of the source have {small.head_dim} channels, those of the target "
            f"{large.head_dim}: whole heads grow, so {flag} must be width / {small.head_dim}"
        )
    if small.width == large.width:
        return
    for name in ("decoder_input_dim", "decoder_output_dim"):
        here, there = pair.source.get(name), pair.target.get(name)
        follows = there == large.width if here == small.width else there == here
        if name in pair.source and not follows:
            raise ConfigError(_unequal(name, here, there))
    if pair.source.get("adaptive_input") or pair.source.get("adaptive_softmax_cutoff"):
        raise UnsupportedError("models with adaptive input or softmax keep their width")


def _a(side: str) -> str:
    return "an encoder (roberta)" if side == "encoder" else "a decoder (transformer_lm)"


def _unequal(name: str, here: object, there: object) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag} is {here} in the source, {there} in the target; growth leaves it as it is"
