"""Matrices that are put together of a dictionary's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Mix:
    """A weighted sum of matrices. Shapes: pool (S, *s), weights (S,) -> (*s).

    Linear in: pool and weights, each alone. Cost: S products for each number. Source: MASA, arXiv 2508.04581, eq. (1).
    """

    def __call__(self, pool: Tensor, weights: Tensor) -> Tensor:
        return torch.tensordot(weights, pool, 1)
