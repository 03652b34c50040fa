"""The addresses: how one reader reads from a pool. Each is LINEAR in `pool`, given its coefficients.

`fold` is the transpose of any of them: it carries a slot's gradient or update back into the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import serial


@serial
@dataclass(frozen=True)
class Whole:
    """The pool as it is."""

    def __call__(self, pool: Tensor) -> Tensor:
        return pool


@serial
@dataclass(frozen=True)
class Multiplied:
    """The pool times one number. Shapes: pool (*s), factor (1,) -> (*s). Linear in: both, each alone."""

    def __call__(self, pool: Tensor, factor: Tensor) -> Tensor:
        return pool * factor


@serial
@dataclass(frozen=True)
class Outside:
    """What of a matrix's columns lies outside of given directions: P - V (V^T P). Shapes: pool (d, r), V (d, k) with
    orthonormal columns -> (d, r). Linear in: pool. Cost: 2 d k r products."""

    def __call__(self, pool: Tensor, directions: Tensor) -> Tensor:
        return pool - directions @ (directions.mT @ pool)


@serial
@dataclass(frozen=True)
class Window:
    """The leading corner ``pool[:rows, :cols]``. Shapes: pool (n, m) -> (rows, cols)."""

    rows: int
    cols: int

    def __call__(self, pool: Tensor) -> Tensor:
        return pool[: self.rows, : self.cols]


@serial
@dataclass(frozen=True)
class Row:
    """One entry along the first dimension. Shapes: pool (n, *s) -> (*s)."""

    index: int

    def __call__(self, pool: Tensor) -> Tensor:
        return pool[self.index]


@serial
@dataclass(frozen=True)
class Gather:
    """Rows by a table of indices, laid end to end and cut to `shape`.

    Shapes: pool (n, b), index (k,) with k * b = prod(shape) -> shape, or its transpose. Cost: k * b reads.
    """

    shape: tuple[int, ...]
    transpose: bool = False

    def __call__(self, pool: Tensor, index: Tensor) -> Tensor:
        out = F.embedding(index, pool).reshape(self.shape)
        return out.mT if self.transpose else out


def fold(address, shape: tuple[int, ...], grad: Tensor, *coef: Tensor) -> Tensor:
    """The adjoint: ``<address(p), g> == <p, fold(g)>`` for every p of `shape`. Linear in `grad`."""
    probe = torch.zeros(shape, dtype=grad.dtype, requires_grad=True)
    with torch.enable_grad():
        (out,) = torch.autograd.grad(address(probe, *coef), probe, grad)
    return out
