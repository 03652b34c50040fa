"""Coordinates that Hadamard matrices turn."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ..core import serial


def spread(x: Tensor) -> Tensor:
    """x H^T along the last dimension: H orthonormal, block by block Hadamard's matrix of the largest power of two that
    divides the width. H is its own transpose and inverse. Cost: log2 of the block sums for each number."""
    width = x.shape[-1]
    block = width & -width
    parts, half = x.reshape(*x.shape[:-1], -1, block), 1
    while half < block:
        a, b = parts.unflatten(-1, (-1, 2, half)).unbind(-2)
        parts, half = torch.stack([a + b, a - b], -2).flatten(-3), 2 * half
    return (parts / sqrt(block)).reshape(x.shape)


@serial
@dataclass(frozen=True)
class Unrotated:
    """A factor that is held in turned coordinates: P Q^T with Q = diag(signs) H, H of `spread`; without signs P H^T.

    Shapes: pool (r, d) -> (r, d); columns: pool (d, r), and Q P -> (d, r). signs (d,) of -1 and 1. Linear in: pool.
    Cost: log2(d) sums for each number.
    """

    columns: bool = False

    def __call__(self, pool: Tensor, signs: Tensor | None = None) -> Tensor:
        rows = spread(pool.mT if self.columns else pool)
        rows = rows if signs is None else rows * signs
        return rows.mT if self.columns else rows
