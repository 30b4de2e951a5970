"""Students of a teacher: their flags, and what their runs left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import config

from fairseq import tasks
from fairseq.logging.sinks import read_jsonl
from fairseq.teacher import load_teacher

LAST = "checkpoint_last.pt"
CAUSAL: dict[str, Any] = {
    "task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm",
    "decoder_layers": 2, "decoder_embed_dim": 32, "decoder_input_dim": 32, "decoder_output_dim": 32,
    "decoder_ffn_embed_dim": 64, "decoder_attention_heads": 2,
}  # fmt: skip
ALL_TERMS: dict[str, Any] = {
    "criterion": "distillation", "alpha_mse": 0.01, "alpha_cos": 1.0, "pkd_weight": 1.0,
    "minilm_attention_weight": 1.0, "minilm_value_weight": 1.0,
}  # fmt: skip
FAMILIES = {"masked": {}, "causal": CAUSAL}
HALF = {"masked": {"encoder_layers": 1}, "causal": {"decoder_layers": 1}}


def student(family: str, teacher: Path | str, **flags: Any) -> dict[str, Any]:
    return {**FAMILIES[family], **HALF[family], **ALL_TERMS, "teacher_path": str(teacher), **flags}


def shown(folder: Path, tag: str) -> dict[str, Any]:
    return [r for r in read_jsonl(folder / "metrics.jsonl") if r["tag"] == tag][-1]


def load(data: Path, flags: dict[str, Any]) -> Any:
    """Return the teacher of a run, as the run would get it."""
    cfg = config(data, data, **flags)
    task = tasks.setup_task(cfg.task)
    return load_teacher(cfg, task, task.build_model(cfg.model))
