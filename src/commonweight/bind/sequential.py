"""Two low-rank branches at one layer: beside it, on its input, and after it, on its output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class Hydra:
    """y' = y + s B A x + s D C y: w' = w + s B A + s D C w, b' = b + s D C b.

    Shapes: A (r, d_in), B (d_out, r), C (q, d_out), D (d_out, q). Linear in: each alone. The branches do not see each
    other. Cost of `output`: T (r (d_in + d_out) + 2 q d_out).
    """

    scale: float = 1.0

    def weight(self, w: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return w + self.scale * (B @ A + D @ (C @ w))

    def bias(self, b: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return b + self.scale * (D @ (C @ b))

    def output(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return y + self.scale * (F.linear(F.linear(x, A), B) + F.linear(F.linear(y, C), D))

    def grouped(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return y + self.scale * (x @ A.mT @ B.mT + y @ C.mT @ D.mT)
