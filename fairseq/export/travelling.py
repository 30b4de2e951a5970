"""Models as the class whose file travels with them: what no class of transformers computes.

Shapes: V rows of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.export.encoder_names import ENCODER, HEAD
from fairseq.export.loaded import Loaded
from fairseq.export.model_files import filled
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.model import RobertaModel
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig
from fairseq.models.transformer_lm.model import TransformerLanguageModel
from fairseq.modules.positions import alibi_slopes

FILE = "modeling_fairseq_roberta"
_CLASSES = {
    "AutoConfig": "FairseqRobertaConfig",
    "AutoModel": "FairseqRobertaModel",
    "AutoModelForMaskedLM": "FairseqRobertaForMaskedLM",
    "AutoModelForSequenceClassification": "FairseqRobertaForSequenceClassification",
    "AutoModelForTokenClassification": "FairseqRobertaForTokenClassification",
}
_CAUSAL = {
    "AutoConfig": "FairseqRobertaConfig",
    "AutoModel": "FairseqRobertaModel",
    "AutoModelForCausalLM": "FairseqRobertaForCausalLM",
}
_SHARED = ("clap_normalize", "clap_normalize_hidden", "layernorm_embedding", "layer_norm_eps",
           "position_offset", "activation_fn", "dropout", "attention_dropout")  # fmt: skip


def encoder_settings(hub: Loaded[RobertaModel], first_new: int) -> dict[str, Any]:
    """Return the settings of the travelling class for an encoder.

    Args:
        hub: the model with its task.
        first_new: the first id that no piece of text has.
    """
    config = hub.model.config
    scale = config.encoder_embed_dim**0.5 if config.scale_embedding else 1.0
    chosen = config.embedding_multiplier
    return {
        **_common(config, hub.task.source_dictionary, "encoder", first_new),
        "max_positions": config.max_positions,
        "normalize_before": config.encoder_normalize_before,
        "position": config.position,
        "embedding_multiplier": scale if chosen is None else chosen,
        "head": config.head,
        "untied": config.untie_weights_roberta and config.head == "roberta",
        "mask_embedding": config.mask_embedding,
        "mask_id": hub._mask(),
        "segments": config.segments,
        "pooling": config.pooling,
        "pooler_activation_fn": config.pooler_activation_fn,
        "pooler_dropout": config.pooler_dropout,
        "auto_map": {auto: f"{FILE}.{name}" for auto, name in _CLASSES.items()},
    }


def decoder_settings(
    hub: Loaded[TransformerLanguageModel], first_new: int, first: int | None
) -> dict[str, Any]:
    """Return the settings of the travelling class for a decoder.

    Args:
        hub: the model with its task.
        first_new: the first id that no piece of text has.
        first: id of the symbol that texts begin with, if they do.
    """
    config, decoder = hub.model.config, hub.model.decoder
    settings = {
        **_common(config, hub.task.source_dictionary, "decoder", first_new),
        "causal": True,
        "max_positions": config.max_target_positions,
        "normalize_before": config.decoder_normalize_before,
        "final_norm": decoder.layer_norm is not None,
        "parallel_residual": config.parallel_residual,
        "position": config.position_kind(),
        "rotary_fraction": config.rotary_fraction,
        "head": config.head,
        "head_bias": config.head == "vocabulary" and config.head_bias,
        "untied": config.head == "vocabulary" and not config.share_decoder_input_output_embed,
        "mask_id": -1,
        "embedding_multiplier": decoder.embed_scale,
        "auto_map": {auto: f"{FILE}.{name}" for auto, name in _CAUSAL.items()},
    }
    return settings if first is None else {**settings, "bos_token_id": first}


def _common(
    config: RobertaConfig | TransformerLanguageModelConfig,
    dictionary: Dictionary,
    side: str,
    first_new: int,
) -> dict[str, Any]:
    ids = {f"{role}_token_id": getattr(dictionary, role)() for role in ("bos", "pad", "eos", "unk")}
    heads = getattr(config, f"{side}_attention_heads")
    return {
        "vocab_size": len(dictionary),
        "dictionary_size": len(dictionary),
        "first_new_id": first_new,
        "hidden_size": getattr(config, f"{side}_embed_dim"),
        "num_hidden_layers": config.layers(),
        "num_attention_heads": heads,
        "alibi_slopes": alibi_slopes(heads, config.alibi_slopes).tolist(),
        "intermediate_size": getattr(config, f"{side}_ffn_embed_dim"),
        **{name: getattr(config, name) for name in _SHARED},
        **ids,
    }


def build(
    weights: Mapping[str, Tensor],
    settings: Mapping[str, object],
    kind: str,
    classifier: str | None = None,
) -> Any:
    """Return a model as the travelling class.

    Args:
        weights: ours, by our names.
        settings: of :func:`encoder_settings` or :func:`decoder_settings`.
        kind: the name of the class without its prefix ``FairseqRoberta``.
        classifier: name of the classification head that goes with it.

    Raises:
        CheckpointError: if the weights do not fit.
    """
    from fairseq.export import modeling_fairseq_roberta as remote

    body = "" if kind == "Model" else "encoder."
    state = {}
    for key, value in weights.items():
        name = _their_name(key, body, classifier)
        tied = name == "head_weight" and not settings["untied"]
        if name is not None and not tied:
            state[name] = value.detach().clone()
    model = getattr(remote, f"FairseqRoberta{kind}")(remote.FairseqRobertaConfig(**settings))
    if kind in ("Model", "ForSequenceClassification"):
        state = {name: value for name, value in state.items() if not name.startswith("head_")}
    return filled(model, state)


def _their_name(key: str, body: str, classifier: str | None) -> str | None:
    """Return the travelling class's name of one of our weights; None if it has no place there."""
    heads = f"classification_heads.{classifier}."
    if key.startswith(heads):
        return key.replace(heads, "classifier.")
    if key.endswith(".version") or key.startswith("classification_heads."):
        return None
    for prefix in (HEAD, "decoder.output_projection."):
        if key.startswith(prefix):
            return key.replace(prefix, "head_")
    for prefix in (ENCODER, "decoder."):
        if key.startswith(prefix):
            return key.replace(prefix, body, 1).replace(".self_attn.", ".")
    return key
