"""What blocks answer to queries, added to what the last of them gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class Answered:
    """y' = y + U V [z_1; ...; z_n] for all tokens of a row: z_l what block l answers to its T queries, one after
    another, over its length.

    Shapes: P (n, T, d), V (r, n T d), U (d, r); x (B, T or more, n d). Linear in: U and V, each alone.
    Cost: n T tokens through a block, n T d r products a row and r d.
    """

    tokenwise: ClassVar[bool] = False

    def queries(self, P: Tensor, **_: Tensor) -> Tensor:
        return P

    def output(self, x: Tensor, y: Tensor, base: Base, P: Tensor, V: Tensor, U: Tensor) -> Tensor:
        n, t, d = P.shape[-3:]
        z = F.normalize(x[..., :t, :].unflatten(-1, (n, d)).transpose(-3, -2).flatten(-2), dim=-1)
        return y + z.flatten(-2)[..., None, :] @ V.mT @ U.mT

    def grouped(self, x: Tensor, y: Tensor, base: Base, P: Tensor, V: Tensor, U: Tensor) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), every slot with a leading n."""
        return self.output(x, y, base, P, V, U)
