"""Weights alone, and checkpoints that the original fairseq loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fairseq.checkpoint.files import write_checkpoint
from fairseq.checkpoint.layout import config_of, original_cfg, read_state
from fairseq.config.sections import FairseqConfig
from fairseq.errors import UnsupportedError
from fairseq.export.model_files import refuse_operator
from fairseq.files.folders import refuse_existing
from fairseq.files.io import atomic_write, require_checkpoint

# Knobs without which the original computes something else: name -> the only value it knows.
ORIGINAL = {
    "head": ("roberta", "vocabulary"),
    "head_bias": False,
    "position": ("learned", "sinusoidal", "none", None),
    "parallel_residual": False,
    "mask_embedding": "learned",
    "segments": 0,
    "layer_norm_eps": 1e-5,
    "position_offset": None,
    "embedding_multiplier": None,
    "alibi_slopes": None,
    "ligo_source": None,
    "clap_normalize_hidden": False,
    # NormFormer: the original has the flags, but its decoders are built without what they ask for
    "scale_attn": False,
    "scale_fc": False,
    "scale_heads": False,
    "scale_resids": False,
}


def _load(source: Path, out: Path, force: bool) -> dict[str, Any]:
    require_checkpoint(source, "Give the .pt file.")
    refuse_existing(out, force)
    return read_state(source)


def to_safetensors(source: Path, out: Path, force: bool = False) -> dict[str, Any]:
    """Write the weights of a checkpoint under their own names; tied tensors are written twice."""
    from safetensors.torch import save

    weights = _load(source, out, force)["model"]
    copies = {key: value.clone().contiguous() for key, value in weights.items()}
    with atomic_write(out) as handle:
        handle.write(save(copies))
    return {"tensors": len(weights), "parameters": sum(v.numel() for v in weights.values())}


def to_fairseq(source: Path, out: Path, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint with only what the original fairseq knows.

    Our own record, poolings, frozen encoders and the fork's keys are dropped.

    Raises:
        UnsupportedError: if the model computes what the original cannot.
    """
    state = _load(source, out, force)
    config = config_of(state)
    refuse_operator(source, config.model)
    for name, known in ORIGINAL.items():
        value = getattr(config.model, name, None)
        accepted = known if isinstance(known, tuple) else (known,)
        if hasattr(config.model, name) and value not in accepted:
            raise UnsupportedError(
                f"the original fairseq cannot load this model: its models have no {name} {value!r}"
            )
    other = [getattr(config.model, "pooling", "cls"), getattr(config.model, "probe_head", "dense")]
    heads = any(key.startswith("classification_heads.") for key in state["model"])
    if heads and other != ["cls", "dense"]:
        raise UnsupportedError(
            "the original's classification heads pool the first token only, and have a hidden layer"
        )
    _refuse_other_widths(config, state["model"])
    dropped = sorted(state.get("extra_state", {}).keys() & {"fairseq_lm"})
    cfg = original_cfg(config)
    for section, names in STRICT.items():
        for name in names:
            if (cfg.get(section) or {}).pop(name, None) is not None:
                dropped.append(f"cfg.{section}.{name}")
    extra = {k: v for k, v in state.get("extra_state", {}).items() if k != "fairseq_lm"}
    write_checkpoint(
        {**state, "args": None, "cfg": cfg, "extra_state": extra}, str(out), {"plain": True}
    )
    return {"dropped": ", ".join(dropped) or "nothing"}


def _refuse_other_widths(config: FairseqConfig, weights: Mapping[str, Tensor]) -> None:
    """Refuse classifiers that the original would replace by new ones in silence."""
    width = getattr(config.model, "encoder_embed_dim", None)
    for name, x in weights.items():
        if re.fullmatch(r"classification_heads\.[^.]+\.dense\.weight", name) and (
            config.task._name == "sentence_prediction" and len(x) != width
        ):
            raise UnsupportedError(
                f"the original's task makes classifiers with a hidden layer as wide as the model "
                f"({width}), that of this one has {len(x)} ({name}); it can be exported to hf"
            )


# Keys of the fork that the original's loader refuses.
STRICT = {
    "task": ("omit_mask", "omit_mask_and_pad", "omit_unk"),
    "model": (
        "freeze_encoder", "pooling", "contrastive_pretraining", "initial_beta", "zero_masking",
        "l2norm_embedding", "encoder_alibi", "encoder_alibi_asymmetrical",
    ),
}  # fmt: skip
