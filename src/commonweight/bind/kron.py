"""A Kronecker product beside a weight, computed without forming it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class Kron:
    """w' = w + scale * (L kron R), L = L or L_a L_b, R = R or R_a R_b.

    Shapes: L (a, b), R (c, d) with a c = d_out and b d = d_in. permuted: row j c + i of the product is row i a + j of
    the change. Linear in each slot alone. Cost of `output`: T d_in (c + a c / d) products; of `weight`: d_in d_out.
    """

    scale: float = 1.0
    permuted: bool = False

    def sides(
        self,
        L: Tensor | None = None,
        L_a: Tensor | None = None,
        L_b: Tensor | None = None,
        R: Tensor | None = None,
        R_a: Tensor | None = None,
        R_b: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        left = L_a @ L_b if L is None and L_a is not None and L_b is not None else L
        right = R_a @ R_b if R is None and R_a is not None and R_b is not None else R
        assert left is not None and right is not None
        return left, right

    def change(self, L: Tensor, R: Tensor) -> Tensor:
        order = "...ab,...cd->...cabd" if self.permuted else "...ab,...cd->...acbd"
        return torch.einsum(order, L, R).flatten(-2).flatten(-3, -2)

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return w + self.scale * self.change(*self.sides(**slots))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        L, R = self.sides(**slots)
        parts = x.unflatten(-1, (L.shape[-1], R.shape[-1]))  # (..., b, d)
        out = L @ (parts @ R.mT)  # (..., a, c)
        return torch.add(y, (out.mT if self.permuted else out).flatten(-2), alpha=self.scale)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), L (n, a, b), R (n, c, d)."""
        L, R = self.sides(**slots)
        parts = x.unflatten(-1, (L.shape[-1], R.shape[-1]))
        out = L[:, None] @ (parts @ R.mT[:, None])
        return torch.add(y, (out.mT if self.permuted else out).flatten(-2), alpha=self.scale)
