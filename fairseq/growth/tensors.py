"""What the axes of every tensor mean: the one table that all growth methods share.

A role is ``+axis`` where a tensor writes to an axis (its rows become channels of it) and ``-axis``
where it reads from one. Axes: ``emb`` the residual stream, ``q``, ``k``, ``v`` the channels inside
attention (heads side by side), ``ffn`` inside the feed-forward network, ``cls`` inside RoBERTa's
head, ``heads`` the heads. None is an axis that never grows (vocabulary, positions, classes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fairseq.errors import UnsupportedError

Role = str | None
State = Mapping[str, Tensor]
_LINEAR = {
    "self_attn.q_proj": ("+q", "-emb"),
    "self_attn.k_proj": ("+k", "-emb"),
    "self_attn.v_proj": ("+v", "-emb"),
    "self_attn.out_proj": ("+emb", "-v"),
    "fc1": ("+ffn", "-emb"),
    "fc2": ("+emb", "-ffn"),
    "lm_head.dense": ("+cls", "-emb"),
    "project_in_dim": ("+emb", None),
    "project_out_dim": (None, "-emb"),
}
_NORMS = {
    **dict.fromkeys(("self_attn_layer_norm", "final_layer_norm", "attn_ln"), "+emb"),
    **dict.fromkeys(("layernorm_embedding", "layer_norm"), "+emb"),
    "ffn_layernorm": "+ffn",
    "lm_head.layer_norm": "+cls",
}
_TABLES = ("embed_tokens", "embed_positions", "embed_segments", "token_type")
_OTHERS: dict[str, tuple[Role, ...]] = {
    **{f"{table}.weight": (None, "+emb") for table in _TABLES},
    "w_resid": ("+emb",),
    "c_attn": ("+heads",),
    "lm_head.weight": (None, "-cls"),
    "lm_head.bias": (None,),
    "lm_head.beta": (),
    "output_projection.weight": (None, "-emb"),
    "output_projection.bias": (None,),
    "output_projection.beta": (),
    "version": (None,),
}
HEADS = ("lm_head.weight", "output_projection.weight")
ROLES: dict[str, tuple[Role, ...]] = {
    **{f"{name}.weight": roles for name, roles in _LINEAR.items()},
    **{f"{name}.bias": roles[:1] for name, roles in _LINEAR.items()},
    **{f"{name}.{part}": (role,) for name, role in _NORMS.items() for part in ("weight", "bias")},
    **_OTHERS,
}
_OWN_WIDTH = ("embed_tokens.weight", "output_projection.weight")
_LAYER = re.compile(r"((?:.*\.)?layers\.)(\d+)\.(.+)")
_PREFIX = re.compile(r"^(encoder\.sentence_encoder|encoder|decoder)\.")


class Parts(NamedTuple):
    """A state dict taken apart.

    Attributes:
        shared: tensors outside the layers, by their full names.
        layers: tensors of each layer, by their names within it.
        stem: what stands before the number of a layer.
        as_top: by layer, what stands in it where it is the last one; no entries for nothing else.
    """

    shared: dict[str, Tensor]
    layers: list[dict[str, Tensor]]
    stem: str
    as_top: Sequence[dict[str, Tensor]] = ()


class AxisMap(Protocol):
    """How one axis grows; ``dim`` is where a tensor has it, counted from the end."""

    @property
    def inputs(self) -> int:
        """Return the channels of the small axis."""

    def write(self, x: Tensor, dim: int) -> Tensor:
        """Return a tensor that writes to the larger axis."""

    def read(self, x: Tensor, dim: int) -> Tensor:
        """Return a tensor that reads from the larger axis."""

    def norm(self, x: Tensor, gain: bool) -> Tensor:
        """Return the gain or the shift of a layer norm over the larger axis, vectors."""


# (axis, layer or None, module, whether it reads) -> how the axis grows, None if it does not
Maps = Callable[[str, int | None, str, bool], AxisMap | None]


def split(state: State, one_table: bool = False) -> Parts:
    """Take a state dict apart; a head that is the table of embeddings (``one_table``) is left out.

    Growing a shared table twice is the original's mistake: the second result replaces the first.
    """
    shared: dict[str, Tensor] = {}
    layers: dict[int, dict[str, Tensor]] = {}
    stem = "layers."
    for name, tensor in state.items():
        match = _LAYER.fullmatch(name)
        if match is None or "adaptive" in name:
            if not (one_table and role_name(name) in HEADS):
                shared[name] = tensor
            continue
        stem = match[1]
        layers.setdefault(int(match[2]), {})[match[3]] = tensor
    return Parts(shared, [layers[number] for number in sorted(layers)], stem)


def join(parts: Parts, one_table: bool = False) -> dict[str, Tensor]:
    """Put a state dict together again; with ``one_table`` the head is the table of embeddings."""
    state = dict(parts.shared)
    head = "lm_head" if "sentence_encoder" in parts.stem else "output_projection"
    if one_table:
        table = next(name for name in state if role_name(name) == "embed_tokens.weight")
        state[f"{parts.stem.partition('.')[0]}.{head}.weight"] = state[table]
    layers = list(parts.layers)
    if parts.as_top:
        layers[-1] = layers[-1] | parts.as_top[-1]
    for number, layer in enumerate(layers):
        state |= {f"{parts.stem}{number}.{name}": tensor for name, tensor in layer.items()}
    return state


def role_name(name: str) -> str:
    """Return the name of a tensor outside the layers as the table has it."""
    return _PREFIX.sub("", name)


def is_norm(name: str) -> bool:
    """Tell whether a tensor is the gain or the shift of a layer norm."""
    return role_name(name).rpartition(".")[0] in _NORMS


def reads_features(name: str, state: Container[str]) -> bool:
    """Tell whether a tensor is what a classifier multiplies the features with.

    Args:
        name: of the tensor.
        state: names of the whole model: a classifier may have a hidden layer or none.
    """
    match = re.fullmatch(r"(classification_heads\.[^.]+\.)(dense|out_proj)\.weight", name)
    return match is not None and (match[2] == "dense" or f"{match[1]}dense.weight" not in state)


def roles_of(
    name: str, x: Tensor, wider: bool = True, state: Container[str] = ()
) -> tuple[Role, ...]:
    """Return the role of every axis of a tensor; ``state`` holds the names of the whole model.

    Raises:
        UnsupportedError: for a tensor that growth does not know, if the model gets ``wider``.
    """
    full, name = name, role_name(name)
    if reads_features(name, state):
        # the hidden layer of a classifier keeps its width; only what it reads grows
        return (None, "-emb")
    if name.startswith("classification_heads.") or (name not in ROLES and not wider):
        return (None,) * x.dim()
    if name not in ROLES:
        raise UnsupportedError(f"growth in width does not know the tensor {full}")
    return ROLES[name]


def widen(parts: Parts, maps: Maps) -> Parts:
    """Return all tensors with every axis grown as ``maps`` says."""
    shared = widen_shared(parts.shared, maps)
    layers = [
        {name: widen_tensor(name, x, maps, number) for name, x in layer.items()}
        for number, layer in enumerate(parts.layers)
    ]
    return Parts(shared, layers, parts.stem)


def widen_shared(shared: State, maps: Maps) -> dict[str, Tensor]:
    """Return the tensors outside the layers with every axis grown as ``maps`` says."""
    return {name: widen_tensor(name, x, maps, state=shared) for name, x in shared.items()}


def widen_tensor(
    name: str,
    x: Tensor,
    maps: Maps,
    layer: int | None = None,
    longest_first: bool = False,
    state: Container[str] = (),
) -> Tensor:
    """Return one tensor with its axes grown; the same object if none does.

    Args:
        name: of the tensor, within its layer or the whole model.
        x: the tensor, or those of several layers side by side in a first dimension.
        maps: how axes grow.
        layer: passed on to ``maps``.
        longest_first: grow the longest axis before the others, which is cheaper with matrices.
        state: names of the whole model.
    """
    module, _, kind = role_name(name).rpartition(".")
    # an unknown tensor matters only where the stream gets wider, which only some pairs do
    wider = role_name(name) in ROLES or maps("emb", layer, module or kind, False) is not None
    known = roles_of(name, x, wider, state)
    roles = list(enumerate(known, -len(known)))
    if longest_first:
        roles.sort(key=lambda pair: -x.shape[pair[0]])
    for dim, role in roles:
        if role is None:
            continue
        reads = role[0] == "-"
        if (axis_map := maps(role[1:], layer, module or kind, reads)) is None:
            continue
        if role_name(name) in _OWN_WIDTH and x.shape[dim] != axis_map.inputs:
            continue  # of another width than the stream: a projection lies between
        if is_norm(name):
            x = axis_map.norm(x, kind == "weight")
        elif reads_features(name, state):
            x = _pooled(x, axis_map)
        else:
            x = axis_map.read(x, dim) if reads else axis_map.write(x, dim)
    return x


def _pooled(x: Tensor, axis_map: AxisMap) -> Tensor:
    """Widen a classifier's input: the features, or first token and mean side by side."""
    return torch.cat([axis_map.read(part, -1) for part in x.split(axis_map.inputs, -1)], -1)
