"""Minimal pairs: is the good sentence of two more likely than the bad one?

Causal models give a sentence the sum of ``log p(token | those before)``, masked ones the sum of
``log p(token | all others)``; the marks of begin and end are read, not scored. Equal sums are
wrong: a model that finds everything equally likely is right about nothing.

Source: Warstadt et al. 2020 (BLiMP), section 4 (whole sentences); Salazar et al. 2020 (Masked
Language Model Scoring), equation 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq.data.encoders import TextEncoder
from fairseq.errors import DataError
from fairseq.evaluation.continuations import (
    BATCH_SIZE,
    Batches,
    front,
    ids_of,
    is_masked,
    read_texts,
    score_continuations,
    score_file,
)
from fairseq.models.base import BaseFairseqModel
from fairseq.tasks.base import FairseqTask

KEYS = ("sentence_good", "sentence_bad")
REMEDY = f"give --minimal-pairs a .jsonl file whose every line has {' and '.join(KEYS)}"
# name of the set, good sentence, bad sentence
Sentences = tuple[str, str, str]


def read_pairs(path: str) -> list[Sentences]:
    """Return the pairs of a file in the layout of BLiMP, or of all ``.jsonl`` files of a folder.

    Raises:
        MissingFileError: if it does not exist.
        DataError: on a line without the two sentences, or if there is no pair at all.
    """
    files = sorted(map(str, Path(path).glob("*.jsonl"))) if os.path.isdir(path) else [path]
    pairs = [
        (Path(name).name.split(".")[0], good, bad)
        for name in files
        for good, bad in zip(*(read_texts(name, key, REMEDY) for key in KEYS), strict=True)
    ]
    if not pairs:
        raise DataError(f"{path} holds no pair; {REMEDY}")
    return pairs


def minimal_pairs(
    models: Sequence[BaseFairseqModel],
    task: FairseqTask,
    bpe: TextEncoder,
    pairs: Sequence[Sentences],
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    watch: Callable[[Batches], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Compare the sentences of pairs; equal sequences of tokens are scored once.

    Args:
        models: of this and what follows see :func:`fairseq.evaluation.continuations.last_word`.
        pairs: see :func:`read_pairs`.

    Returns:
        ``accuracy`` (0 to 1), ``pairs``, ``ties`` (all wrong), ``unknown``: pairs with a piece
        that the dictionary lacks, and ``sets``: accuracies by name.

    Raises:
        ConfigError: if the model is no language model.
        DataError: if a sentence is longer than the model takes.
    """
    begin = front(task, is_masked(task, models[0]))
    # dictionaries of whole words need no encoder
    encode: Callable[[str], str] = str if bpe is None else bpe.encode
    encoded = [
        [tuple(ids_of(encode(" ".join(text.split())).split(), task)) for text in sentences]
        for _, *sentences in pairs
    ]
    # dict.fromkeys keeps the order, so that batches do not depend on hashes
    unique = list(dict.fromkeys(ids for both in encoded for ids in both))
    rows = [(begin, list(ids)) for ids in unique]
    scores = score_continuations(models, task, rows, batch_size, device, watch=watch)
    log_prob = {ids: score.log_prob for ids, score in zip(unique, scores, strict=True)}
    unk = task.target_dictionary.unk()
    # a tie says that the model cannot tell them apart, so it is wrong
    right = [log_prob[good] > log_prob[bad] for good, bad in encoded]
    sets: dict[str, list[bool]] = {}
    for (name, *_), is_right in zip(pairs, right, strict=True):
        sets.setdefault(name, []).append(is_right)
    return {
        "accuracy": sum(right) / len(right),
        "pairs": len(right),
        "ties": sum(log_prob[good] == log_prob[bad] for good, bad in encoded),
        "unknown": sum(unk in good or unk in bad for good, bad in encoded),
        "sets": {name: sum(each) / len(each) for name, each in sets.items()},
    }


def evaluate_minimal_pairs(flat: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Compare the pairs of a file or folder; see :func:`score_file`."""
    result: dict[str, Any] = score_file(flat, minimal_pairs, read_pairs(path), "minimal pairs")
    return result


def describe(result: Mapping[str, Any]) -> str:
    """Return a line for people, and one for each set if there are several."""
    sets = result["sets"]
    lines = [f"{name}: {share:.2%}" for name, share in sets.items()] if len(sets) > 1 else []
    more = "".join(f", {result[name]:,} {name}" for name in ("ties", "unknown") if result[name])
    total = f"minimal pairs: accuracy {result['accuracy']:.2%} ({result['pairs']:,} pairs{more})"
    return "\n".join([*lines, total])
