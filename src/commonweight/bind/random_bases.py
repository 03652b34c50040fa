"""A full-rank update as a sum of frozen random low-rank bases, each scaled by trained diagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Base, serial
from .low_rank import LowRank


@serial
@dataclass(frozen=True)
class RandomBases:
    """w' = w + scale * sum over k < r, j < n of lam[k, j] B[:, k n + j] (A[k] * gamma[j])^T, or that sum transposed.

    Shapes: A (r, min), B (max, r n), lam (r, n), gamma (n, min), with min and max of d_in and d_out; `transpose`
    when d_in > d_out, so that the trained diagonals always lie on the smaller side. Linear in: lam and gamma,
    each alone. Cost of `output`: T n r (d_in + d_out) products, about twice the frozen layer's, and n r min
    numbers, about its weight. Dropout acts on the input, in training only.
    """

    scale: float = 1.0
    dropout: float = 0.0
    transpose: bool = False
    anywhere: ClassVar[str] = "through"

    def _low_rank(self, A: Tensor, B: Tensor, lam: Tensor, gamma: Tensor) -> dict[str, Tensor]:
        """The same as slots of LowRank of rank r n; leading dimensions stay."""
        bases = (A.unsqueeze(-2) * gamma.unsqueeze(-3)).flatten(-3, -2)
        A, B = (B.mT, bases.mT) if self.transpose else (bases, B)
        return {"A": A, "B": B, "d": lam.flatten(-2)}

    def factors(self, **slots: Tensor) -> tuple[Tensor, Tensor]:
        return LowRank(self.scale).factors(**self._low_rank(**slots))

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return LowRank(self.scale).weight(w, **self._low_rank(**slots))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank(self.scale, self.dropout).output(x, y, base, **self._low_rank(**slots))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank(self.scale, self.dropout).grouped(x, y, base, **self._low_rank(**slots))
