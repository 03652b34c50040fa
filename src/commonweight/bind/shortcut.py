"""A low-rank update that reads what layers before were given, beside what its own is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..core import serial
from .low_rank import each


@serial
@dataclass(frozen=True)
class Shortcut:
    """y' = y + scale B A (x + z), or with slots C, C2, ... y + scale B (A x + C z + C2 z2 + ...); z what the site
    `source` was given, z2, ... what those of `further` were.

    Without a source z is x in the first form, and left out in the second. Shapes: A and C (r, d_in), B (d_out, r).
    lends: how many sites read what this one is given. No form of a weight. Linear in each slot alone.
    Cost: T r (d_in + d_out) products, with each C T r d_in more. Raises: CommonweightError where the source did not run
    before in the same pass, as where blocks are recomputed one by one.
    """

    scale: float = 1.0
    dropout: float = 0.0
    source: str = ""
    lends: int = 0
    further: tuple[str, ...] = ()

    def _low(
        self, product: Callable[[Tensor, Tensor], Tensor], x: Tensor, base: Any, A: Tensor, middle: Mapping[str, Tensor]
    ) -> Tensor:
        if not middle:
            z = base.lent(self.source) if self.source else x
            return product(F.dropout(x + z, self.dropout, base.training), A)
        low = product(F.dropout(x, self.dropout, base.training), A)
        for k, site in enumerate((self.source, *self.further), 1):
            if site:
                z = F.dropout(base.lent(site), self.dropout, base.training)
                low = low + product(z, middle[f"C{k}" if k > 1 else "C"])
        return low

    def output(self, x: Tensor, y: Tensor, base: Any, A: Tensor, B: Tensor, **middle: Tensor) -> Tensor:
        return y + self.scale * F.linear(self._low(F.linear, x, base, A, middle), B)

    def grouped(self, x: Tensor, y: Tensor, base: Any, A: Tensor, B: Tensor, **middle: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, r, d_in), ..."""
        return y + self.scale * each(self._low(each, x, base, A, middle), B)
