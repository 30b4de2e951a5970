"""The weights that fairseq 0.12.2 keeps twice.

Each encoder layer of that release (alone of all) has second copies of its projections, from which
it fills the tables of PyTorch's fused inference. No gradient ever reaches them, but they are
parameters: they lie in its files, and its optimizer counts them.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from fairseq.protocols import StateDict

COPIES = r"\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
_NO_PARAMETERS = r"\.version$|\._float_tensor$"


def drop_unused_weights(state: dict[str, Any]) -> None:
    """Take the copies out of a checkpoint's model, average and optimizer state, in place.

    The optimizer names parameters by their number in the order of the model, or keeps one flat
    vector of all (fp16); a state that fits neither is left alone, for its reader to refuse.
    """
    if not any(re.search(COPIES, name) for name in state["model"]):
        return  # nearly every file: its tables need not be compared
    weights = _parameters(state["model"])
    unused = [re.search(COPIES, name) is not None for name in weights]
    sizes = [weight.numel() for weight in weights.values()]
    average = (state.get("extra_state") or {}).get("ema") or {}
    for tensors in (state["model"], average):
        for name in [name for name in tensors if re.search(COPIES, name)]:
            del tensors[name]
    optimizer = state.get("last_optimizer_state") or {}
    for group in optimizer.get("param_groups", ()):
        if len(group["params"]) == len(unused):
            pairs = zip(group["params"], unused, strict=True)
            group["params"] = [number for number, is_copy in pairs if not is_copy]
    for entry in optimizer.get("state", {}).values():
        _cut(entry, sizes, unused)


def _parameters(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries that an optimizer counts: a tied head is the embedding table again.

    Untied ones (--untie-weights-roberta) start from different numbers and stay different.
    """
    table = next((v for k, v in model.items() if k.endswith(".embed_tokens.weight")), None)
    return {
        name: value
        for name, value in model.items()
        if not re.search(_NO_PARAMETERS, name)
        and not (
            name.endswith(".lm_head.weight") and table is not None and torch.equal(value, table)
        )
    }


def _cut(entry: StateDict, sizes: list[int], unused: list[bool]) -> None:
    """Take the copies out of the flat vectors of one entry of an optimizer's state."""
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.dim() == 1 and len(value) == sum(sizes):
            pairs = zip(value.split(sizes), unused, strict=True)
            entry[name] = torch.cat([part for part, is_copy in pairs if not is_copy])
