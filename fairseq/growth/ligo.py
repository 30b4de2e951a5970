"""LiGO: the large weights as a learned linear function of the small ones.

``W'_l = B_out,l (sum_j w_lj W_j) B_in,l^T``: layers are mixed, then widened. ``B = [I; C]``; only C
and the mixing weights w (u for biases) are learned. Every axis has one matrix, used by all tensors
that write to it or read from it: new inputs are added on top of old ones, nothing is normalised.

Names of an operator's tensors, l a layer of the target: ``width.emb``, ``width.cls``,
``width.{q,k,v,ffn}.l`` (n2 - n1, n1); ``depth.MODULE.{weight,bias}`` (L2, L1); ``residual.NAME`` of
the large tensor's shape.

Source: Wang et al. 2023 (LiGO), section 3, in the order of its published code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fairseq.errors import CheckpointError, ConfigError
from fairseq.growth.copies import tiled_map
from fairseq.growth.maps import Matrix, Select
from fairseq.growth.methods import Options, method
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import AxisMap, Maps, Parts, join, split, widen_shared, widen_tensor

LINEAR_AXES = ("emb", "v")  # what no activation or softmax stands behind
ALL = -1  # every layer of the target at once
Operator = Mapping[str, Tensor]


def axis_sizes(pair: Pair, axis: str) -> tuple[int, int]:
    """Return n1 and n2 of an axis."""
    name = {"ffn": "ffn", "heads": "heads"}.get(axis, "width")
    return getattr(pair.small, name), getattr(pair.large, name)


def matrix_name(
    pair: Pair, share: str, axis: str, layer: int | None, module: str, reads: bool
) -> str:
    """Return which matrix of the operator a tensor uses for an axis.

    Args:
        pair: the configurations; RoBERTa's head has no matrix of its own if it is tied, since the
            table that follows it grows by the stream's.
        share: ``layer`` has one matrix an axis and layer, ``global`` one an axis, ``none`` one for
            every use.
        axis: see :mod:`fairseq.growth.tensors`.
        layer: of the target, None outside the layers.
        module: the tensor's, without ``weight`` or ``bias``.
        reads: whether it reads from the axis.
    """
    if axis == "cls" and pair.tied:
        axis = "emb"
    if share == "none":
        where = module if layer is None else f"{module}.{layer}"
        return f"width.{where}.{'in' if reads else 'out'}"
    whole = share == "global" or layer is None or axis == "emb"
    return f"width.{axis}" if whole else f"width.{axis}.{layer}"


def ligo_maps(
    operator: Operator, pair: Pair, share: str = "layer", in_matrix: str = "same"
) -> Maps:
    """Return how every axis grows by an operator.

    For the layer :data:`ALL` matrices stand side by side, for tensors that do as well: a product of
    stacks costs one call where there were as many as layers.

    Args:
        operator: its tensors.
        pair: the configurations.
        share: see :func:`matrix_name`.
        in_matrix: what readers are multiplied with: ``same`` the matrix of the axis, ``pinv`` its
            left inverse; ``orthonormal`` makes the columns of B orthonormal on the axes that no
            activation follows, so that reading undoes writing.
    """
    made: dict[str, AxisMap] = {}

    def maps(axis: str, layer: int | None, module: str, reads: bool) -> AxisMap | None:
        small, large = axis_sizes(pair, axis)
        if small == large:
            return None
        if axis == "heads":
            # scales of heads (NormFormer) have no matrix in the operator: old ones are repeated
            return Select(tiled_map(small, large), small)
        layers = range(pair.large.layers) if layer == ALL else [layer]
        names = [matrix_name(pair, share, axis, number, module, reads) for number in layers]
        key = names[0] if len(set(names)) == 1 else f"{names[0]} to {names[-1]}"
        if key not in made:
            new = [_checked(operator, name, (large - small, small)) for name in names]
            # "orthonormal" turns B, and a turn of channels does not commute with an activation
            linear = in_matrix == "pinv" or axis in LINEAR_AXES
            stacked = new[0] if len(set(names)) == 1 else torch.stack(new)
            made[key] = _matrix(stacked, in_matrix if linear else "same")
        return made[key]

    return maps


def _checked(operator: Operator, name: str, shape: tuple[int, int]) -> Tensor:
    """Return a tensor of the operator.

    Raises:
        CheckpointError: if there is none, or one of another shape.
    """
    x = operator.get(name)
    if x is None:
        raise CheckpointError(f"the operator has no {name}: it belongs to another pair")
    if x.shape != shape:
        raise CheckpointError(
            f"the operator's {name} is {tuple(x.shape)}, this pair needs {shape}: it belongs to "
            "another pair"
        )
    return x


def _matrix(new: Tensor, in_matrix: str) -> Matrix:
    """Return the map of C, shape (n2 - n1, n1) or (L, n2 - n1, n1); see :func:`ligo_maps`."""
    if in_matrix == "same":
        return Matrix(new)
    eye = torch.eye(new.shape[-1], dtype=new.dtype, device=new.device)
    whole = torch.cat([eye.expand(*new.shape[:-2], -1, -1), new], -2)
    # positive definite whatever is learned, since B begins with the identity
    gram = whole.mT @ whole
    if in_matrix == "pinv":
        return Matrix(new, reader=torch.linalg.solve(gram, whole.mT).mT)
    # Cholesky's way to orthonormal columns has a gradient everywhere, unlike that by eigenvectors
    lower = torch.linalg.cholesky(gram)
    return Matrix(new, whole=torch.linalg.solve_triangular(lower, whole.mT, upper=False).mT)


def _mixed(name: str, x: Tensor, operator: Operator, layers: int) -> Tensor:
    """Return L2 layers, (L2, ...), each a weighted sum of those of ``x``, (L1, ...)."""
    if f"depth.{name}" in operator or layers != len(x):
        weight = _checked(operator, f"depth.{name}", (layers, len(x)))
        x = torch.tensordot(weight.to(x.dtype), x, dims=1)
    return x


def apply_operator(
    parts: Parts, operator: Operator, pair: Pair, share: str = "layer", in_matrix: str = "same"
) -> Parts:
    """Return the large tensors."""
    maps = ligo_maps(operator, pair, share, in_matrix)
    wide: dict[str, Tensor] = {}
    for name in parts.layers[0]:
        x = torch.stack([layer[name] for layer in parts.layers])
        # with the same matrices for all layers the order is free: the small model has fewer layers
        if share != "global":
            x = _mixed(name, x, operator, pair.large.layers)
        x = widen_tensor(name, x, maps, ALL, longest_first=True)
        wide[name] = x if share != "global" else _mixed(name, x, operator, pair.large.layers)
    shared = widen_shared(parts.shared, maps)
    rows = zip(*(x.unbind() for x in wide.values()), strict=True)
    grown = Parts(shared, [dict(zip(wide, row, strict=True)) for row in rows], parts.stem)
    residuals = {name: x for name, x in operator.items() if name.startswith("residual.")}
    if not residuals:
        return grown
    return split({n: x + residuals.get(f"residual.{n}", 0) for n, x in join(grown).items()})


@method(lambda pair, options: "every weight is a mixture, learned for the loss", uses=())
def ligo(parts: Parts, pair: Pair, options: Options) -> Parts:
    """The operator that training learned, applied once."""
    if options.operator is None:
        raise ConfigError("ligo needs a learned operator: --operator FILE, or --grow-from FILE")
    return apply_operator(parts, options.operator, pair, options.share, options.in_matrix)
