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

    Shapes: W (d_out, d_in), of a norm (d,); b (d_out,); one of them may be none: then it is the base's. across: W is
    held as (d_in, d_out), as the entries of a table of embeddings are. Cost of `output`: the layer's own, once more; of
    a bias alone T d_out additions.
    """

    across: bool = False
    anywhere: ClassVar[str] = "through"

    def weight(self, w: Tensor, W: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return w if W is None else (W.mT if self.across else W).to(w)

    def bias(self, old: Tensor, W: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return old if b is None else b.to(old)

    def output(self, x: Tensor, y: Tensor, base: Base, W: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        own = base.bias
        if W is None:
            return y if b is None or own is None else y + (b - own.to(b)).to(y.dtype)
        b = b if b is not None or own is None else own.to(y)
        return base.call(x, W.mT if self.across else W, b).to(y.dtype)

    def turned(self) -> Copy:
        return Copy(not self.across)
