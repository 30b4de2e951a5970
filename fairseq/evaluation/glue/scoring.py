"""Scores of a fine-tuned checkpoint on the validation splits.

Shape suffixes: N examples, B those of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq import utils
from fairseq.checkpoint.layout import read_state
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.sentence_prediction import pearson, spearman
from fairseq.distributed.device import choose_device
from fairseq.evaluation.glue.prepare import Prepared
from fairseq.evaluation.glue.tasks import GlueTask
from fairseq.hub.load import load_model_ensemble_and_task
from fairseq.models.base import BaseFairseqModel
from fairseq.protocols import Limits
from fairseq.tasks.base import FairseqTask


def accuracy(predicted_N: np.ndarray, target_N: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float(np.mean(predicted_N == target_N))


def f1(predicted_N: np.ndarray, target_N: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of class 1."""
    hits = np.sum((predicted_N == 1) & (target_N == 1))
    total = np.sum(predicted_N == 1) + np.sum(target_N == 1)
    return float(2 * hits / total) if total else 0.0


# Matthews' correlation of two classes is Pearson's of 0 and 1. Source: Matthews 1975.
SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": pearson,
    "pearson": pearson,
    "spearman": spearman,
}


def score_checkpoint(
    task: GlueTask, prepared: Prepared, path: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Return a checkpoint's scores, and those of always giving the most frequent label."""
    models, config, built = load_model_ensemble_and_task([str(path)])
    model = models[0].to(choose_device(config)).eval()
    counts = prepared.train_labels
    most = int(max(counts, key=counts.__getitem__)) if counts else 0
    scores, majority = {}, {}
    for place, name in enumerate(task.valid):
        predicted_N, target_N = predict(config, built, model, f"valid{place or ''}")
        if not task.is_regression():
            predicted_N = predicted_N.argmax(axis=-1)
        predicted_N = predicted_N.reshape(-1)
        suffix = name.removeprefix("dev").replace("_", " ")
        for score in task.scores:
            scores[score + suffix] = SCORES[score](predicted_N, target_N)
            majority[score + suffix] = SCORES[score](np.full_like(target_N, most), target_N)
    return scores, majority


def effort(path: Path) -> tuple[float, int]:
    """Return the seconds, over all restarts, and the updates behind a checkpoint."""
    state = read_state(path)
    seconds = float(state["extra_state"]["previous_training_time"])
    return seconds, int(state["optimizer_history"][-1]["num_updates"])


@torch.no_grad()
def predict(
    config: FairseqConfig, task: FairseqTask, model: BaseFairseqModel, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of the head (N, classes), float32, and the targets (N,), for a split."""
    task.load_dataset(split)
    device = next(model.parameters()).device
    head = config.criterion.classification_head_name
    limits = utils.resolve_max_positions(task.max_positions(), model.max_positions())
    outputs, targets = [], []
    for batch in batches_of(config, task, split, limits).next_epoch_itr(shuffle=False):
        batch = utils.move_to_device(batch, device)
        logits_BK, _ = model(
            **batch["net_input"], features_only=True, classification_head_name=head
        )
        outputs.append(logits_BK.float().cpu())
        targets.append(batch["target"].reshape(-1).cpu())
    return torch.cat(outputs).numpy(), torch.cat(targets).numpy()


def batches_of(
    config: FairseqConfig,
    task: FairseqTask,
    split: str,
    longest: Limits,
) -> Any:
    """Return an iterator over a split, in batches as in training."""
    return task.get_batch_iterator(
        dataset=task.dataset(split),
        max_tokens=config.dataset.max_tokens,
        max_sentences=config.dataset.batch_size,
        max_positions=longest,
        ignore_invalid_inputs=split == config.dataset.train_subset,
        required_batch_size_multiple=config.dataset.required_batch_size_multiple,
        seed=config.common.seed,
    )
