"""What methods add to the loss of their tenants' rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..core import CommonweightError
from ..host import Tenant
from ..host.heard import Heard


def routed(tenant: Tenant) -> bool:
    """Whether what its routers say is a part of its loss. Raises: CommonweightError where that could not be heard."""
    if tenant.method.router_loss(tenant.config) is None:
        return False
    audible(tenant)
    return True


def audible(tenant: Tenant) -> None:
    """Raises: CommonweightError where nobody could hear what a tenant's routers say."""
    if site := next((s.name for s in tenant.sites if s.kind == "expert"), None):
        raise CommonweightError(
            f"{site}: an expert of the model's own, in which nobody hears what {tenant.method.name}'s routers say; "
            "leave the experts out with sites, or set the weights of their loss, and what moves their bias, to 0"
        )


def penalty(tenants: Sequence[Tenant], readers: Tensor | None, heard: Heard | None = None) -> Tensor | float:
    """The tenants' penalties, each by its share of a batch's rows: where the loss is a mean over rows, a tenant's own
    gradient is then the one that it has alone. readers: a number a row; None: one tenant reads all. heard: what their
    routers said of these rows."""
    total: Tensor | float = 0.0
    for t in tenants:
        share = 1.0 if readers is None else (readers == t.number).float().mean()
        if t.method.penalty is not None:
            total = total + share * t.method.penalty(t.config, t.plan, t.pools)
        if heard is not None and t.method.router_loss(t.config) is not None and (readers is None or share > 0):
            total = total + share * heard.loss(t)
    return total
