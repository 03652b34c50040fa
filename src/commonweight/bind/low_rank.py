"""Low-rank update of a linear layer: w' = w + scale * diag(b) B M diag(d) A, with M, d, b optional."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class LowRank:
    """Shapes: A (r, d_in), B (d_out, r), M (r, r), d (r,), b (d_out,). Linear in each slot alone.

    Cost of `output`: T r (d_in + d_out) products; of `weight`: d_in d_out r.
    Dropout acts on the input of A, in training only.
    """

    scale: float = 1.0
    dropout: float = 0.0

    def factors(
        self, A: Tensor, B: Tensor, M: Tensor | None = None, d: Tensor | None = None, b: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if d is not None:
            A = A * d[:, None]
        if M is not None:
            A = M @ A
        if b is not None:
            B = B * b[:, None]
        return A, B * self.scale

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        A, B = self.factors(**slots)
        return w + B @ A

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
        if self.dropout and base.training:
            x = F.dropout(x, self.dropout)
        h = F.linear(x, A)
        if d is not None:
            h = h * d
        if M is not None:
            h = F.linear(h, M)
        h = F.linear(h, B)
        if b is not None:
            h = h * b
        return torch.add(y, h, alpha=self.scale)

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
        """`output` of n readers at once: x (n, T, d_in), A (n, r, d_in), ..."""
        if self.dropout and base.training:
            x = F.dropout(x, self.dropout)
        h = torch.bmm(x, A.mT)
        if d is not None:
            h = h * d[:, None]
        if M is not None:
            h = torch.bmm(h, M.mT)
        if b is None:
            return torch.baddbmm(y, h, B.mT, alpha=self.scale)
        return torch.add(y, torch.bmm(h, B.mT) * b[:, None], alpha=self.scale)
