"""The mean of several checkpoints' weights: what fairseq-average does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from fairseq.checkpoint.files import checkpoint_paths, write_checkpoint
from fairseq.checkpoint.layout import check_layout, config_of, read_state
from fairseq.errors import CheckpointError, ConfigError
from fairseq.files.safe_load import safe_load


def average_checkpoints(inputs: Sequence[str]) -> dict[str, Any]:
    """Return the first checkpoint with the mean of all weights, the model's and the criterion's.

    Sums are formed in fp32 (fp64 for fp64 weights); integer tensors are divided without remainder.
    Optimizer state and moving average, which go with the weights of one file, are left out.

    Raises:
        CheckpointError: if their tensors have different names or shapes.
    """
    if not inputs:
        raise ConfigError("no checkpoint to average")
    result: dict[str, Any] | None = None
    totals: dict[tuple[str, str], torch.Tensor] = {}
    for path in inputs:
        if os.path.isdir(path):
            raise ConfigError(
                f"{path} is a folder: say which of its checkpoints with --num-epoch-checkpoints N, "
                "--num-update-checkpoints N or --num-best-checkpoints N, or name files"
            )
        state = safe_load(path)
        check_layout(state)
        tensors = {
            (part, name): tensor
            for part in ("model", "criterion")
            for name, tensor in (state.get(part) or {}).items()
        }
        if result is None:
            result = state
            types = {key: tensor.dtype for key, tensor in tensors.items()}
        elif set(tensors) != set(totals):
            odd = [".".join(key) for key in sorted(set(tensors) ^ set(totals))]
            raise CheckpointError(f"{path} has other parameters than {inputs[0]}: {odd[:5]}")
        for key, tensor in tensors.items():
            wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            if key not in totals:
                totals[key] = wide.clone()
            elif totals[key].shape != wide.shape:
                name = ".".join(key)
                raise CheckpointError(f"{path}: {name} has another shape than in {inputs[0]}")
            else:
                totals[key] += wide
    assert result is not None
    for key, total in totals.items():
        part, name = key
        exact = total.is_floating_point()
        # counters and versions are whole numbers in all of them
        mean = total / len(inputs) if exact else total // len(inputs)
        result[part][name] = mean.to(types[key])
    result.pop("last_optimizer_state", None)
    for average in ("ema", "ema_fp32_params"):
        (result.get("extra_state") or {}).pop(average, None)
    return result


def last_n_checkpoints(
    folders: Sequence[str], n: int, update_based: bool, upper_bound: int | None = None
) -> list[str]:
    """Return the newest ``n`` checkpoints of a run, newest first.

    Args:
        folders: exactly one run folder.
        n: how many.
        update_based: count by updates (``checkpoint_E_U.pt``) instead of epochs.
        upper_bound: ignore checkpoints after this epoch or update.

    Raises:
        CheckpointError: if there are fewer.
    """
    folder = _only_folder(folders)
    pattern = r"checkpoint_\d+_(\d+)\.pt" if update_based else r"checkpoint(\d+)\.pt"
    newest = [
        path
        for path, number in checkpoint_paths(folder, pattern, keep_match=True)
        if upper_bound is None or int(number) <= upper_bound
    ]
    return _first(newest, n, folder)


def best_n_checkpoints(folders: Sequence[str], n: int) -> list[str]:
    """Return the best ``n`` checkpoints of a run, best first.

    Args:
        folders: exactly one run folder.
        n: how many.

    Raises:
        CheckpointError: if there are fewer.
    """
    folder = _only_folder(folders)
    # they fall by their metric
    paths = checkpoint_paths(folder, r"checkpoint\.best_.+_(-?\d+\.?\d*)\.pt")
    if not paths:
        raise ConfigError(
            f"{folder} has no checkpoint.best_METRIC_VALUE.pt: fairseq-train keeps the best N with "
            "--keep-best-checkpoints N"
        )
    names = (os.path.basename(path).removeprefix("checkpoint.best_") for path in paths)
    metrics = sorted({name.rpartition("_")[0] for name in names})
    if len(metrics) > 1:
        raise ConfigError(
            f"{folder} holds the best of several metrics ({', '.join(metrics)}); name files"
        )
    # of a loss the lowest is the best
    maximize = config_of(read_state(paths[0])).checkpoint.maximize_best_checkpoint_metric
    return _first(paths if maximize else paths[::-1], n, folder)


def _only_folder(folders: Sequence[str]) -> str:
    if len(folders) != 1:
        raise ConfigError("give exactly one run folder")
    if not os.path.isdir(folders[0]):
        raise ConfigError(f"{folders[0]} is not a run folder; name the folder of its checkpoints")
    return folders[0]


def _first(paths: list[str], n: int, folder: str) -> list[str]:
    if len(paths) < n:
        raise CheckpointError(f"{folder} has {len(paths)} matching checkpoints, {n} are needed")
    return paths[:n]


def write_average(inputs: Sequence[str], output: str) -> None:
    """Average ``inputs`` and write the result to ``output``."""
    state = average_checkpoints(inputs)
    write_checkpoint(state, output, {"averaged": [os.path.basename(path) for path in inputs]})
