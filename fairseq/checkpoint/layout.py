"""What is inside a checkpoint: the original's layout, written and read.

``cfg`` holds only keys the original knows, so that it can load what is written here. The complete
configuration of this project travels in ``extra_state["fairseq_lm"]``, which the original ignores.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.tensor_names import upgrade_roberta_state
from fairseq.checkpoint.unused_weights import drop_unused_weights
from fairseq.config import options
from fairseq.config.build import plain
from fairseq.config.flags import describe_choice
from fairseq.config.refused import REFUSED, check_refused
from fairseq.config.resolve import resolve
from fairseq.config.schema import FairseqDataclass, default_of, public_fields, with_values
from fairseq.config.sections import COMPONENTS, SECTIONS, FairseqConfig
from fairseq.config.upgrade import FORK_ONLY, LATER, downgrade
from fairseq.errors import CheckpointError, ConfigError
from fairseq.files.io import sha256_of
from fairseq.files.safe_load import safe_load
from fairseq.files.tensor_sizes import check_sizes
from fairseq.protocols import StateDict
from fairseq.version import __version__

logger = logging.getLogger("fairseq.checkpoint_state")

OURS = "fairseq_lm"
# Values the original repeats in other sections: (section, key, where it comes from).
_REPEATED = (
    ("distributed_training", "fp16", ("common", "fp16")),
    ("distributed_training", "memory_efficient_fp16", ("common", "memory_efficient_fp16")),
    ("optimizer", "lr", ("optimization", "lr")),
    ("lr_scheduler", "lr", ("optimization", "lr")),
    ("bmuf", "distributed_world_size", ("distributed_training", "distributed_world_size")),
)
# NormFormer: the flag, and the tensor that each layer then has
_SCALES = {
    "scale_fc": "ffn_layernorm.weight",
    "scale_attn": "attn_ln.weight",
    "scale_heads": "c_attn",
    "scale_resids": "w_resid",
}
# what becomes of text if a checkpoint names an encoder that is not there
_WITHOUT = {
    "bpe": ": unless bpe= names another, text is encoded as the dictionary suggests, with GPT-2's "
    "pieces or as words with blanks between",
    "tokenizer": ": text is left as it is before it is encoded",
}
_TPU_SECTIONS = ("distributed_training", "optimizer")


# Settings about processes: never taken from a file.
PROCESSES = {"num_workers", "data_buffer_size"} | {
    field.name for field, _ in public_fields(SECTIONS["distributed_training"])
}


def original_cfg(config: FairseqConfig) -> dict[str, Any]:
    """Return ``config`` as the nested dict the original writes, without any key it does not know.

    Knobs that the original lacks are written under the fork's names where they have one, and only
    if they differ from the default.
    """
    cfg: dict[str, Any] = {"_name": None}
    for name in [*SECTIONS, *COMPONENTS]:
        section = getattr(config, name)
        cfg[name] = None if section is None else _original_section(name, section)
    for field, row in REFUSED.items():
        section_dict = cfg.setdefault(row.section, {"_name": None})
        if section_dict is not None and row.section not in COMPONENTS:
            section_dict.setdefault(field, row.default)
    cfg["checkpoint"]["model_parallel_size"] = 1
    for section, key, (source, value) in _REPEATED:
        if cfg.get(section) is not None:
            cfg[section].setdefault(key, plain(getattr(getattr(config, source), value)))
    for section in _TPU_SECTIONS:
        if cfg.get(section) is not None:
            # the original reads the key without a default
            cfg[section]["tpu"] = False
    if cfg.get("criterion") is not None and cfg["criterion"].get("_name") == "masked_lm":
        cfg["criterion"]["tpu"] = False
    cfg["scoring"], cfg["simul_type"] = None, None
    return cfg


def _original_section(name: str, section: object) -> dict[str, Any]:
    if not isinstance(section, FairseqDataclass):
        return plain(section)
    values = plain(section)
    kept = {"_name": values["_name"]}
    for field, _ in public_fields(type(section)):
        strangers = FORK_ONLY | LATER.get(name, set())
        unsaid = field.name in strangers and values[field.name] == default_of(field)
        if not field.metadata.get("new") and not unsaid:
            kept[field.name] = values[field.name]
    if name == "model" and "head" in values:
        kept.update(downgrade(values, "model"))
        new = {f.name: f.default for f, _ in public_fields(type(section)) if f.metadata.get("new")}
        spelled = _WRITTEN_UNDER_OLD_NAMES
        kept.update({k: values[k] for k, d in new.items() if values[k] != d and k not in spelled})
    return kept


# New knobs of RoBERTa that the fork's names express; the rest is written when it is not default.
_WRITTEN_UNDER_OLD_NAMES = {
    "head",
    "clap_initial_beta",
    "clap_normalize",
    "position",
    "mask_embedding",
    "scale_embedding",
    "attention_backend",
    "unpadded",
    "layer_norm",
    "checkpoint_activations",
}


def our_record(
    config: FairseqConfig, progress: Mapping[str, object], **more: object
) -> dict[str, Any]:
    """Return what ``extra_state`` keeps beyond the original.

    Args:
        config: the full configuration.
        progress: what the training loop wants to find again after a resume.
        **more: further plain values, left out where they are empty: ``facts`` of the criterion,
            and the ``lineage`` (see :func:`descended`).
    """
    settings = {name: value for name, value in plain(config).items() if name != "stated"}
    kept = {name: plain(value) for name, value in more.items() if value}
    return {"version": __version__, "config": settings, "progress": plain(progress), **kept}


def descended(state: StateDict, path: str, method: str) -> list[dict[str, Any]]:
    """Return the lineage of a run that begins with the weights of another one.

    A lineage is a list of steps, the oldest first: method, name and SHA-256 of the source, its
    updates and, where its record tells them, its tokens and FLOPs.

    Args:
        state: the source, loaded.
        path: its file.
        method: how the weights were taken over, such as ``finetune``.
    """
    record, history = record_of(state), state.get("optimizer_history") or [{}]
    progress = record.get("progress") or {}
    step = {
        "method": method,
        "source": os.path.basename(path),
        "sha256": sha256_of(path),
        "updates": history[-1].get("num_updates", 0),
        **{name: progress[name] for name in ("tokens", "flops") if name in progress},
    }
    return [*(record.get("lineage") or []), step]


def derived_record(state: StateDict, path: str, method: str) -> dict[str, Any]:
    """Return what our record of a file says that was made of another one, without training.

    Dictionary and text encoder stay the source's, and its training is a step of the lineage: a run
    that begins with the file counts what it cost.

    Args:
        state: the source, loaded.
        path: its file.
        method: how the file was made of it, such as ``stack``.
    """
    kept = {k: v for k, v in record_of(state).items() if k in ("text_encoder", "dictionaries")}
    return {**kept, "lineage": descended(state, path, method)}


def record_of(state: Mapping[str, object]) -> dict[str, Any]:
    """Return what :func:`our_record` put into a checkpoint, empty for files of others."""
    extra = state.get("extra_state")
    record = extra.get(OURS) if isinstance(extra, Mapping) else None
    return dict(record) if isinstance(record, Mapping) else {}


def config_of(
    state: Mapping[str, object], overrides: Mapping[str, object] | None = None, settle: bool = True
) -> FairseqConfig:
    """Return the configuration of a checkpoint, upgraded.

    ``user_dir`` is never taken from a file: it would run code. Nor is anything about processes: how
    many read data and compute is the matter of who loads it.

    Args:
        state: a loaded checkpoint, of this project, of the original or of the fork.
        overrides: values by field name that replace the checkpoint's wherever they occur; the
            name of a component (``bpe="gpt2"``) replaces the component.
        settle: run :func:`fairseq.config.resolve.resolve`.

    Raises:
        CheckpointError: if the checkpoint holds no configuration, or one that its tensors belie.
        UnsupportedError: if its embeddings are of a kind that is not there.
    """
    config = _config_of(state, overrides)
    if settle:
        _check_buildable(state)
        config = resolve(config, from_checkpoint=True)
    if isinstance(tensors := state.get("model"), Mapping):
        tensors = dict(tensors)
        if not record_of(state):  # a file of others
            config = _without_inert_scales(config, tensors)
        if hasattr(config.model, "encoder_layers"):
            upgrade_roberta_state(tensors)
        check_sizes(config, tensors)
    return config


def _check_buildable(state: Mapping[str, object]) -> None:
    """Refuse what would else be a list of missing tensors. Other refused settings change none."""
    cfg = state.get("cfg")
    settings = plain(cfg).get("model") if cfg is not None else plain(state.get("args"))
    if isinstance(settings, Mapping):
        check_refused("character_embeddings", settings.get("character_embeddings") or False)


def _without_inert_scales(config: FairseqConfig, tensors: Mapping[str, Tensor]) -> FairseqConfig:
    """Switch off what NormFormer's flags ask for where the file has none of its tensors.

    The original's causal models accept these flags and are built without what they ask for.
    """
    names = {key.rsplit(".layers.", 1)[-1].partition(".")[2] for key in tensors}
    inert = [
        name
        for name, tensor in _SCALES.items()
        if getattr(config.model, name, False) and tensor not in names
    ]
    if not inert:
        return config
    logger.warning("the file holds no tensors of %s: built without, as its writer did", inert)
    model = with_values(config.model, **dict.fromkeys(inert, False))
    return config.changed(model=model)


def _config_of(
    state: Mapping[str, object], overrides: Mapping[str, object] | None
) -> FairseqConfig:
    stated = dict(overrides or {})
    cfg = record_of(state).get("config") or state.get("cfg")
    if isinstance(cfg, (Mapping, argparse.Namespace, FairseqDataclass)):
        nested = plain(cfg)
        for section in ("common", "dataset"):
            nested[section] = dict(nested.get(section) or {})
        nested["common"]["user_dir"] = None
        nested["distributed_training"] = None
        for name in PROCESSES:
            nested["dataset"].pop(name, None)
        if nested["dataset"].get("data_rng", "auto") == "auto":
            nested["dataset"]["data_rng"] = data_rng_of(state)
        model = nested.get("model")
        if isinstance(model, dict) and not model.get("_name"):
            model["_name"] = model.get("arch")
        return _make(stated, nested)
    if isinstance(state.get("args"), argparse.Namespace):
        old = _old_args(vars(state["args"]))
        flat = {**{k: v for k, v in old.items() if k not in PROCESSES}, **stated}
        flat.setdefault("data_rng", "fairseq-0.12")
        return options.make_config(flat, settle=False)
    raise CheckpointError("this file holds no configuration; is it a fairseq checkpoint?")


def _make(flat: dict[str, Any], nested: dict[str, Any]) -> FairseqConfig:
    """Build the configuration; unknown components of the checkpoint are dropped if they can be.

    Raises:
        ConfigError: for a component that the caller states and nobody knows.
    """
    sections = {key: value for key, value in nested.items() if value is not None}
    for section, flag in COMPONENTS.items():
        values = sections.get(section)
        own = values.get("_name") if isinstance(values, Mapping) else values
        name = flat.get(flag) or own
        essential = section in ("model", "task")  # building it will say what is unknown
        if name is not None and not essential and name not in options.known_names(flag):
            if name != own:
                raise ConfigError(f"{flag} {describe_choice(str(name), options.known_names(flag))}")
            hint = _WITHOUT.get(flag, "")
            logger.warning("the checkpoint's %s '%s' is not known here%s", flag, name, hint)
            del sections[section]
    return options.make_config(flat, sections, strict=False, settle=False)


def _old_args(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings of a checkpoint from before structured configurations."""
    flat = {key: value for key, value in values.items() if value is not None}
    flat.setdefault("task", "masked_lm")
    if flat.pop("raw_text", False):
        flat.setdefault("dataset_impl", "raw")
    if flat.pop("lazy_load", False):
        flat.setdefault("dataset_impl", "lazy")
    if isinstance(flat.get("data"), list):
        flat["data"] = flat["data"][0] if flat["data"] else None
    for name in ("lr", "update_freq"):
        if name in flat and not isinstance(flat[name], list):
            flat[name] = [flat[name]]
    if "min_lr" in flat:  # its name when it ended the training
        flat.setdefault("stop_min_lr", flat.pop("min_lr"))
    flat.pop("user_dir", None)
    return {key: value for key, value in flat.items() if key not in REFUSED}


def data_rng_of(state: Mapping[str, object]) -> str:
    """Return the source of masks and batches that a run used.

    The original's main branch and its release 0.12 (and the fork, which descends from it) draw
    differently; settings that only the main branch has tell them apart.
    """
    ours = record_of(state).get("config")
    if isinstance(ours, Mapping):
        return str((ours.get("dataset") or {}).get("data_rng") or "philox")
    cfg = plain(state.get("cfg")) or {}
    main = "simul_type" in cfg or "debug_param_names" in (cfg.get("optimization") or {})
    return "fairseq-main" if main else "fairseq-0.12"


def with_data_rng(config: FairseqConfig, mode: str) -> FairseqConfig:
    """Return the configuration with ``mode`` wherever ``--data-rng auto`` was copied to."""
    changes: dict[str, Any] = {}
    for name in ("dataset", "task"):
        section = getattr(config, name)
        if getattr(section, "data_rng", None) != "auto":
            continue
        changes[name] = with_values(section, data_rng=mode)
    return config.changed(**changes)


def check_layout(state: StateDict) -> None:
    """Raise unless the parts of a checkpoint that are there are of the kinds they should be.

    Raises:
        CheckpointError: naming what is not.
    """
    if not isinstance(state, dict) or not isinstance(state.get("model"), Mapping):
        raise CheckpointError("this file holds no model; is it a fairseq checkpoint?")
    for name, value in state["model"].items():
        of_module = str(name).endswith("_extra_state")  # which may be anything
        if not isinstance(name, str) or not (torch.is_tensor(value) or of_module):
            raise CheckpointError(f"damaged checkpoint: {str(name)[:100]!r} is no tensor")
    history = state.get("optimizer_history") or []
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise CheckpointError("damaged checkpoint: its optimizer_history is no list of records")
    extra = state.get("extra_state") or {}
    if not isinstance(extra, dict) or not isinstance(extra.get("train_iterator") or {}, dict):
        raise CheckpointError("damaged checkpoint: its extra_state is no record")
    if not isinstance(extra.get("epoch", 1), int):
        raise CheckpointError("damaged checkpoint: its epoch is no number")


def upgrade_state(state: StateDict) -> dict[str, Any]:
    """Return a checkpoint of any age in today's layout (top level only), in place.

    Raises:
        CheckpointError: if it is no checkpoint of a model.
    """
    check_layout(state)
    extra = state.get("extra_state") or {}
    for name in ("epoch", "batch_offset", "val_loss"):  # at the top level once
        if name in state:
            extra.setdefault(name, state.pop(name))
    if "train_iterator" not in extra and "epoch" in extra:
        position = {
            "epoch": max(1, extra["epoch"]),
            "iterations_in_epoch": extra.get("batch_offset", 0),
        }
        extra["train_iterator"] = position
    state["extra_state"] = extra
    if not state.get("optimizer_history"):
        state["optimizer_history"] = [{"criterion_name": "CrossEntropyCriterion"}]
        state.setdefault("last_optimizer_state", state.pop("optimizer", None))
    history = state["optimizer_history"][-1]
    if "optimizer" in history:
        state["last_optimizer_state"] = history["optimizer"]
    for entry in state["optimizer_history"]:
        entry.pop("optimizer", None)
    best = history.pop("best_loss", state.pop("best_loss", None))
    # files that name no optimizer are older than the others
    history.setdefault("optimizer_name", "FairseqNAG")
    history.setdefault("lr_scheduler_state", {"best": best})
    history.setdefault("num_updates", 0)
    state["task_state"] = state.get("task_state") or {}
    drop_unused_weights(state)
    return state


def read_state(path: str | os.PathLike[str]) -> StateDict:
    """Read a checkpoint of any age and return it in today's layout (top level only).

    Raises:
        CheckpointError: if it is damaged, or no checkpoint of a model.
    """
    return upgrade_state(safe_load(path))


def vocabulary_of(state: StateDict) -> int | None:
    """Return the number of rows of a checkpoint's embedding table, None if there is none."""
    tensors = dict(state["model"])
    upgrade_roberta_state(tensors)  # which takes "decoder." for the old name of an encoder
    tensors.update(state["model"])
    for name in ("encoder.sentence_encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name in tensors:
            return int(tensors[name].shape[0])
    return None


def explain(error: Exception, path: str) -> CheckpointError:
    """Return an error of the model with the name of the file and what to do about it."""
    return CheckpointError(
        f"Cannot load model parameters from checkpoint {path}; please ensure that the "
        f"architectures match.\n{error}"
    )
