"""Which parameters count, and the blocks whose traces are told apart.

Shapes: P numbers of all chosen parameters in a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError

# What moves by one factor when a model is put into one k times as wide stands in one block: tables
# by k, matrices and the bias of the vocabulary by 1, other biases and layer norms by 1/k. The first
# pattern that is found counts.
_BLOCKS = (
    ("embedding", r"embed_(tokens|positions|segments)\.|(lm_head|output_projection)\.weight$"),
    ("ln", r"norm"),
    ("head", r"(lm_head|output_projection)\.bias$|classification_heads\..*\.out_proj\.bias$"),
    ("bias", r"bias$"),
    ("head", r"(lm_head|output_projection|classification_heads|adaptive_softmax)\."),
    ("attention", r"_attn\."),
    ("ffn", r"\.fc[12]\."),
    ("other", r""),
)
# All but the pooler and the bias of the vocabulary, as the published script has it.
_PAPER = r"^(?!classification_heads\.[^.]+\.dense\.|(.*\.)?lm_head\.bias$)"


def block_of(name: str) -> str:
    """Return the block of a parameter: embedding, attention, ffn, ln, bias, head or other."""
    return next(block for block, pattern in _BLOCKS if re.search(pattern, name))


class ParameterSet:
    """The chosen parameters of a model as one long vector; a tied tensor is there once.

    Args:
        model: the model; the chosen parameters are made to require gradients, the others not to.
        choice: ``all``; ``paper``, all but the pooler and the bias of the vocabulary; or a regular
            expression that is searched for in the names.

    Raises:
        ConfigError: for a malformed expression, or one that fits no name.

    Attributes:
        names: of the parameters, in the order of the model.
        tensors: the parameters.
        size: P.

    Source of ``paper``: the script published with Liu et al. 2023 (Same Pre-training Loss, Better
    Downstream).
    """

    def __init__(self, model: nn.Module, choice: str = "all") -> None:
        pattern = {"all": "", "paper": _PAPER}.get(choice, choice)
        try:
            chosen = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"--params {choice}: not a regular expression: {error}") from error
        named = dict(model.named_parameters())
        self.names = [name for name in named if chosen.search(name)]
        if not self.names:
            raise ConfigError(
                f"--params {choice} fits no parameter; names look like {', '.join(list(named)[:3])}"
            )
        for name, parameter in named.items():
            parameter.requires_grad_(name in set(self.names))
        self.choice = choice
        self.tensors = [named[name] for name in self.names]
        self.size = sum(tensor.numel() for tensor in self.tensors)
        self._blocks = [block_of(name) for name in self.names]

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tensors of the parameters' shapes as one vector (P,)."""
        return torch.cat([part.reshape(-1) for part in parts])

    def flatten_rows(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tensors with one more dimension in front as vectors (K, P)."""
        return torch.cat([part.reshape(len(part), -1) for part in parts], 1)

    def by_name(self, values_P: Tensor) -> dict[str, float]:
        """Return the sums of numbers over each parameter."""
        parts = values_P.split([tensor.numel() for tensor in self.tensors])
        return {name: float(part.sum()) for name, part in zip(self.names, parts, strict=True)}

    def by_block(self, values_P: Tensor) -> dict[str, float]:
        """Return the sums of numbers over each block."""
        sums: dict[str, float] = {}
        for block, value in zip(self._blocks, self.by_name(values_P).values(), strict=True):
            sums[block] = sums.get(block, 0.0) + value
        return sums
