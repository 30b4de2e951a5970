"""Sizes in the settings of a checkpoint, held against its tensors before anything is built.

A file may claim a billion layers or a width of a million: building such a model would hang or fill
the memory before the first tensor is compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from fairseq.errors import CheckpointError

if TYPE_CHECKING:
    from fairseq.config.sections import FairseqConfig
    from fairseq.protocols import Settings


MOST_UNCHECKED = 1 << 20  # of what no tensor tells, such as positions that are not learned
# (setting, tensors that have this size, in which dimension); S is encoder or decoder
_SHAPES = (
    ("S_ffn_embed_dim", r"layers\.\d+\.fc1\.weight", 0),
    ("S_embed_dim", r"layers\.\d+\.fc1\.weight", 1),
    ("decoder_input_dim", r"decoder\.embed_tokens\.weight", 1),
    ("decoder_output_dim", r"decoder\.output_projection\.weight", 1),
)
_COUNTS = (
    "max_positions", "max_target_positions", "segments", "dict_size", "tokens_per_sample",
    "num_classes",
)  # fmt: skip


def check_sizes(config: FairseqConfig, tensors: Mapping[str, object]) -> None:
    """Compare layers, widths and counts of the settings with the tensors of the same file.

    Args:
        config: settings of a checkpoint.
        tensors: its state dict, under today's names.

    Raises:
        CheckpointError: naming the first setting that does not fit.
    """
    model = config.model
    shapes = {k: tuple(v.shape) for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    if any(name.startswith("operator.") for name in shapes):
        # a growth operator holds the source and what is new: together they are what it makes
        _check_operator(model, 2 * largest)
        shapes = {}
    else:
        for side in ("encoder", "decoder"):
            _check_layers(model, side, list(shapes))
    for name, pattern, dimension in _SHAPES:
        for side in ("encoder", "decoder"):
            setting = name.replace("S", side)
            claimed = getattr(model, setting, None)
            regex = re.compile(rf"(.*\.)?{side}\.(.*\.)?{pattern.removeprefix(side + '.')}")
            if isinstance(claimed, int) and setting.startswith(side):
                for tensor, shape in shapes.items():
                    if regex.fullmatch(tensor) and shape[dimension : dimension + 1] != (claimed,):
                        _refuse(setting, claimed, f"{tensor} has the shape {shape}")
    for section in (model, config.task):
        for setting in _COUNTS:
            claimed = getattr(section, setting, None)
            if isinstance(claimed, int) and claimed > max(largest, MOST_UNCHECKED):
                _refuse(setting, claimed, f"no tensor is larger than {largest} in any dimension")


def _check_operator(model: Settings, largest: int) -> None:
    for side in ("encoder", "decoder"):
        for name in ("layers", "embed_dim", "ffn_embed_dim"):
            claimed = getattr(model, f"{side}_{name}", None)
            if isinstance(claimed, int) and claimed > largest:
                fact = f"source and operator together are not larger than {largest}"
                _refuse(f"{side}_{name}", claimed, fact)


def _check_layers(model: Settings, side: str, names: list[str]) -> None:
    claimed = getattr(model, f"{side}_layers", None)
    if not isinstance(claimed, int) or getattr(model, f"{side}_layers_to_keep", None):
        return
    layers = {m[2] for n in names if (m := re.match(rf"(.*\.)?{side}\..*?layers\.(\d+)\.", n))}
    if claimed > (len(layers) or max(len(names), 1000)):
        _refuse(f"{side}_layers", claimed, f"there are tensors of {len(layers)} layers")


def _refuse(setting: str, claimed: int, fact: str) -> None:
    raise CheckpointError(
        f"the settings of this checkpoint do not belong to its tensors: {setting} is {claimed}, "
        f"but {fact}"
    )


def refuse_unbacked(tensor: torch.Tensor) -> None:
    """Refuse a tensor that stands for many more elements than the file holds.

    Expanded (stride 0), sparse and meta tensors take no room in a file and any amount of memory as
    soon as they are copied.

    Raises:
        CheckpointError: saying what it is.
    """
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise CheckpointError("it holds a tensor that is not an ordinary (strided) one")
    held = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
    if tensor.numel() > max(held, MOST_UNCHECKED):
        raise CheckpointError(
            f"it holds a tensor of the shape {tuple(tensor.shape)}, but only {held:,} elements of "
            "it: an expanded tensor must be copied before it is saved"
        )
