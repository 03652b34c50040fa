"""What methods add to the loss of their tenants' rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..host import Tenant


def penalty(tenants: Sequence[Tenant], readers: Tensor | None) -> Tensor | float:
    """The tenants' penalties, each by its share of a batch's rows: where the loss is a mean over rows, a tenant's own
    gradient is then the one that it has alone. readers: a number a row; None: one tenant reads all."""
    total: Tensor | float = 0.0
    for t in tenants:
        if t.method.penalty is None:
            continue
        share = 1.0 if readers is None else (readers == t.number).float().mean()
        total = total + share * t.method.penalty(t.config, t.plan, t.pools)
    return total
