"""The model card of a published folder: what the model is, how it was trained, how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fairseq.config.sections import FairseqConfig
from fairseq.export.loaded import Loaded
from fairseq.models.base import FairseqLanguageModel, count_parameters
from fairseq.models.roberta.model import RobertaModel
from fairseq.models.transformer_lm.model import TransformerLanguageModel

# What a card says of training: section of the configuration -> its settings.
_TRAINING: dict[str, tuple[str, ...]] = {
    "task": ("tokens_per_sample", "sample_break_mode", "mask_prob", "add_bos_token"),
    "optimization": ("lr", "max_update", "max_epoch", "update_freq", "clip_norm"),
    "optimizer": ("adam_betas", "adam_eps", "weight_decay", "momentum"),
    "lr_scheduler": ("warmup_updates", "total_num_update", "power"),
    "dataset": ("batch_size", "max_tokens"),
    "distributed_training": ("distributed_world_size",),
    "common": ("seed", "fp16", "bf16", "amp"),
    "model": ("dropout", "attention_dropout", "activation_dropout"),
}


def facts_of(hub: Loaded[RobertaModel] | Loaded[TransformerLanguageModel]) -> dict[str, str]:
    """Return what a model is, name -> value."""
    config, dictionary = hub.model.config, hub.task.source_dictionary
    causal = isinstance(hub.model, FairseqLanguageModel)
    side = "decoder" if causal else "encoder"
    sizes = ("embed_dim", "ffn_embed_dim", "attention_heads")
    width, inner, heads = (getattr(config, f"{side}_{name}") for name in sizes)
    ids = {r: getattr(dictionary, r)() for r in ("bos", "pad", "eos", "unk")}
    facts = {
        "architecture": str(config._name),
        "parameters": f"{count_parameters(hub.model):,}",
        "layers x width x heads": f"{config.layers()} x {width} x {heads}",
        "feed-forward width": f"{inner}, {config.activation_fn}",
        "positions": config.position_kind() if causal else config.position,
        "head": config.head,
        "vocabulary": f"{len(dictionary):,} symbols",
        "special symbols": ", ".join(f"{role} {index}" for role, index in ids.items()),
        "text encoder": getattr(getattr(hub.cfg, "bpe", None), "_name", None) or "none",
    }
    if not causal:
        facts["mask"] = f"{config.mask_embedding} vector"
    if causal and config.parallel_residual:
        facts["residual"] = "parallel"
    return facts


def training_of(cfg: FairseqConfig, checkpoint: Path) -> dict[str, str]:
    """Return how a checkpoint was trained, name -> value; empty if it records no training.

    Args:
        cfg: its configuration.
        checkpoint: the file; the one beside it says how far it came.
    """
    if getattr(cfg, "optimizer", None) is None:
        return {}
    told = {name: getattr(cfg, name)._name for name in ("task", "criterion", "optimizer")}
    told["lr_scheduler"] = getattr(cfg.lr_scheduler, "_name", None)
    for section, names in _TRAINING.items():
        values = getattr(cfg, section, None)
        told.update({name: getattr(values, name) for name in names if hasattr(values, name)})
    try:
        record = json.loads(Path(f"{checkpoint}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # that file is advisory
        record = {}
    told.update({k: record[k] for k in ("epoch", "num_updates", "val_loss") if k in record})
    return {name: str(value) for name, value in told.items() if value not in (None, False)}


def write_card(
    folder: Path,
    hub: Loaded[RobertaModel] | Loaded[TransformerLanguageModel],
    checkpoint: Path,
    result: Mapping[str, object],
    auto: str,
) -> None:
    """Write ``README.md``.

    Args:
        folder: where.
        hub: our model with its task and configuration.
        checkpoint: where it came from.
        result: what the export returns.
        auto: the class of transformers that loads it.
    """
    causal = isinstance(hub.model, FairseqLanguageModel)
    headless = hub.model.config.head == "none"
    pipeline = "feature-extraction" if headless else "text-generation" if causal else "fill-mask"
    trust = ", trust_remote_code=True" if result.get("remote_code") else ""
    splits = result.get("tokenizer", True)
    training = training_of(hub.cfg, checkpoint)
    imports = f"{auto}, AutoTokenizer" if splits else auto
    lines = [
        f"---\nlibrary_name: transformers\npipeline_tag: {pipeline}\ntags: [fairseq-lm]\n---\n",
        f"# {result['class']} exported from fairseq-lm\n",
        _table(facts_of(hub)),
        "Compared with the checkpoint on export: largest difference "
        f"{result['max_abs_difference']:.1e}.\n",
    ]
    if result.get("extra_rows") and not result.get("remote_code"):
        lines.append(
            f"The last {result['extra_rows']} rows of the table stand for pieces of text that the "
            "model does not know: they read as the unknown symbol, and are never predicted.\n"
        )
    how = _table(training) if training else "The checkpoint records no training.\n"
    lines += ["## Training\n", how, "## Loading\n"]
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n' if splits else ""
    lines.append(
        f"```python\nfrom transformers import {imports}\n\n{tokenizer}"
        f'model = {auto}.from_pretrained("FOLDER"{trust})\n```\n'
    )
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _table(rows: Mapping[str, str]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())
