"""A change of a few channels of a layer's output by these same channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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


@serial
@dataclass(frozen=True)
class StreamMix:
    """`ChannelMix` of the stream z behind an attention, what is added to it with what the block was given.

    At a norm that is given z: y = norm(z'). At the attention, with `source` the norm before it, which is given what the
    block is, x: y' = y + z' - z for z = x + y. In neither place a weight has this form.
    Shapes: M (k, k), m (k,), at (k,). Linear in, at the attention: M and m. Cost: T k^2 products, and at a norm the
    norm once more.
    """

    source: str = ""

    def output(self, x: Tensor, y: Tensor, base: Any, M: Tensor, at: Tensor, m: Tensor) -> Tensor:
        if self.source:
            z = base.lent(self.source)[..., at.long()] + y[..., at.long()]
            return y.index_add(-1, at, F.linear(z, M, m).to(y.dtype))
        z = x.index_add(-1, at, F.linear(x[..., at.long()], M, m).to(x.dtype))
        return base.call(z, base.weight, base.bias)

    def grouped(self, x: Tensor, y: Tensor, base: Any, M: Tensor, at: Tensor, m: Tensor) -> Tensor:
        """`output` of n readers at once: y (n, T, d), M (n, k, k), at (n, k)."""
        where = at.long()[:, None].expand(-1, y.shape[1], -1)
        z = base.lent(self.source) + y if self.source else x
        change = (torch.bmm(z.gather(2, where), M.mT) + m[:, None]).to(y.dtype)
        if self.source:
            return y.scatter_add(2, where, change)
        return base.call(x.scatter_add(2, where, change), base.weight, base.bias)
