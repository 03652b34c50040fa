"""An edit of hidden states in a low-rank subspace, at all positions or at the first ones of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Base, serial


def orthonormal_rows(raw: Tensor) -> Tensor:
    """The R with orthonormal rows in raw = L R, L lower triangular with a positive diagonal: QR with its signs fixed.

    By Cholesky of raw raw^T, so that only an (r, r) matrix is factorised. Shapes: (r, d) -> (r, d), r <= d.
    Cost: 2 r^2 d products. Loses digits with the square of raw's condition number.
    """
    return torch.linalg.solve_triangular(torch.linalg.cholesky(raw @ raw.mT), raw, upper=False)


@serial
@dataclass(frozen=True)
class Edit:
    """h' = h + R^T (W h + b - R h), R with orthonormal rows; direct: h' = h + R^T (W h + b), R free.

    Shapes: h = y (..., T, d), RW (2, r, d): what R is made of, then W; b (r,). Linear in: W and b (and R if direct).
    prefix: only the first so many tokens of a row, padding aside and with those in a cache; 0: all of them.
    Cost: 2 T r d products, and 2 r^2 d for R.
    """

    prefix: int = 0
    direct: bool = False
    precise = True  # a class attribute, no field: orthonormality in bfloat16 would be lost

    @property
    def tokenwise(self) -> bool:
        """Whether a position's edit needs nothing but the position itself, so that batches may be packed."""
        return self.prefix == 0

    @property
    def placed(self) -> bool:
        return self.prefix > 0

    def output(self, x: Tensor, y: Tensor, base: Base, RW: Tensor, b: Tensor) -> Tensor:
        if not self.prefix:
            return self._edit(y, RW, b)
        return torch.where(base.place < self.prefix, self._edit(y, RW, b), y)

    def _edit(self, y: Tensor, RW: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            h, W = y.float(), RW[1]
            R = RW[0] if self.direct else orthonormal_rows(RW[0])
            return (h + (h @ (W if self.direct else W - R).mT + b) @ R).to(y.dtype)
