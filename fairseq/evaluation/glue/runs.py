"""Fine-tuning, task by task and seed by seed, by the training that everything else uses."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq import tasks
from fairseq.checkpoint.files import checkpoint_paths, delete_checkpoint
from fairseq.config import options
from fairseq.config.sections import FairseqConfig
from fairseq.errors import FairseqError
from fairseq.evaluation.glue.prepare import Prepared, Pretrained, prepare
from fairseq.evaluation.glue.results import Results, Run
from fairseq.evaluation.glue.scoring import batches_of, effort, score_checkpoint
from fairseq.evaluation.glue.tasks import GlueTask
from fairseq.export.encoder_out import to_huggingface
from fairseq.files.io import atomic_write, require_file
from fairseq.training import loop

MAX_TOKENS = 4400
MAX_LENGTH = 512
REPORTS = {
    "mcc": "report_mcc",
    "acc_and_f1": "report_acc_and_f1",
    "pearson_and_spearman": "report_pearson_and_spearman",
}


def longest_input(pretrained: Pretrained) -> int:
    """Return how many tokens an example may have: what the model takes, 512 if that is no limit."""
    bounded = pretrained.model.get("position") == "learned"
    return int(pretrained.model.get("max_positions") or MAX_LENGTH) if bounded else MAX_LENGTH


def recipe(task: GlueTask, pretrained: Pretrained, prepared: Prepared) -> dict[str, Any]:
    """Return the settings of a fine-tuning run, in sections, without schedule and run folder."""
    special = pretrained.dictionary
    report = {REPORTS[task.best]: True} if task.best in REPORTS else {}
    subsets = ",".join(f"valid{place or ''}" for place in range(len(task.valid)))
    return {
        # autocast, not half weights: sets are small, and some learning rates too
        "common": {"amp": torch.cuda.is_available()},
        "task": {
            "_name": "sentence_prediction",
            "data": prepared.folder,
            "num_classes": len(task.classes) or 1,
            "init_token": special.bos(),
            "separator_token": special.eos() if pretrained.ends_between > 1 else None,
            "max_positions": longest_input(pretrained),
            "no_shuffle": True,  # in order of length; batches are shuffled all the same
        },
        "criterion": {
            "_name": "sentence_prediction",
            "regression_target": task.is_regression(),
            **report,
        },
        # the checkpoint names its text encoder
        **({"bpe": pretrained.encoder_settings} if pretrained.encoder_settings else {}),
        "model": {**pretrained.model, "dropout": 0.1, "attention_dropout": 0.1},
        "dataset": {
            "batch_size": task.batch_size,
            "max_tokens": MAX_TOKENS,
            "required_batch_size_multiple": 1,
            "valid_subset": subsets,
            "num_workers": 0,
        },
        "optimizer": {
            "_name": "adam",
            "weight_decay": 0.1,
            "adam_betas": "(0.9, 0.98)",
            "adam_eps": 1e-6,
        },
        "lr_scheduler": {"_name": "polynomial_decay"},
        "optimization": {"lr": [task.lr], "max_epoch": task.epochs, "clip_norm": 0.0},
        "checkpoint": {
            "finetune_from_model": pretrained.path,
            "no_epoch_checkpoints": True,
            "best_checkpoint_metric": task.best,
            "maximize_best_checkpoint_metric": True,
        },
        "distributed_training": {"distributed_world_size": 1},
    }


def digest_of(
    settings: dict[str, Any], flags: Sequence[str], pretrained: Pretrained, prepared: Prepared
) -> str:
    """Return what tells runs with other settings, weights or data apart; paths do not count."""
    told = {section: dict(values) for section, values in settings.items() if section != "bpe"}
    del told["task"]["data"], told["checkpoint"]["finetune_from_model"]
    parts = [told, list(flags), pretrained.digest, prepared.digest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _parse(file: Path, flags: Sequence[str]) -> FairseqConfig:
    """Return the configuration of ``fairseq-train --config FILE FLAGS``."""
    parser = options.get_training_parser(argv=flags)
    parser.prog = "fairseq-glue ... (flags of fairseq-train)"
    parser.add_argument("--config")
    return options.parse_config(parser, ["--config", str(file), *flags])


def _write_recipe(file: Path, settings: dict[str, Any]) -> None:
    import yaml

    with atomic_write(file, "w") as handle:
        yaml.safe_dump(settings, handle, sort_keys=False)


def _scale_schedule(
    task: GlueTask, settings: dict[str, Any], config: FairseqConfig
) -> tuple[float, float]:
    """Fit the schedule to the number of batches, in place.

    Returns:
        the tokens of an update, without padding, and the share of padding.
    """
    built = tasks.setup_task(config.task)
    built.load_dataset(config.dataset.train_subset)
    batches = batches_of(config, built, config.dataset.train_subset, built.max_positions())
    sizes_N = np.asarray(built.dataset(config.dataset.train_subset).sizes).reshape(-1)
    cells = sum(len(batch) * int(sizes_N[batch].max()) for batch in batches.frozen_batches)
    epochs = config.optimization.max_epoch or task.epochs
    per_epoch = math.ceil(len(batches) / config.optimization.update_freq[-1])
    updates = epochs * per_epoch
    if config.optimization.max_update:
        updates = min(updates, config.optimization.max_update)
    schedule = {"total_num_update": updates, "warmup_updates": math.ceil(task.warmup * updates)}
    settings["lr_scheduler"].update(schedule)
    tokens = float(sizes_N.sum())
    return tokens / per_epoch, 1 - tokens / cells


def fine_tune(
    task: GlueTask,
    seed: int,
    pretrained: Pretrained,
    prepared: Prepared,
    folder: Path,
    flags: Sequence[str] = (),
    keep: bool = False,
    export: bool = False,
) -> Run:
    """Train and score once; a run that was interrupted goes on.

    Args:
        task: which.
        seed: of the new head, the order of the batches, and dropout.
        pretrained: what is fine-tuned.
        prepared: the data.
        folder: the run folder.
        flags: of fairseq-train, which win over the recipe.
        keep: keep the checkpoints.
        export: write the best model as a folder of Hugging Face, with its head.

    Returns:
        what is known of the run: ``scores`` of the ``best`` and the ``last`` epoch, and figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = recipe(task, pretrained, prepared)
    digest = digest_of(settings, flags, pretrained, prepared)
    file = folder / "recipe.yaml"
    words = [*flags, "--seed", str(seed), "--save-dir", str(folder)]
    _write_recipe(file, settings)
    tokens, padding = _scale_schedule(task, settings, _parse(file, words))
    _write_recipe(file, settings)
    loop.run_training(_parse(file, words))
    last, best = folder / "checkpoint_last.pt", folder / "checkpoint_best.pt"
    require_file(last, "fine-tuned model", "Drop flags that keep it from being saved.")
    scores, majority = score_checkpoint(task, prepared, last)
    chosen = score_checkpoint(task, prepared, best)[0] if best.is_file() else scores
    seconds, updates = effort(last)
    run = {
        "task": task.name,
        "seed": seed,
        "digest": digest,
        "scores": {"best": chosen, "last": scores},
        "majority": majority,
        "seconds": round(seconds, 2),
        "updates": updates,
        "tokens_per_second": round(updates * tokens / max(seconds, 1e-9)),
        "padding": round(padding, 4),
        "flags": list(flags),
    }
    if export:
        kept, out = best if best.is_file() else last, folder / "hf"
        labels = list(task.classes) or None
        to_huggingface(kept, out, Path(prepared.folder), force=True, labels=labels)
        run["exported"] = str(out)
    if not keep:
        for path in checkpoint_paths(str(folder), r"checkpoint.*\.pt"):
            delete_checkpoint(path)
    gc.collect()
    return run


class Progress:
    """Says on standard error what is done, and how long the rest will take.

    Args:
        costs: the (relative) effort of each run to come.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs, self._done, self._start = list(costs), 0, time.monotonic()

    def say(self, text: str, finished: bool = False) -> None:
        """Print a line; ``finished`` counts a run as done."""
        self._done += finished
        spent, rest = sum(self._costs[: self._done]), sum(self._costs[self._done :])
        left = ""
        if spent and rest:
            seconds = (time.monotonic() - self._start) * rest / spent
            left = (
                f"; about {seconds / 60:.0f} min left"
                if seconds > 90
                else (f"; about {seconds:.0f} s left")
            )
        print(f"[{self._done}/{len(self._costs)}] {text}{left}", file=sys.stderr, flush=True)


def run_glue(
    chosen: Sequence[GlueTask],
    seeds: Sequence[int],
    pretrained: Pretrained,
    glue_dir: str | Path,
    out: Path,
    flags: Sequence[str] = (),
    keep: bool = False,
    export: bool = False,
) -> list[Run]:
    """Prepare, fine-tune and score all tasks with all seeds; finished runs are not repeated.

    Args:
        chosen: the tasks.
        seeds: the seeds.
        pretrained: what is fine-tuned.
        glue_dir: holds a folder with the official files for each task.
        out: gets a folder for each task, and ``results.json``.
        flags: of fairseq-train, which win over the recipes.
        keep: keep the checkpoints.
        export: write the best models as folders of Hugging Face; finished runs that were not
            exported are repeated.

    Returns:
        the runs, task by task.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.json")
    longest = longest_input(pretrained)
    ready = {
        task.name: prepare(task, glue_dir, pretrained, out / task.name / "data-bin", longest)
        for task in chosen
    }
    plan: list[tuple[GlueTask, int, str]] = []
    runs = []
    for task in chosen:
        settings = recipe(task, pretrained, ready[task.name])
        digest = digest_of(settings, flags, pretrained, ready[task.name])
        for seed in seeds:
            known = results.find(task.name, seed, digest)
            if known is None or (export and not Path(known.get("exported", "")).is_dir()):
                plan.append((task, seed, digest))
            else:
                runs.append(known)
    progress = Progress([ready[task.name].tokens * task.epochs for task, *_ in plan])
    if runs:
        progress.say(f"{len(runs)} runs are in {results.path} already")
    for task, seed, digest in plan:
        progress.say(f"{task.name}, seed {seed}: {ready[task.name].examples:,} examples")
        folder = out / task.name / f"{digest}-seed{seed}"
        with _named(task, seed):
            run = fine_tune(task, seed, pretrained, ready[task.name], folder, flags, keep, export)
        results.add(run)
        runs.append(run)
        figures = ", ".join(f"{name} {100 * x:.1f}" for name, x in run["scores"]["best"].items())
        progress.say(f"{task.name}, seed {seed}: {figures} in {run['seconds']:.0f} s", True)
    order = [task.name for task in chosen]
    runs.sort(key=lambda run: (order.index(run["task"]), run["seed"]))
    results.write(runs)
    return runs


@contextlib.contextmanager
def _named(task: GlueTask, seed: int) -> Iterator[None]:
    """Put task and seed in front of the message of an error."""
    try:
        yield
    except FairseqError as error:
        raise type(error)(f"{task.name}, seed {seed}: {error}") from error
