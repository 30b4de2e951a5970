"""What plug-ins and notebooks take from checkpoint files and write as such.

The names are imported from :mod:`fairseq.checkpoint`.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import nn

from fairseq.checkpoint.files import write_checkpoint
from fairseq.checkpoint.layout import explain, read_state
from fairseq.checkpoint.tensor_names import upgrade_roberta_state
from fairseq.errors import CheckpointError, ConfigError, FairseqError
from fairseq.files.io import PathManager, atomic_write
from fairseq.files.safe_load import storable
from fairseq.models.base import FairseqDecoder, FairseqEncoder

Component = TypeVar("Component", bound=nn.Module)


def torch_persistent_save(obj: object, filename: str, async_write: bool = False) -> None:
    """Write ``obj`` as ``torch.save`` does, but whole or not at all.

    Args:
        obj: tensors, numbers, texts, lists and dicts, on any device.
        filename: final name.
        async_write: accepted for old callers; the file is there when this returns.

    Raises:
        CheckpointError: if it cannot be written, or holds something that could not be loaded.
    """
    content = storable(obj, "the object to be saved")
    try:
        with atomic_write(filename) as handle:
            torch.save(content, handle)
    except (OSError, RuntimeError) as error:  # torch hides errors of the disk behind its own
        raise CheckpointError(f"could not write {filename}: {error}") from error


def get_maybe_sharded_checkpoint_filename(
    filename: str, suffix: str, shard_idx: int, num_shards: int
) -> str:
    """Return the name of a shard: ``NAME-shardN.pt`` if that exists, else ``NAME_partN.pt``.

    Args:
        filename: ends in ``.pt``.
        suffix: inserted before ``.pt``, but not in the second of the names.
        shard_idx: number of the shard.
        num_shards: if there is only one, its name is that of the whole.
    """
    name = filename.removesuffix(".pt")
    sharded = f"{name}{suffix}-shard{shard_idx}.pt"
    if PathManager.exists(sharded):
        return sharded
    return f"{name}_part{shard_idx}.pt" if num_shards > 1 else f"{name}{suffix}.pt"


# -- one component ---------------------------------------------------------------------------------


def load_pretrained_component_from_model(
    component: Component, checkpoint: str, strict: bool = True
) -> Component:
    """Load the weights of an encoder or decoder from the checkpoint of a whole model.

    Args:
        component: an encoder, which takes what is called ``encoder.*`` in the file, or a decoder.
        checkpoint: the file; old RoBERTas are upgraded.
        strict: whether missing or surplus tensors are errors.

    Returns:
        ``component``.

    Raises:
        ConfigError: if ``component`` is neither.
        CheckpointError: if the file holds no such component, or another one.
    """
    if not isinstance(component, FairseqEncoder | FairseqDecoder):
        raise ConfigError(
            f"weights can be loaded into a FairseqEncoder or FairseqDecoder, not into a "
            f"{type(component).__name__}"
        )
    side = "encoder." if isinstance(component, FairseqEncoder) else "decoder."
    tensors = dict(read_state(checkpoint)["model"])
    if any(name.partition(".")[2].startswith("sentence_encoder.") for name in tensors):
        upgrade_roberta_state(tensors)
    weights = {
        name.removeprefix(side): tensor for name, tensor in tensors.items() if name.startswith(side)
    }
    if not weights:
        raise CheckpointError(
            f"{checkpoint} holds no {side}* weights; its tensors begin with "
            f"{', '.join(sorted({name.partition('.')[0] for name in tensors}))}"
        )
    for name, value in component.state_dict().items():
        if name.rpartition(".")[2] == "version":  # says how old the names are; the oldest had none
            weights.setdefault(name, value)
    try:
        component.load_state_dict(weights, strict=strict)
    except (FairseqError, RuntimeError) as error:
        raise explain(error, checkpoint) from error
    return component


# -- the moving average ----------------------------------------------------------------------------


def load_ema_from_checkpoint(path: str) -> dict[str, Any]:
    """Return a checkpoint of a run with ``--store-ema``, its model replaced by the average.

    Returns:
        its content, upgraded; the weights are fp32, also those of half-precision models.

    Raises:
        CheckpointError: if it holds no average.
    """
    state = read_state(path)
    extra_state = state["extra_state"]
    average = extra_state.get("ema_fp32_params") or extra_state.get("ema")
    if not average:
        raise CheckpointError(f"{path} holds no moving average; train with --store-ema")
    state["model"] = {
        name: value.float() if value.is_floating_point() else value
        for name, value in average.items()
    }
    return state


def save_ema_as_checkpoint(src_path: str, dst_path: str) -> None:
    """Write ``dst_path``: the checkpoint ``src_path``, its model replaced by the moving average.

    Raises:
        CheckpointError: if it holds no average, or the file cannot be written.
    """
    state = load_ema_from_checkpoint(src_path)
    updates = state["optimizer_history"][-1]["num_updates"]
    facts = {"num_updates": updates, "ema_of": os.path.basename(src_path)}
    write_checkpoint(state, dst_path, facts)
