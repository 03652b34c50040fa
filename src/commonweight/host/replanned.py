"""A tenant by another config of its method: a trained one as its method stores it, or one that grows as it trains."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Plan
from ..formats import coding, native
from ..formats.codecs import OneBit
from ..formats.codecs.onebit import refuse, two_levels
from ..formats.coding import Choice
from ..methods import plan as make_plan
from ..methods.beside import without
from .roster import Roster
from .tenant import Derive, Tenant, materialise
from .weights import device_of


def smaller(roster: Roster, tenant: Tenant) -> Tenant:
    """The tenant with the method's `compact` config and pools; as it is where there is none.

    What it holds beside the method, and its head, stay as they are; so do tenants of a common, whose pools others read.
    Cost: a copy of its pools.
    """
    method = tenant.method
    if method.compact is None or tenant.common is not None:
        return tenant
    tenant.free("made smaller")
    become(tenant, *_smaller(tenant), roster.frozen)
    return tenant


def _smaller(tenant: Tenant) -> tuple[Any, Plan, dict[str, Tensor]]:
    """(config, plan, values) of the smaller form of a tenant whose method has one."""
    assert tenant.method.compact is not None
    config, found = tenant.method.compact(tenant.config, tenant.bare().pools)
    own = made(tenant, config)
    plan = planned(tenant, config)
    values = {n: p for n, p in tenant.pools.items() if n in plan.pools and n not in own.pools}
    values |= {n: found[n].detach() for n, p in own.pools.items() if n in found and (p.train or p.save)}
    return config, plan, values


def coded(tenant: Tenant, codec: Choice) -> Tenant:
    """The tenant as a codec may take it: one whose method says `levels` by its numbers at their levels, on pools of its
    own; any other, and one at its levels, as it is. Raises: CommonweightError with codec onebit for one that was
    trained there, for one in a common, and for a method without levels."""
    found = _levels(tenant, codec)
    return tenant if found is None else tenant.other(*found)


def levelled(tenant: Tenant, codec: Choice) -> None:
    """The tenant itself as `coded` gives it."""
    if (found := _levels(tenant, codec)) is not None:
        become(tenant, *found)


def _levels(tenant: Tenant, codec: Choice) -> tuple[Any, Plan, dict[str, Tensor]] | None:
    """`_smaller` of a tenant that is to be brought to its levels; None of any other."""
    order, method = native.layout(tenant.plan), tenant.method
    packed = {n for k, c in coding.choose(tenant.plan, order, codec).items() if isinstance(c, OneBit) for n in order[k]}
    if packed:
        refuse(method.name, method.levels)
    if packed and tenant.common is not None:
        raise CommonweightError(
            f"it is in the common {tenant.common.name!r} and trains on, so that it is never at the levels "
            "that codec onebit stores; save it without a codec"
        )
    if not method.levels or tenant.common is not None:
        return None
    found = _smaller(tenant)
    if found[0] != tenant.config:
        return found
    own = made(tenant, tenant.config).pools
    moved = [n for n in own if n in packed and not two_levels(tenant.pools[n].detach())]
    if moved:
        raise CommonweightError(
            f"{moved[0]} was trained after it had been brought to its two levels, and is at them no "
            f"more; codec onebit would give another tenant. Save it without a codec, or train {tenant.method.name} anew"
        )
    return None


def made(tenant: Tenant, config: Any) -> Plan:
    """What the method plans by a config for the tenant's sites."""
    return make_plan(config, tenant.sites, seed=tenant.plan.seed)


def planned(tenant: Tenant, config: Any) -> Plan:
    """The tenant's plan by another config of its method, around which what it holds beside it, and its head, stay."""
    old, new = made(tenant, tenant.config), made(tenant, config)
    first = tenant.plan.uses[: len(tenant.beside.sites)]
    last = without(tenant.plan, tenant.beside).uses[len(old.uses) :]
    rest = {n: p for n, p in tenant.plan.pools.items() if n not in old.pools}
    return new._replace(pools={**rest, **new.pools}, uses=(*first, *new.uses, *last))


def become(
    tenant: Tenant,
    config: Any,
    plan: Plan,
    values: Mapping[str, Tensor],
    frozen: MutableMapping[Any, Tensor] | None = None,
) -> None:
    """The tenant reads these pools from now on, by this plan; all others are made as the plan says. A trained pool
    whose value is a parameter stays that very one. frozen: what the host holds once. Whoever holds its old ones (an
    optimizer, a module) must be told.

    Raises: CommonweightError where others stand on the tenant, in a common, and on no host; it is then as it was.
    """
    tenant.free("given another plan")
    if tenant.common is not None:
        raise CommonweightError(
            f"{tenant.name!r} is in the common {tenant.common.name!r}, whose pools others read in their shape; a "
            "tenant of its own can be given another plan: leave common out"
        )
    base = None if tenant.base is None else tenant.base()
    if base is None:
        raise CommonweightError(f"{tenant.name!r} is on no host, and cannot be given another plan")
    device = device_of(base.model)
    rest = plan._replace(pools={n: p for n, p in plan.pools.items() if n not in values})
    pools = materialise(rest, Derive(base.weight, base.bias), device, {} if frozen is None else frozen)
    for n, v in values.items():
        v = v.to(device=device, dtype=getattr(torch, plan.pools[n].dtype))
        pools[n] = v if isinstance(v, nn.Parameter) or not plan.pools[n].train else nn.Parameter(v)
    tenant.config, tenant.plan, tenant.pools = config, plan, {n: pools[n] for n in plan.pools}
    tenant.rest()
