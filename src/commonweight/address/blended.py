"""Rows that are sums of the rows of several matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Blended:
    """Row i is sum_k shares[k, i] pool[k, i], of the leading corner. Shapes: pool (K, R, C), shares (K, R) ->
    (rows, columns). Linear in: pool and shares, each alone. Cost: K products for each number."""

    rows: int
    columns: int

    def __call__(self, pool: Tensor, shares: Tensor) -> Tensor:
        return torch.einsum("kr,krc->rc", shares[:, : self.rows], pool[:, : self.rows, : self.columns])
