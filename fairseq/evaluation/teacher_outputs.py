"""Storing what a teacher says of a corpus, so that students need not run it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.config.sections import FairseqConfig
from fairseq.data.batches.read import workers_ended
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError
from fairseq.files.folders import new_folder
from fairseq.files.io import sha256_of
from fairseq.hub.load import load_by_settings
from fairseq.logging.progress_bar import progress_of
from fairseq.tasks import validation
from fairseq.tasks.base import FairseqTask
from fairseq.teacher.cache import METHODS, VERSION, CacheWriter, digest_of
from fairseq.training.allocator import keep_freed_memory


def write_teacher_cache(
    flat: Mapping[str, Any],
    folder: Path,
    method: str = "topk",
    k: int = 64,
    temperatures: Sequence[float] = (1.0,),
    epochs: int = 1,
    force: bool = False,
) -> dict[str, Any]:
    """Store what a checkpoint says of the subsets ``flat["valid_subset"]``.

    Args:
        flat: flat settings, see :func:`fairseq.evaluation.validate`; ``path`` is the teacher.
        folder: the folder to make.
        method: ``topk`` or ``sample``.
        k: entries of each position.
        temperatures: those that students may use.
        epochs: store masked training data as they are in the first so many epochs.
        force: replace the folder.

    Returns:
        what ``meta.json`` says.

    Raises:
        ConfigError: for senseless settings.
    """
    if method not in METHODS or min(k, epochs) < 1 or not temperatures or min(temperatures) <= 0:
        raise ConfigError(
            f"--cache-method is one of {', '.join(METHODS)}, --top-k and --cache-epochs at least "
            f"1, and temperatures are positive, not {method}, {k}, {epochs} and "
            f"{list(temperatures)}"
        )
    if len(utils.split_paths(str(flat["path"]))) > 1:
        raise ConfigError(f"--path {flat['path']} names several teachers: store one at a time")
    models, config, task = load_by_settings(flat)
    device = choose_device(config)
    keep_freed_memory()
    model = models[0].to(device).eval()
    dictionary = task.target_dictionary
    k = min(k, len(dictionary)) if method == "topk" else k
    meta: dict[str, Any] = {
        "version": VERSION,
        "method": method,
        "k": k,
        "temperatures": list(temperatures),
        "symbols": len(dictionary),
        "dictionary": digest_of(dictionary),
        "teacher": str(flat["path"]),
        # draws of another seed are another cache
        **({"seed": config.common.seed} if method == "sample" else {}),
        "teacher_sha256": sha256_of(str(flat["path"])),
    }
    teacher = Path(str(flat["path"]))
    with new_folder(folder, force, teacher, "--cache-force") as unfinished:
        with CacheWriter(unfinished, meta, config.common.seed) as writer:
            for subset, epoch in _passes(config, task, epochs):
                every = validation.valid_batches(config, task, model, subset, epoch)
                batches = every.next_epoch_itr(shuffle=False)
                shown = f"the teacher on '{subset}', epoch {epoch}"
                with workers_ended(), progress_of(config.common, batches, shown) as progress:
                    for sample in filter(None, progress):
                        writer.add(model, utils.move_to_device(sample, device), dictionary.pad())
        (unfinished / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return meta


def _passes(config: FairseqConfig, task: FairseqTask, epochs: int) -> Iterator[tuple[str, int]]:
    """Load each subset as a training does, and yield it with the epoch whose masks it has.

    Training data of several folders are one folder an epoch: all of them come up.
    """
    data = getattr(config.task, "data", None) or ""
    folders = len([folder for folder in utils.split_paths(data) if folder])
    for subset in validation.valid_subsets(config):
        trained = subset == task.train_split
        for epoch in range(1, 1 + (max(epochs, folders) if trained else 1)):
            if epoch == 1 or folders > 1:
                combine = trained or bool(config.dataset.combine_valid_subsets)
                task.load_dataset(subset, combine=combine, epoch=epoch)
            yield subset, epoch
