"""A low-rank update of the tokens from an invocation on; those before it are the base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Base, CommonweightError, serial
from .low_rank import LowRank


@serial
@dataclass(frozen=True)
class Activated:
    """y' = y + [t >= t0] scale B A x_t, t0 where the last occurrence of `invocation` begins in the row.

    Shapes: as `low`. Linear in: each slot alone. Cost: those of `low`, and one pass over x. It has no weight form: no
    weight acts on some tokens alone. base.active: which tokens act, bool (..., T, 1), None for all of them.
    Source: aLoRA, arXiv 2504.12397, eq. (2). Raises: CommonweightError where nobody says which tokens act.
    """

    low: LowRank
    invocation: tuple[int, ...]
    tokenwise: ClassVar[bool] = False

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return self.low.output(_acting(x, base), y, base, **slots)

    def trained(self, x: Tensor, y: Tensor, base: Base, weight: Tensor | None, **slots: Tensor) -> Tensor:
        """No frozen weight joins the node: it reads all tokens, the update some."""
        return self.low.trained(_acting(x, base), y, base, None, **slots)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return self.low.grouped(_acting(x, base), y, base, **slots)


def _acting(x: Tensor, base: Base) -> Tensor:
    """x with zeros in place of the tokens that do not act."""
    try:
        active = base.active
    except AttributeError:
        raise CommonweightError(
            f"{getattr(base, 'name', 'a site')}: nothing says here which tokens follow the invocation (activated LoRA);"
            " make the tenant without this site"
        ) from None
    return x if active is None else x.masked_fill(~active, 0)
