"""Probing checkpoints, and what they have to be better than.

Shapes: S sentences, D features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import ConfigError, DataError
from fairseq.evaluation.probes.features import Encoder, one_hot, true_conditionals
from fairseq.evaluation.probes.linear import Split, accuracy, fit
from fairseq.evaluation.probes.sentences import Labelled

Row = dict[str, Any]


def probe(
    paths: Sequence[str],
    data: Mapping[str, Labelled],
    *,
    features: str = "positions",
    solver: str = "lbfgs",
    max_positions: int | None = None,
    lookup: Mapping[str, str] | None = None,
    dict_dir: str | None = None,
    device: str = "auto",
    seed: int = 1,
) -> list[Row]:
    """Fit a linear classifier on the features of each checkpoint and of the baselines.

    The baselines are the most frequent label, tokens as one-hot vectors by position, the first
    checkpoint's encoder with random weights and, if score files are given, true distributions.

    Args:
        paths: encoders.
        data: ``train``, ``valid`` and perhaps ``test``; the last one is scored. Without a ``test``,
            what ``lbfgs`` chooses is chosen on the data that are scored.
        features: see :meth:`fairseq.evaluation.probes.features.Encoder.features`.
        solver: see :func:`fairseq.evaluation.probes.linear.fit`.
        max_positions: positions side by side; those of the longest sentence if None.
        lookup: a file of true distributions for each of ``data``.
        dict_dir: folder with ``dict.txt``.
        device: where encoders compute.
        seed: of random weights, and of ``sgd``.

    Returns:
        rows with ``features`` (a name), ``accuracy``, its ``se``, ``width`` and what was chosen.

    Raises:
        ConfigError: for a number of positions below 1.
        DataError: if the training data have one label only, or a file does not fit.
    """
    if max_positions is not None and max_positions < 1:
        raise ConfigError(f"--max-positions is at least 1, not {max_positions}")
    labels = sorted(set(data["train"].labels))
    if len(labels) < 2:
        raise DataError(f"the training data have one label only: {labels[0]}")
    number = {label: place for place, label in enumerate(labels)}
    classes = {
        name: torch.tensor([number.get(label, -1) for label in part.labels])
        for name, part in data.items()
    }
    scored = list(data)[-1]

    def row(name: str, tables: Mapping[str, Tensor]) -> Row:
        splits = {part: Split(tables[part], classes[part]) for part in data}
        classifier, chosen = fit(solver, splits["train"], splits["valid"], len(labels), seed)
        share = accuracy(classifier, splits[scored])
        return _row(name, share, len(classes[scored]), tables["train"].shape[1]) | chosen

    majority = Counter(data["train"].labels).most_common(1)[0][0]
    share = sum(label == majority for label in data[scored].labels) / len(data[scored].labels)
    rows = [_row(f"majority ({majority})", share, len(classes[scored]), 0)]
    for place, path in enumerate(paths):
        encoder = Encoder(path, dict_dir, device)
        ids = {name: encoder.ids(part.texts) for name, part in data.items()}
        wide = max_positions or max(len(row_ids) for part in ids.values() for row_ids in part)
        if place == 0:
            known_V = torch.cat(ids["train"]).unique()
            tokens = {name: one_hot(row_ids, known_V, wide) for name, row_ids in ids.items()}
            rows.append(row("one-hot tokens", tokens))
            if lookup:
                truth = {n: true_conditionals(lookup[n], data[n].texts, wide) for n in data}
                rows.append(row("true distributions", truth))
        tables = {name: encoder.features(row_ids, features, wide) for name, row_ids in ids.items()}
        rows.append(row(path, tables))
        if place == 0:
            encoder.forget(seed)
            random = {name: encoder.features(part, features, wide) for name, part in ids.items()}
            rows.append(row("random encoder", random))
    return rows


def _row(name: str, share: float, count: int, width: int) -> Row:
    error = math.sqrt(share * (1 - share) / count)
    return {"features": name, "accuracy": share, "se": error, "sentences": count, "width": width}
