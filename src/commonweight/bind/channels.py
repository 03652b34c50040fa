"""A change of a few channels of a layer's output by these same channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class ChannelMix:
    """y'[at] = y[at] + M y[at] + m, other channels as they are: the weight's rows and the bias.

    Shapes: M (k, k), m (k,), which may be absent, at (k,) distinct whole numbers below d_out. Linear in: M and m.
    Cost: T k^2 products.
    """

    anywhere: ClassVar[str] = "output"

    def weight(self, w: Tensor, M: Tensor, at: Tensor, m: Tensor | None = None) -> Tensor:
        return w.index_add(0, at, M @ w[at.long()])

    def bias(self, b: Tensor, M: Tensor, at: Tensor, m: Tensor | None = None) -> Tensor:
        change = M @ b[at.long()]
        return b.index_add(0, at, change if m is None else change + m)

    def output(self, x: Tensor, y: Tensor, base: Base, M: Tensor, at: Tensor, m: Tensor | None = None) -> Tensor:
        return y.index_add(-1, at, F.linear(y[..., at.long()], M, m).to(y.dtype))

    def grouped(self, x: Tensor, y: Tensor, base: Base, M: Tensor, at: Tensor, m: Tensor | None = None) -> Tensor:
        """`output` of n readers at once: y (n, T, d_out), M (n, k, k), at (n, k)."""
        where = at.long()[:, None].expand(-1, y.shape[1], -1)
        change = torch.bmm(y.gather(2, where), M.mT)
        return y.scatter_add(2, where, (change if m is None else change + m[:, None]).to(y.dtype))
