"""Low-rank experts of which every token takes what its own hidden state says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from .low_rank import each

SCORES = {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid}


@serial
@dataclass(frozen=True)
class Gated:
    """y' = y + scale sum_e g_e(x) B_e A_e x: one low rank of rank E r whose diagonal each token has to itself.

    g = score(router x); k > 0: the k largest of them, over their sum, and 0 elsewhere. dropped: the router too reads x
    after the dropout. Shapes: A (E r, d_in), or (r, d_in) where all experts have one A; B (d_out, E r), router
    (E, d_in). Linear in: A and B, each alone. No form of a weight: it would be another one for each token.
    Cost: T E (r (d_in + d_out) + d_in) products, whatever k is: a gate of 0 is a product with 0.
    """

    scale: float = 1.0
    score: str = "softmax"
    k: int = 0
    dropout: float = 0.0
    dropped: bool = False
    precise: ClassVar[bool] = True  # gates are worked out in float32

    def gates(self, logits: Tensor) -> Tensor:
        """(..., E) of logits (..., E)."""
        p = SCORES[self.score](logits)
        if not self.k:
            return p
        top, at = p.topk(self.k, -1)
        return torch.zeros_like(p).scatter(-1, at, top / top.sum(-1, keepdim=True))

    def output(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor) -> Tensor:
        return y + self._update(F.linear, x, base, A, B, router)

    def grouped(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, E r, d_in), ..."""
        return y + self._update(each, x, base, A, B, router)

    def _update(
        self, product: Callable[[Tensor, Tensor], Tensor], x: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor
    ) -> Tensor:
        low = F.dropout(x, self.dropout) if self.dropout and base.training else x
        g = self.gates(product((low if self.dropped else x).float(), router))
        r = B.shape[-1] // router.shape[-2]
        h = product(low, A.to(x.dtype)).unflatten(-1, (-1, r)) * g.to(x.dtype)[..., None]
        return product(h.flatten(-2), B.to(x.dtype) * self.scale)
