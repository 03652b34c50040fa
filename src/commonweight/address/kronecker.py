"""Kronecker products: of matrices, of rows with rows, of columns with columns."""

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


@serial
@dataclass(frozen=True)
class RowPairs:
    """Row i of one matrix times row j of another, entry by entry, for every pair. Shapes: pool (r, d), other (q, d) ->
    (r q, d), or its transpose. Linear in: pool, and the other; it gets gradients as well. Cost: r q d products.

    B = RowPairs(B1^T; B2^T)^T and A = RowPairs(A1; A2) give B A = (B1 A1) o (B2 A2). ones: the other has one more row,
    of ones: then it is (B1 A1) o (B2 A2 + 1).
    """

    transpose: bool = False
    ones: bool = False

    def __call__(self, pool: Tensor, other: Tensor) -> Tensor:
        if self.ones:
            other = torch.cat([other, other.new_ones(1, other.shape[1])])
        out = (pool[:, None] * other).flatten(0, 1)
        return out.mT if self.transpose else out


@serial
@dataclass(frozen=True)
class RowKronecker:
    """Row i of one matrix kron row i of another. Shapes: pool (t, m), left (t, n) -> (t, n m), or its transpose.

    Linear in: pool, and left; it gets gradients as well. Cost: t n m products. With B and A of such rows, B A =
    sum_i (a_i b_i^T) kron (u_i v_i^T).
    """

    transpose: bool = False

    def __call__(self, pool: Tensor, left: Tensor) -> Tensor:
        out = (left[:, :, None] * pool[:, None]).flatten(1)
        return out.mT if self.transpose else out
