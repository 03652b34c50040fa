"""A weight that is a product of factors: nothing of the base's own is read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Product:
    """w' = B M diag(d) diag(g) A, with M, d, g optional. Shapes: A (r, d_in), B (d_out, k), M (k, r), d and g (r,).

    Linear in each slot alone. Cost: T (r d_in + k r + k d_out) products; of `weight`: d_in d_out k.
    """

    def weight(
        self, w: Tensor, A: Tensor, B: Tensor, M: Tensor | None = None, d: Tensor | None = None, g: Tensor | None = None
    ) -> Tensor:
        for one in (d, g):
            A = A if one is None else A * one[:, None]
        return B @ (A if M is None else M @ A)
