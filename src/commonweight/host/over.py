"""Tenants over frozen tenants: made, and found again when one is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import CommonweightError, Plan, Site
from ..methods import OVER, Method
from ..methods.over.plans import KINDS, values
from .tenant import Tenant

if TYPE_CHECKING:
    from .hooked import HookedModel
    from .roster import Roster


def over_tenants(method: Any) -> bool:
    """Whether a method's name or config is that of one over tenants."""
    return method in OVER.all if isinstance(method, str) else any(type(method) is m.config for m in OVER.all.values())


def of_names(roster: Roster, method: Method, names: Sequence[str]) -> list[Tenant]:
    """Raises: CommonweightError for no name, one that stands there twice, for a common that is still trained, and for
    tenants that go by tasks of other names."""
    if isinstance(names, str) or not names:
        raise CommonweightError(f"over={names!r}: wanted the names of tenants that {method.name} is to stand on")
    if len({*names}) < len(names):
        raise CommonweightError(f"over={list(names)!r}: a tenant stands there twice; name each once")
    found = [roster[n] for n in names]
    for t in found:
        if t.common is not None and not t.common.frozen:
            raise CommonweightError(
                f"over: {t.name!r} reads the common {t.common.name!r}, which is still trained; freeze it first: "
                f"host.freeze({t.common.name!r})"
            )
    by_task = [t for t in found if t.tasks]
    if by_task and method.derived is not None:
        first = by_task[0]
        raise CommonweightError(
            f"over: {first.name!r} goes by tasks ({', '.join(first.tasks)}), and {method.name} works one vector out of "
            "each tenant's update; stand on tenants of one task each"
        )
    if other := next((t for t in by_task if {*t.tasks} != {*by_task[0].tasks}), None):
        lists = " and ".join(f"{t.name!r} by {', '.join(t.tasks)}" for t in (by_task[0], other))
        raise CommonweightError(
            f"over: tenants go by other tasks, {lists}, so that a row's task would be unknown to one of them; stand on "
            "tenants of the same tasks, in any order, or of none"
        )
    return found


def sites_of(base: HookedModel, below: Sequence[Tenant], method: Method) -> list[Site]:
    """Those that any of the tenants reads, in the model's order, heads for classes aside."""
    used = {u.site for t in below for u in t.plan.uses}
    mine = [s for s in base.every if s.name in used and s.kind != "head"]
    if strange := [s for s in mine if s.kind not in KINDS]:
        raise CommonweightError(
            f"{method.name}: its tenants read {strange[0].name}, of kind {strange[0].kind}, where no sum of changes "
            f"can be weighed; stand on tenants that read sites of kind {', '.join(KINDS)}"
        )
    return mine


def plan_over(method: Method, config: Any, sites: Sequence[Site], below: Sequence[Tenant], seed: int) -> Plan:
    plan: Any = method.plan
    return plan(sites, config, [(t.name, t.plan) for t in below])._replace(seed=seed)


def pools_over(method: Method, config: Any, plan: Plan, below: Sequence[Tenant]) -> dict[str, Tensor]:
    """The tensors of the tenants below, which are shared, and what is worked out of them."""
    found = values([t.pools for t in below], plan)
    return {**found, **(method.derived(config, plan, found) if method.derived is not None else {})}


def content(tenant: Tenant) -> str:
    """32 hex digits of a tenant's plan and saved numbers, and of what it stands on."""
    h = hashlib.blake2b(tenant.plan.digest().encode(), digest_size=16)
    for name, pool in tenant.plan.pools.items():
        if pool.save:
            h.update(tenant.pools[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for t in tenant.over:
        h.update(content(t).encode())
    return h.hexdigest()


def said(tenant: Tenant) -> list[list[str]]:
    """What a file says of the tenants that it stands on: name and content of each."""
    return [[t.name, content(t)] for t in tenant.over]


def having(roster: Roster, name: str, wanted: str) -> Tenant | None:
    """The host's tenant with this content: that of the name, if it is it, else any."""
    there = sorted(roster.tenants.values(), key=lambda t: t.name != name)
    return next((t for t in there if content(t) == wanted), None)


def found(roster: Roster, path: str, header: Mapping[str, Any]) -> list[Tenant]:
    """The host's tenants that a file stands on, whatever they are called here.

    Raises: CommonweightError where one is not there, or holds other numbers."""
    out = []
    for name, wanted in header["over"]:
        if (there := having(roster, name, wanted)) is None:
            why = (
                "whose numbers are others here; load the one that it was made over"
                if name in roster.tenants
                else "which this host does not have; load that one first, or load this one from a store"
            )
            raise CommonweightError(f"{path}: it stands on the tenant {name!r}, {why}")
        out.append(there)
    return out
