"""A weight of the tenant's own in place of the base's, whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class Copy:
    """w' = W, b' = b, whatever the base has there. Linear in: W and b.

    Shapes: W (d_out, d_in), of a norm (d,); b (d_out,) or none: then the bias is the base's. across: W is held as
    (d_in, d_out), as the entries of a table of embeddings are. Cost of `output`: the layer's own, once more.
    """

    across: bool = False
    anywhere: ClassVar[str] = "through"

    def weight(self, w: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return (W.mT if self.across else W).to(w)

    def bias(self, old: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return old if b is None else b.to(old)

    def output(self, x: Tensor, y: Tensor, base: Base, W: Tensor, b: Tensor | None = None) -> Tensor:
        own = base.bias
        b = b if b is not None or own is None else own.to(y)
        return base.call(x, W.mT if self.across else W, b).to(y.dtype)

    def turned(self) -> Copy:
        return Copy(not self.across)
