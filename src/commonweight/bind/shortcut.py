"""A low-rank update that reads what the layer before was given, beside what its own is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..core import serial
from .low_rank import each


@serial
@dataclass(frozen=True)
class Shortcut:
    """y' = y + scale B A (x + z), or with a slot C y + scale B (A x + C z); z what the site `source` was given.

    Without a source z is x in the first form, and left out in the second. Shapes: A and C (r, d_in), B (d_out, r).
    lends: whether another site reads what this one is given. No form of a weight. Linear in each slot alone.
    Cost: T r (d_in + d_out) products, with C T r d_in more. Raises: CommonweightError where the source did not run
    before in the same pass, as where blocks are recomputed one by one.
    """

    scale: float = 1.0
    dropout: float = 0.0
    source: str = ""
    lends: bool = False

    def _low(
        self, product: Callable[[Tensor, Tensor], Tensor], x: Tensor, base: Any, A: Tensor, C: Tensor | None
    ) -> Tensor:
        z = base.lent(self.source) if self.source else None
        if C is None:
            return product(F.dropout(x + (x if z is None else z), self.dropout, base.training), A)
        low = product(F.dropout(x, self.dropout, base.training), A)
        return low if z is None else low + product(F.dropout(z, self.dropout, base.training), C)

    def output(self, x: Tensor, y: Tensor, base: Any, A: Tensor, B: Tensor, C: Tensor | None = None) -> Tensor:
        return y + self.scale * F.linear(self._low(F.linear, x, base, A, C), B)

    def grouped(self, x: Tensor, y: Tensor, base: Any, A: Tensor, B: Tensor, C: Tensor | None = None) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, r, d_in), ..."""
        return y + self.scale * each(self._low(each, x, base, A, C), B)
