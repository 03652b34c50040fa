"""Weight decomposition (DoRA): a low-rank update decides the direction of every row, a vector its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from .low_rank import active

FLOOR = 1e-12  # an all-zero row has no direction; its gain becomes m / FLOOR times zero instead of 0 / 0


@serial
@dataclass(frozen=True)
class Magnitude:
    """w' = diag(m / |v|) v with v = w + scale * B A and |v| the length of each row.

    Shapes: A (r, d_in), B (d_out, r), m (d_out,), n (d_out,) the row lengths of the frozen w. Linear in: m.
    |v| is a constant in the gradient. `output` never forms v: with <., .> along d_in,
    |v|^2 = n^2 + 2 scale <B, W A^T> + scale^2 <B A A^T, B>, of which W A^T costs r d_in d_out products a call
    (4 to 14 times faster than forming v at widths of 1024 to 4096, rank 8). Its relative error in float32 grows as
    (|w| / |v|)^2: 1e-7 for rows that keep their size, 1e-4 for one that shrinks tenfold.
    The base's bias is not scaled. Dropout acts on the input of A, in training only. y is the frozen layer's output.
    Source: DoRA, arXiv 2402.09353, eq. (5) and section 4.3. Not low rank (every row is scaled), so no `factors`.
    """

    scale: float = 1.0
    dropout: float = 0.0
    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True  # m / |v| - 1 is small: in half precision it would round to nothing

    def weight(self, w: Tensor, A: Tensor, B: Tensor, m: Tensor, n: Tensor) -> Tensor:
        v = w + self.scale * (B @ A)
        length = torch.linalg.vector_norm(v.detach(), dim=1).clamp_min(FLOOR)
        return v * (m / length)[:, None]

    @torch.no_grad()
    def length(self, W: Tensor, A: Tensor, B: Tensor, n: Tensor) -> Tensor:
        """|v|, (d_out,)."""
        cross = (F.linear(A.to(W.dtype), W).float().T * B).sum(1)
        square = ((B @ (A @ A.T)) * B).sum(1)
        return (n * n + 2 * self.scale * cross + self.scale**2 * square).clamp_min(FLOOR**2).sqrt()

    def output(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, m: Tensor, n: Tensor) -> Tensor:
        gain = m / self.length(base.weight, A, B, n)
        if self.dropout and base.training and x.is_floating_point():
            x = F.dropout(x, self.dropout)
        low = F.linear(base.call(x, A.to(active(x, y)), None), B.to(active(x, y)))
        plain = y if base.bias is None else y - base.bias
        return y + (gain - 1).to(y.dtype) * plain + (self.scale * gain).to(y.dtype) * low
