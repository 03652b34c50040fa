"""Addresses between flat vectors and matrices: sparse matrices, and one vector behind every number of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Scatter:
    """A matrix that is zero but at the given places. Shapes: pool (k,), index (k,) into the flat matrix -> shape.

    Linear in: pool. Cost: one matrix of zeros and k writes.
    """

    shape: tuple[int, ...]

    def __call__(self, pool: Tensor, index: Tensor) -> Tensor:
        return pool.new_zeros(math.prod(self.shape)).index_add(0, index, pool).view(self.shape)


@serial
@dataclass(frozen=True)
class Lines:
    """A matrix that is zero but in some rows, or columns. Shapes: pool (k, width), index (k,) -> shape; without an
    index k is all of them. Linear in: pool. Cost: one matrix of zeros and its k lines.
    """

    shape: tuple[int, int]
    columns: bool = False

    def __call__(self, pool: Tensor, index: Tensor | None = None) -> Tensor:
        if index is not None:
            pool = pool.new_zeros(self.shape[::-1] if self.columns else self.shape).index_add(0, index, pool)
        return pool.mT if self.columns else pool


@serial
@dataclass(frozen=True)
class Signed:
    """Every number is plus or minus one entry of a vector. Shapes: pool (d,), index `shape` in [0, 2d) -> shape.

    An index of d + j reads minus entry j, so that index and sign take one integer. Linear in: pool.
    """

    def __call__(self, pool: Tensor, index: Tensor) -> Tensor:
        return torch.cat([pool, -pool]).index_select(0, index.reshape(-1)).view(index.shape)


@serial
@dataclass(frozen=True)
class Segment:
    """A stretch of P theta, as a matrix: P has one non-zero per row. Shapes: pool (d,), index (D,), norm (d,) -> shape.

    Number i of the stretch is theta_j norm_j with j = index[start + i]. Linear in: pool. Cost: two reads per number.
    """

    start: int
    shape: tuple[int, ...]

    def __call__(self, pool: Tensor, index: Tensor, norm: Tensor) -> Tensor:
        mine = index[self.start : self.start + math.prod(self.shape)]
        return (pool.index_select(0, mine) * norm.index_select(0, mine)).view(self.shape)
