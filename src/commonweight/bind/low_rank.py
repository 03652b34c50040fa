"""Low-rank update of a linear layer: w' = w + scale * diag(b) B M diag(d) A, with M, d, b optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from . import fused


@serial
@dataclass(frozen=True)
class LowRank:
    """Shapes: A (r, d_in), B (d_out, r), M (r, r), d (r,), b (d_out,). Linear in each slot alone.

    Cost of `output`: T r (d_in + d_out) products; of `weight`: d_in d_out r.
    Dropout acts on the input of A, in training only.
    """

    scale: float = 1.0
    dropout: float = 0.0
    anywhere: ClassVar[str] = "through"

    def factors(
        self, A: Tensor, B: Tensor, M: Tensor | None = None, d: Tensor | None = None, b: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if d is not None:
            A = A * d[..., None]
        if M is not None:
            A = M @ A
        if b is not None:
            B = B * b[..., None]
        return A, B if self.scale == 1.0 else B * self.scale

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        A, B = self.factors(**slots)
        return w + B @ A

    def _low(
        self,
        x: Tensor,
        base: Base,
        A: Tensor,
        M: Tensor | None,
        d: Tensor | None,
        first: Callable[..., Tensor],
        then: Callable[..., Tensor],
    ) -> Tensor:
        """M diag(d) A x: `first` is the site's own product with A (`fused.low` in training), `then` that with M."""
        if self.dropout and base.training and x.is_floating_point():
            x = F.dropout(x, self.dropout)
        h = first(x, A)
        if d is not None:
            h = h * (d if d.dim() == 1 else d[:, None])
        return h if M is None else then(h, M)

    def output(
        self,
        x: Tensor,
        y: Tensor,
        base: Base,
        A: Tensor,
        B: Tensor,
        M: Tensor | None = None,
        d: Tensor | None = None,
        b: Tensor | None = None,
    ) -> Tensor:
        h = F.linear(self._low(x, base, A, M, d, partial(_call, base), F.linear), B)
        return torch.add(y, h if b is None else h * b, alpha=self.scale)

    def trained(
        self,
        x: Tensor,
        y: Tensor,
        base: Base,
        weight: Tensor | None,
        A: Tensor,
        B: Tensor,
        M: Tensor | None = None,
        d: Tensor | None = None,
        b: Tensor | None = None,
    ) -> Tensor:
        """`output` with the graph of `fused`, written over y. weight: where y = x weight^T + constant, else None."""
        if b is not None or not fused.recorded(x, y, A, B):
            return self.output(x, y, base, A, B, M, d, b)
        if M is None and d is None and not (self.dropout and base.training):
            return fused.add(x, y if weight is None else y.detach(), A, B, self.scale, weight)
        return fused.raised(self._low(x, base, A, M, d, fused.low, fused.low), y, B, self.scale)

    def grouped(
        self,
        x: Tensor,
        y: Tensor,
        base: Base,
        A: Tensor,
        B: Tensor,
        M: Tensor | None = None,
        d: Tensor | None = None,
        b: Tensor | None = None,
    ) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, r, d_in), ...; without gradients y is written over."""
        h = self._low(x, base, A, M, d, base.many, each)
        if b is not None:
            return torch.add(y, torch.bmm(h, B.mT) * b[:, None], alpha=self.scale)
        if torch.is_grad_enabled() or not h.dtype == B.dtype == y.dtype:  # autocast does not cast what works in place
            return torch.baddbmm(y, h, B.mT, alpha=self.scale)
        return y.baddbmm_(h, B.mT, alpha=self.scale)


def _call(base: Base, x: Tensor, A: Tensor) -> Tensor:
    return base.call(x, A, None)


def each(x: Tensor, w: Tensor) -> Tensor:
    """F.linear of n readers: x (n, T, i), w (n, o, i) -> (n, T, o)."""
    return torch.bmm(x, w.mT)


def active(x: Tensor, y: Tensor) -> torch.dtype:
    """The activations' dtype; entries of a vocabulary are numbered."""
    return x.dtype if x.is_floating_point() else y.dtype
