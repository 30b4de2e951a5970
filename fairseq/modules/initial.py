"""Tables and linear maps that begin as those of the original's Transformers do."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Table = TypeVar("Table", bound=nn.Embedding)


def Embedding(
    num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
) -> nn.Embedding:
    """Return an embedding table, N(0, C^-0.5), with a zero row for pads if they have one."""
    return redrawn(nn.Embedding(num_embeddings, embedding_dim, padding_idx))


def redrawn(table: Table) -> Table:
    """Draw a table again, as :func:`Embedding` does, and return it."""
    nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
    if table.padding_idx is not None:
        nn.init.zeros_(table.weight[table.padding_idx])
    return table


def Linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Return a linear map, Xavier-uniform, with a bias of zero."""
    linear = nn.Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
