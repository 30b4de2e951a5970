"""The optimizer's state after growth: kept for what was inherited, reset for what is new.

Copies of a channel get equal gradients; with equal optimizer states, all kept or all reset, they
get equal updates and stay copies. Kept for the original and zero for its copies, ``S' = [S, 0]``,
the states set them apart. They are not scaled along with the weights, which gained nothing there.

Source: Yu et al. 2026 (SPARKLING, arXiv 2602.02472), section 4.2.1, equation 24, for width; a layer
is treated alike: the first copy of each keeps the state. The paper's other half, a learning rate of
its own for what is new, is not here: the rate of a run holds for whole tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError, UnsupportedError
from fairseq.growth.tensors import Parts, split

FLAG = "--grow-optimizer asymmetric"
# what writes to the inner axes of a layer and to the stream; no method scales these vectors
_WITNESSES = ("fc1.bias", "self_attn.q_proj.bias", "self_attn.out_proj.bias")


def inherited_layers(
    state: Mapping[str, Tensor], grow: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[int, int]:
    """Return the target's layers that begin as a layer of the source in the upper-left corner.

    The method itself is asked: it grows a state in which every number is another one.

    Args:
        state: of the source.
        grow: the method, from the source's state to the target's.

    Returns:
        target layer -> source layer, the first copy of each.

    Raises:
        UnsupportedError: if a layer of the source is nowhere as it was.
    """
    total, marked = 0, {}
    for name, x in state.items():
        numbers = torch.arange(total + 1, total + 1 + x.numel(), dtype=torch.float64)
        marked[name] = numbers.view(x.shape) if x.is_floating_point() else x
        total += x.numel()
    small, large = split(marked), split(grow(marked))
    found: dict[int, int] = {}
    for layer in range(len(small.layers)):
        copies = [n for n in range(len(large.layers)) if _holds(large, n, small, layer)]
        if not copies:
            raise UnsupportedError(
                f"{FLAG}: layer {layer} of the source is no part of the grown model as it was, so "
                "that no coordinate inherits its optimizer state; use a method that copies (stack, "
                "fpi, aki, net2net, enlarge, hyperclone, copy), or --grow-optimizer reset"
            )
        found[copies[0]] = layer
    return found


def _holds(large: Parts, number: int, small: Parts, layer: int) -> bool:
    names = [name for name in _WITNESSES if name in small.layers[layer]]
    pairs = [(small.layers[layer][name], large.layers[number][name]) for name in names]
    return bool(pairs) and all(own.equal(grown[: len(own)]) for own, grown in pairs)


@dataclass(frozen=True)
class Carried:
    """What an optimizer inherits.

    Attributes:
        optimizer: class name of the one whose state it is.
        state: its ``state_dict``.
        shapes: of the source's parameters.
        layers: see :func:`inherited_layers`.
    """

    optimizer: str
    state: Mapping[str, Any]
    shapes: Mapping[str, torch.Size]
    layers: Mapping[int, int]

    def give(self, optimizer: Any, named: Mapping[str, nn.Parameter]) -> None:
        """Put the inherited state into a new optimizer; what is new stays at zero.

        Counters of steps are kept with the tensor they belong to; tensors without a counterpart in
        the source have no state, as at the start of any run.

        Args:
            optimizer: the wrapper, a :class:`fairseq.optim.FairseqOptimizer`.
            named: the trained parameters.

        Raises:
            ConfigError: if the source's state belongs to another optimizer, or other groups.
            UnsupportedError: for states that are not per coordinate.
        """
        if type(optimizer).__name__ != self.optimizer:
            raise ConfigError(
                f"{FLAG}: the source was trained with {self.optimizer}, this run has "
                f"{type(optimizer).__name__}"
            )
        inner, trained = optimizer.optimizer, {id(param) for param in named.values()}
        if any(
            id(param) not in trained for group in inner.param_groups for param in group["params"]
        ):
            raise UnsupportedError(
                f"{FLAG}: under --fp16 and --bf16 the optimizer keeps weights of its own; use --amp"
            )
        origins = {id(p): own for name, p in named.items() if (own := self._source_of(name))}
        saved = [group["params"] for group in self.state["param_groups"]]
        ours = [[p for p in group["params"] if id(p) in origins] for group in inner.param_groups]
        if [len(group) for group in saved] != [len(group) for group in ours]:
            raise ConfigError(
                f"{FLAG}: the source has groups of {[len(group) for group in saved]} parameters, "
                f"of which this run has {[len(group) for group in ours]}: use its settings of the "
                "optimizer"
            )
        place = {name: number for number, name in enumerate(self.shapes)}
        for indices, group in zip(saved, ours, strict=True):
            # a target may have the source's layers in another order
            group.sort(key=lambda param: place[origins[id(param)]])
            for index, param in zip(indices, group, strict=True):
                shape, old = self.shapes[origins[id(param)]], self.state["state"].get(index, {})
                inner.state[param] = {k: _cornered(k, x, shape, param) for k, x in old.items()}

    def _source_of(self, name: str) -> str | None:
        """Return which of the source's parameters is the corner of a parameter, if one is."""
        if found := re.fullmatch(r"(.*\blayers\.)(\d+)(\..+)", name):
            name = f"{found[1]}{self.layers.get(int(found[2]))}{found[3]}"
        return name if name in self.shapes else None


def _cornered(key: str, value: Any, shape: torch.Size, param: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value.clone() if isinstance(value, Tensor) else value
    if value.shape != shape:
        raise UnsupportedError(
            f"{FLAG}: the optimizer's {key} has the shape {tuple(value.shape)} for a parameter of "
            f"{tuple(shape)}: it is not per coordinate"
        )
    grown = torch.zeros(param.shape, dtype=value.dtype, device=param.device)
    grown[tuple(slice(size) for size in shape)] = value
    return grown
