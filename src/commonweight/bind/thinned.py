"""A low-rank update of a layer of which a tenant reads some inputs less, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from .low_rank import each


@serial
@dataclass(frozen=True)
class Thinned:
    """x' = m x, y' = W x' + b + scale B diag(d) A x'. m stands for as many equal parts of x as it has numbers.

    Shapes: A (r, d_in), B (d_out, r), both or none; d (r,), or all ones; m (p,), p a divisor of d_in, may be absent;
    z (1,). m x is shown to whoever watches.
    z: told, where somebody listens, times |the update| / |what W gives| of each token, without that ratio's gradient:
    z stays zero, and its gradient is the mean ratio. Linear in: A, B and d, each alone. Cost: of `output` the update's
    T r (d_in + d_out), and with m the layer's own product once more.
    """

    scale: float = 1.0
    dropout: float = 0.0

    def weight(
        self, w: Tensor, m: Tensor | None = None, z: Tensor | None = None, d: Tensor | None = None, **low: Tensor
    ) -> Tensor:
        if low:
            w = w + self.scale * (low["B"] if d is None else low["B"] * d) @ low["A"]
        return w if m is None else w * spread(m, w.shape[-1])

    def bias(self, b: Tensor, **slots: Tensor) -> Tensor:
        return b

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return self._given(F.linear, x, y, base, **slots)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, r, d_in), ..."""
        return self._given(each, x, y, base, **slots)

    def _given(
        self,
        product: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        base: Any,
        m: Tensor | None = None,
        z: Tensor | None = None,
        d: Tensor | None = None,
        **low: Tensor,
    ) -> Tensor:
        if m is not None:
            x = x * _wide(spread(m, x.shape[-1]))
            if (show := getattr(base, "show", None)) is not None:
                show(x)
            y = base.call(x, base.weight.to(x.dtype), base.bias)
        if not low:
            return y
        h = product(F.dropout(x, self.dropout, base.training), low["A"])
        if d is not None:
            h = h * _wide(d)
        change = self.scale * product(h, low["B"])
        if z is not None and (tell := getattr(base, "tell", None)) is not None:
            tell(_wide(z) * _ratio(change.detach(), y.detach()))
        return y + change


def spread(m: Tensor, width: int) -> Tensor:
    """m (..., p) -> (..., width): each number for width / p neighbours."""
    return m if m.shape[-1] == width else m.repeat_interleave(width // m.shape[-1], -1)


def _wide(t: Tensor) -> Tensor:
    """Of n readers (n, k) -> (n, 1, k)."""
    return t if t.dim() == 1 else t[:, None]


def _ratio(change: Tensor, y: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm
    return norm(change.float(), dim=-1, keepdim=True) / norm(y.float(), dim=-1, keepdim=True).clamp(min=1e-12)
