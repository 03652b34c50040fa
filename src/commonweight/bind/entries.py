"""Entries of a table of embeddings that are a tenant's own, and a change of a table as one of the head tied to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class Entries:
    """The entries `ids` are the tenant's `rows`, whatever the base has there. Linear in: rows.

    Shapes: rows (n, d), ids (n,) whole numbers. of_head: of a head (V, d), whose rows they are; else of a table of
    embeddings (d, V), whose columns. Cost: T n comparisons, or T n d products at a head.
    """

    of_head: bool = False
    anywhere: ClassVar[str] = "through"

    def weight(self, w: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        return w.index_copy(0, ids, rows.to(w)) if self.of_head else w.index_copy(1, ids, rows.to(w).mT)

    def output(self, x: Tensor, y: Tensor, base: Base, rows: Tensor, ids: Tensor) -> Tensor:
        if self.of_head:
            b = base.bias
            return y.index_copy(-1, ids, F.linear(x, rows, None if b is None else b[ids]).to(y.dtype))
        same = x == ids
        mine = base.scaled(rows)[same.to(torch.uint8).argmax(-1)]
        return torch.where(same.any(-1, keepdim=True), mine.to(y.dtype), y)

    def reads(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, bool]:
        return math.prod(shapes["rows"]), False

    def turned(self) -> Entries:
        return Entries(not self.of_head)


@dataclass(frozen=True)
class Turned:
    """What a change of a weight makes of its transpose: of the head that is tied to a table, w' = bind(w^T)^T.

    Cost of `output`: that of a low-rank update where the bind has factors; else the whole weight is made.
    """

    bind: Any

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return self.bind.weight(w.mT, **slots).mT

    @property
    def precise(self) -> bool:
        return getattr(self.bind, "precise", False)

    @property
    def output(self) -> Any:
        return self._low if getattr(self.bind, "factors", None) is not None else None

    def _low(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        A, B = (f.to(x.dtype) for f in self.bind.factors(**slots))
        return y + F.linear(F.linear(x, B.mT), A.mT)


def turned(bind: Any) -> Any:
    """The same change for the transpose of the weight."""
    own = getattr(bind, "turned", None)
    return Turned(bind) if own is None else own()
