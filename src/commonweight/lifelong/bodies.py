"""Tenants to and from a host and a store: what a method calls `Learned`, where it runs and where it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..adapt.data import Understood
from ..adapt.tasks import Seen
from ..adapt.train import shown
from ..commons import Commons
from ..core import Plan
from ..formats import native
from ..host import Host, Tenant
from ..methods import get, head, resolve
from ..methods import plan as make_plan
from .asks import Learned, Stage, is_head

COMMON = "stream"


def learned(tenant: Tenant) -> Learned:
    """A tenant's numbers, copied."""
    pools = {n: tenant.pools[n].detach().clone() for n, p in tenant.plan.pools.items() if p.train or p.save}
    return Learned(tenant.method.name, tenant.config, tenant.plan.seed, tenant.sites, tenant.labels, pools)


def fresh(stage: Stage, options: Mapping[str, Any], name: str, labels: Sequence[str] | None, rows: Any) -> Learned:
    """A tenant that nobody has trained. rows: examples for a method that begins from data."""
    _, config = resolve(stage.method, {**stage.options, **options})
    seen = Understood(stage.task, list(rows), [], Seen(), Seen())
    first = shown(config, {}, seen, stage.recipe)
    tenant = stage.host.add(
        name, config, sites=stage.sites, seed=stage.recipe.seed, labels=labels,
        rows=first.get("rows"),
    )  # fmt: skip
    try:
        return learned(tenant)
    finally:
        stage.host.remove(name)


def plan_of(host: Host, tenant: Learned) -> Plan:
    """The plan that a tenant's file is read by."""
    plan = make_plan(tenant.config, tenant.sites, seed=tenant.seed)
    return plan if tenant.labels is None else plan + head(host.head_site(), len(tenant.labels))


def put(host: Host, name: str, tenant: Learned, still: frozenset[str] = frozenset(), together: bool = False) -> Tenant:
    """A tenant on the host. still: pools that are not trained. together: its body is the one that all tenants which are
    put so read; the first one's numbers count."""
    plan, method = plan_of(host, tenant), get(tenant.method)
    pools = {
        n: replace(p, train=p.train and n not in still, scope="shared" if together and not is_head(n) else p.scope)
        for n, p in plan.pools.items()
    }
    plan = plan._replace(pools=pools)
    of = host.roster.join(COMMON, method, plan) if together else None
    values = {n: p.clone() for n, p in tenant.pools.items()}
    return host.roster.attach(
        name, method, tenant.config, plan, tenant.labels, values, sites=tenant.sites, of=of
    )  # fmt: skip


@contextmanager
def there(host: Host, tenants: Mapping[str, Learned]) -> Any:
    """Within it, the tenants are on the host under their names."""
    made: list[str] = []
    try:
        for name, tenant in tenants.items():
            put(host, name, tenant)
            made.append(name)
        yield
    finally:
        for name in made:
            host.remove(name)


def publish(host: Host, store: Commons, tenants: Mapping[str, Learned]) -> dict[str, str]:
    """All at once; gives the label of each, ``trec@2``. What several have alike lies in the store once."""
    with there(host, tenants):
        each = {n: _digests(host[n]) for n in tenants}
        count: dict[str, int] = {}
        for found in each.values():
            for d in found.values():
                count[d] = count.get(d, 0) + 1
        own = {n: [t for t, d in found.items() if count[d] == 1] for n, found in each.items()}
        made = store.publish_all(host, tenants, own=own)
    return {n: m.label for n, m in made.items()}


def load(host: Host, store: Commons, label: str, name: str) -> Learned:
    tenant = host.load_from(store, label, as_=name)
    try:
        return learned(tenant)
    finally:
        host.remove(name)


def _digests(tenant: Tenant) -> dict[str, str]:
    """Tensor of its file -> a digest of what it holds."""
    out = {}
    for tensor, names in native.layout(tenant.plan).items():
        h = hashlib.blake2b(tensor.encode(), digest_size=16)
        for n in names:
            h.update(_bytes(tenant.pools[n]))
        out[tensor] = h.hexdigest()
    return out


def _bytes(pool: Tensor) -> bytes:
    import torch

    return pool.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
