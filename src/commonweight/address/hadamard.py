"""A weight with a low-rank update, and with entrywise low-rank parts of other weights added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Hadamard:
    """W' = W + B A + sum_j (C_j D_j) o V_j, o entry by entry; more: C_j, D_j, V_j in turn.

    Shapes: base and V_j as the module holds a weight, (out, in), or (in, out) when transposed; a (r, in), b (out, r);
    C_j (out, rho), D_j (rho, in). Linear in: base, a, b, and each C_j and D_j, each alone. Cost: (r + n rho) products
    for each number, at each use. passing: after training the numbers that come out are all that is kept.
    Source: FuseGPT, code JarvisPei/FuseGPT.
    """

    passing: ClassVar[bool] = True
    transposed: bool = False

    def __call__(self, base: Tensor, a: Tensor, b: Tensor, *more: Tensor) -> Tensor:
        out = base + self.stored(b @ a)
        for i in range(0, len(more), 3):
            out = out + self.stored(more[i] @ more[i + 1]) * more[i + 2]
        return out

    def stored(self, w: Tensor) -> Tensor:
        return w.mT if self.transposed else w
