"""How an axis grows: copies of channels, averages, matrices.

Shapes: n1 channels of the small axis, n2 of the large one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _along(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return ``vector`` in a shape that multiplies ``x`` along ``dim``."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return vector.to(x).view(shape)


@dataclass(frozen=True)
class Select:
    """Every large channel is a copy of a small one; readers share a channel among its copies.

    Source: Chen et al. 2016 (Net2Net), section 2.2: ``W'[:, i] = W[:, g(i)] / count(g(i))``.

    Attributes:
        index_M: g, int64 of shape (n2,).
        inputs: n1.
        share_M: what a copy carries for readers; they sum to one over the copies of a channel.
            Equal if None.
        noise: standard deviation, in units of the tensor's, of noise on readers that cancels
            over the copies of a channel.
        generator: of the noise.
    """

    index_M: Tensor
    inputs: int
    share_M: Tensor | None = None
    noise: float = 0.0
    generator: torch.Generator | None = None

    def shares(self) -> Tensor:
        """Return the share of every copy, fp64 of shape (n2,)."""
        if self.share_M is not None:
            return self.share_M
        return 1.0 / torch.bincount(self.index_M, minlength=self.inputs).double()[self.index_M]

    def write(self, x: Tensor, dim: int) -> Tensor:
        """Return the rows of the copies."""
        return x.index_select(dim, self.index_M)

    def read(self, x: Tensor, dim: int) -> Tensor:
        """Return the columns of the copies, each with its share."""
        copied = x.index_select(dim, self.index_M)
        # in fp64, so that a share of 1/3 is rounded once
        shared = (copied.double() * _along(self.shares().double(), x.double(), dim)).to(x.dtype)
        if not self.noise:
            return shared
        drawn = torch.randn(shared.shape, generator=self.generator, dtype=torch.float64)
        # correction 0, since a tensor of one element has no other deviation
        drawn = drawn * (self.noise * float(x.double().std(correction=0)))
        counts = torch.bincount(self.index_M, minlength=self.inputs).double()
        sums = torch.zeros(x.shape, dtype=torch.float64).index_add_(dim, self.index_M, drawn)
        # taking the mean over the copies away leaves their sum, and so the function, as it was
        mean = (sums / _along(counts, sums, dim)).index_select(dim, self.index_M)
        return (shared.double() + drawn - mean).to(x.dtype)

    def norm(self, x: Tensor, gain: bool) -> Tensor:
        """Return the gains or shifts of the copies."""
        return self.write(x, -1)

    def before_tied_head(self, x: Tensor, gain: bool) -> Tensor:
        """Return a norm whose output a table reads that cannot take shares itself."""
        return self.read(x, 0)


@dataclass(frozen=True)
class Average:
    """New channels of the stream carry the mean of the old ones; norms switch them off.

    With means in the new channels the mean of the stream stays and its variance shrinks by n1/n2;
    a gain of ``sqrt(n1/n2)`` undoes that (exactly, if eps shrinks as well). Readers get noise in
    columns whose input is zero: it costs nothing and breaks the symmetry.

    Source: Wang et al. 2024 (LEMON), average expansion; derived anew.

    Attributes:
        inputs, outputs: n1 and n2.
        generator: of the readers' new columns.
    """

    inputs: int
    outputs: int
    generator: torch.Generator | None = None

    def write(self, x: Tensor, dim: int) -> Tensor:
        """Return the rows, then their mean for every new row."""
        mean = x.double().mean(dim, keepdim=True).to(x.dtype)
        sizes = [-1] * x.dim()
        sizes[dim] = self.outputs - self.inputs
        return torch.cat([x, mean.expand(sizes)], dim)

    def read(self, x: Tensor, dim: int) -> Tensor:
        """Return the columns, then noise of the same standard deviation."""
        shape = list(x.shape)
        shape[dim] = self.outputs - self.inputs
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return torch.cat([x, (drawn * float(x.double().std(correction=0))).to(x.dtype)], dim)

    def norm(self, x: Tensor, gain: bool) -> Tensor:
        """Return the gains times sqrt(n1/n2), or the shifts, and zeros for new channels."""
        scaled = x * (self.inputs / self.outputs) ** 0.5 if gain else x
        return torch.cat([scaled, x.new_zeros(self.outputs - self.inputs)])

    def before_tied_head(self, x: Tensor, gain: bool) -> Tensor:
        """Return the same: a table's new columns are multiplied by zero, too."""
        return self.norm(x, gain)


@dataclass(frozen=True)
class FirstCopies(Select):
    """Copies of which only the first is seen by a table that follows the norm."""

    def before_tied_head(self, x: Tensor, gain: bool) -> Tensor:
        """Return the gains or shifts, and zeros for new channels."""
        return torch.cat([x, x.new_zeros(len(self.index_M) - self.inputs)])


@dataclass(frozen=True)
class Matrix:
    """A linear map: ``write`` multiplies by B from the left, ``read`` by A^T from the right.

    All may be of L layers, with L as their first dimension; so are the tensors that they multiply.

    Attributes:
        new: C of ``B = [I; C]``, shape (n2 - n1, n1); the identity is never multiplied out.
        reader: A, shape (n2, n1); None for A = B.
        whole: B itself, shape (n2, n1), where it does not begin with the identity.
    """

    new: Tensor
    reader: Tensor | None = None
    whole: Tensor | None = None

    @property
    def inputs(self) -> int:
        """Return n1."""
        return int(self.new.shape[-1])

    @staticmethod
    def _times(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
        matrix = matrix.to(x.dtype)
        if x.dim() < matrix.dim():  # vectors, each with the matrix of its layer
            return (matrix @ x[..., None])[..., 0]
        return x @ matrix.mT if dim in (-1, x.dim() - 1) else matrix @ x

    def write(self, x: Tensor, dim: int) -> Tensor:
        """Return B x along ``dim``."""
        if self.whole is not None:
            return self._times(self.whole, x, dim)
        return torch.cat([x, self._times(self.new, x, dim)], dim)

    def read(self, x: Tensor, dim: int) -> Tensor:
        """Return A x along ``dim``."""
        return self.write(x, dim) if self.reader is None else self._times(self.reader, x, dim)

    def norm(self, x: Tensor, gain: bool) -> Tensor:
        """Return B x."""
        return self.write(x, -1)


@dataclass(frozen=True)
class Pool:
    """Neighbouring channels are averaged: windows of n1 - n2 + 1, one apart."""

    inputs: int
    outputs: int

    def write(self, x: Tensor, dim: int) -> Tensor:
        """Return the means of the windows."""
        window = self.inputs - self.outputs + 1
        # sums from the first channel on, so that wide windows cost as much as narrow ones
        ends = x.cumsum(dim)
        before = ends.narrow(dim, 0, self.outputs - 1)
        sums = ends.narrow(dim, window - 1, self.outputs)
        first, rest = sums.split([1, self.outputs - 1], dim)
        return torch.cat([first, rest - before], dim) / window

    # windows are averaged on both sides, as Hugging Face's script does: the function is not kept
    read = write

    def norm(self, x: Tensor, gain: bool) -> Tensor:
        """Return the means of the windows."""
        return self.write(x, 0)
