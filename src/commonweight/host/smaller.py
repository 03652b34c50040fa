"""A trained tenant in the form in which its method stores it."""

from __future__ import annotations

from ..methods import plan as make_plan
from ..methods.beside import without
from .roster import Roster
from .tenant import Tenant


def smaller(roster: Roster, tenant: Tenant) -> Tenant:
    """The same tenant with the method's `compact` config and pools, under its name; itself where there is none.

    What it holds beside the method, and its head, stay as they are; so do tenants of a common, whose pools others read.
    Cost: a copy of its pools.
    """
    method = tenant.method
    if method.compact is None or tenant.common is not None:
        return tenant
    config, pools = method.compact(tenant.config, tenant.bare().pools)
    first = tenant.plan.uses[: len(tenant.beside.sites)]
    old = make_plan(tenant.config, tenant.sites, seed=tenant.plan.seed)
    new = make_plan(config, tenant.sites, seed=tenant.plan.seed)
    last = without(tenant.plan, tenant.beside).uses[len(old.uses) :]
    rest = {n: p for n, p in tenant.plan.pools.items() if n not in old.pools}
    plan = new._replace(pools={**rest, **new.pools}, uses=(*first, *new.uses, *last))
    values = {n: p.detach() for n, p in tenant.pools.items() if n in rest}
    values |= {n: pools[n].detach() for n, p in new.pools.items() if n in pools and (p.train or p.save)}
    tenant.free("made smaller")
    roster.remove(tenant.name)
    try:
        found = roster.attach(
            tenant.name, method, config, plan, tenant.labels, values, sites=tenant.sites, apart=tenant.apart,
            beside=tenant.beside, held=tenant.held,
        )  # fmt: skip
    except BaseException:
        roster.tenants[tenant.name] = tenant
        raise
    found.vocabulary = tenant.vocabulary
    found.keep(tenant.known)
    return found
