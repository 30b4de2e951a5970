"""Files of models: weights of Hugging Face in, checkpoints of ours out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.files import write_checkpoint
from fairseq.checkpoint.layout import OURS, original_cfg, our_record
from fairseq.config import options
from fairseq.config.sections import FairseqConfig
from fairseq.errors import CheckpointError, FairseqError, UnsupportedError
from fairseq.files.io import require_file
from fairseq.files.safe_load import safe_load


@contextlib.contextmanager
def sound_folder(source: Path) -> Iterator[None]:
    """Say that the folder is damaged where reading it raises what no check of ours foresaw.

    Raises:
        CheckpointError: naming the folder.
    """
    try:
        yield
    except (FairseqError, OSError, MemoryError):
        raise
    except Exception as error:  # JSON of other kinds, cut weights, names that are missing
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{source} is no sound Hugging Face folder ({type(error).__name__}: {reason}). Fetch "
            "it again; FAIRSEQ_DEBUG=1 shows where reading it failed"
        ) from error


def read_weights(source: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors`` or, with the safe loader, ``pytorch_model.bin``, as fp32.

    Weights in several files are found by the ``.index.json`` beside them.
    """
    remedy = "Expected model.safetensors or pytorch_model.bin."
    known = [source / name for name in ("model.safetensors", "pytorch_model.bin")]
    whole = next((path for path in known if path.is_file()), None)
    index = next((path for p in known if (path := Path(f"{p}.index.json")).is_file()), None)
    if whole is None and index is not None:
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [require_file(source / Path(part).name, "weights", remedy) for part in parts]
    else:
        files = [whole or require_file(known[1], "weights", remedy)]
    tensors: dict[str, Any] = {}
    for path in files:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors.update(load_file(str(path)))
        else:
            tensors.update(safe_load(path))
    return {k: v.float() for k, v in tensors.items() if torch.is_tensor(v)}


def filled(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return a model of theirs with these weights, to be used.

    Raises:
        CheckpointError: if some are missing or surplus.
    """
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if lost := [key for key in missing if "position_ids" not in key] + list(unexpected):
        raise CheckpointError(f"{type(model).__name__} and the checkpoint differ: {lost[:5]}")
    return model.eval()


def refuse_operator(path: Path, settings: object) -> None:
    """Raise if a checkpoint holds an operator of growth instead of a model's weights.

    Raises:
        UnsupportedError: naming the command that makes the model of it.
    """
    if hasattr(settings, "ligo_source"):
        raise UnsupportedError(
            f"{path} holds a growth operator, not the weights of the model that it makes: write "
            f"them with fairseq-grow {path} --out FILE, and export that"
        )


def write_ours(
    folder: Path, out: Path, state: Mapping[str, Tensor], settings: dict[str, Any]
) -> None:
    """Write ``model.pt`` of a model without a training history.

    Args:
        folder: where.
        out: what the folder will be called; the checkpoint records it.
        state: the weights.
        settings: flat; without ``bpe`` the checkpoint records that it has no text encoder.
    """
    config = options.make_config({"data": str(out), **settings})
    record = {} if settings.get("bpe") else {"text_encoder": "none"}
    write_model(folder / "model.pt", state, config, {"imported": True}, record)


def write_model(
    path: Path,
    state: Mapping[str, Tensor],
    config: FairseqConfig,
    facts: Mapping[str, object],
    record: Mapping[str, object] | None = None,
) -> None:
    """Write a checkpoint of weights and their configuration, without a training history.

    Args:
        path: the file.
        state: the weights.
        config: the configuration.
        facts: what the file beside it says.
        record: what our record of the checkpoint holds beside the configuration.
    """
    checkpoint: dict[str, Any] = {
        "args": None,
        "cfg": original_cfg(config),
        "model": dict(state),
        "criterion": None,
        "optimizer_history": [],
        "task_state": {},
        "extra_state": {OURS: {**our_record(config, {}), **(record or {})}},
        "last_optimizer_state": None,
    }
    write_checkpoint(checkpoint, str(path), facts)
