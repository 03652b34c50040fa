"""A matrix as a sum of Kronecker products with shared left factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Kronecker:
    """W = sum_i A_i kron (s_i t_i): the pool holds the left factors, the coefficients the low-rank right ones.

    Shapes: pool A (m, n, p), s (m, d_out / n, k), t (m, k, d_in / p) -> (d_out, d_in). Linear in: A, given s and t,
    which get gradients as well. Cost: m d_out d_in products. Source: arXiv 2106.04647, section 3.
    """

    def __call__(self, pool: Tensor, s: Tensor, t: Tensor) -> Tensor:
        rows, cols = pool.shape[1] * s.shape[1], pool.shape[2] * t.shape[2]
        return torch.einsum("iab,icd->acbd", pool, torch.bmm(s, t)).reshape(rows, cols)
