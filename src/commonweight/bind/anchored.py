"""The change of a low-rank product since its start: w' = w + scale * (B M A - B0 M0 A0), with M, M0 optional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Base, serial
from .factors import added, added_grouped


@serial
@dataclass(frozen=True)
class Anchored:
    """Shapes: A and A0 (r, d_in), B and B0 (d_out, r), M and M0 (r, r). Affine in: A, B and M, each alone.

    Computed as (B - B0) A + B0 (A - A0), of rank 2 r: exactly zero at A = A0, B = B0, and the small differences are
    taken in float32 before anything is rounded to the activations' dtype. Only the product B0 A0 matters, so that
    signs of singular vectors may differ between machines. Cost of `output`: 2 T r (d_in + d_out) products.
    """

    scale: float = 1.0
    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True

    def factors(
        self, A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, M: Tensor | None = None, M0: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if M is not None and M0 is not None:
            A, A0 = M @ A, M0 @ A0
        A, B = torch.cat([A, A - A0], -2), torch.cat([B - B0, B0], -1)
        return A, B if self.scale == 1.0 else B * self.scale

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        A, B = self.factors(**slots)
        return w + B @ A

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return added(x, y, base, *self.factors(**slots))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return added_grouped(x, y, base, *self.factors(**slots))
