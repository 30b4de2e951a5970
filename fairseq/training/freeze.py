"""Parts of a model that stay as they are: ``--freeze-embeddings``, ``-positions``, ``-layers``."""

from __future__ import annotations

import re

from torch import nn

from fairseq.config.sections import OptimizationConfig
from fairseq.errors import ConfigError


def freeze_parts(model: nn.Module, settings: OptimizationConfig) -> None:
    """Exclude parameters from training, by the names they have in checkpoints.

    What is frozen gets no gradient, and the optimizer, weight decay included, never sees it.

    Raises:
        ConfigError: if the model has no such part, or nothing is left to train.
    """
    if settings.freeze_embeddings:
        _freeze(model, r"embed_tokens\.", "--freeze-embeddings: this model has no embeddings")
    if settings.freeze_positions:
        why = "--freeze-positions: this model learns no positions (see --position)"
        _freeze(model, r"embed_positions\.", why)
    layers = settings.freeze_layers
    for number in [] if layers is None else layers_of(layers):
        _freeze(model, rf"layers\.{number}\.", f"--freeze-layers: there is no layer {number}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("nothing is left to train: all of the model is frozen")


def _freeze(model: nn.Module, pattern: str, otherwise: str) -> None:
    # tied parameters have several names
    named = model.named_parameters(remove_duplicate=False)
    matching = [parameter for name, parameter in named if re.search(rf"(^|\.){pattern}", name)]
    if not matching:
        raise ConfigError(otherwise)
    for parameter in matching:
        parameter.requires_grad_(False)


def layers_of(text: str) -> list[int]:
    """Return the numbers that a text such as ``0,2,5-7`` names, ascending.

    Raises:
        ConfigError: if it is something else.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if last < first:
            raise ConfigError(
                f"--freeze-layers {text}: write numbers and ranges, counted from 0, such as 0-3 "
                "or 0,2,5-7"
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)
