"""A matrix that is a small one over and over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Repeated:
    """W_ij = T_(i mod r, j mod c): a tile, repeated along both sides and cut to `shape`.

    Shapes: pool (r, c) -> shape (o, i). Linear in: pool; its fold is the sum over the copies. Cost: one read for each
    number. A tile as large as the matrix, or larger, is the matrix. Source: GHN-3, arXiv 2303.04143, its decoder; code
    SamsungSAILMontreal/ghn3 (nn.py).
    """

    shape: tuple[int, int]

    def __call__(self, pool: Tensor) -> Tensor:
        rows, cols = (torch.arange(n, device=pool.device) % m for n, m in zip(self.shape, pool.shape))
        return pool[rows][:, cols]
