"""What plans of tenants over tenants have in common: the frozen pools below them, and how a site reads these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...core import CommonweightError, Plan, Pool, Read, Site

Below = Sequence[tuple[str, Plan]]  # (name, plan) of each tenant that is stood on
KINDS = ("linear", "expert", "block", "attention", "ffn")


ALONE = {  # what a bind has that cannot be run as a part of another one -> what it means
    "lends": "gives what it is given to other sites",
    "source": "reads what another site is given",
    "invocation": "acts on some tokens alone",
    "whole": "goes by whole rows",
    "context": "goes by its row's embedding",
}


class Stood(NamedTuple):
    """pools: of all tenants below, tenant i's behind ``i/``; none is trained or saved. parts: by site, of each tenant
    its binds there. reads: by site, their slots as ``i.j.slot``."""

    pools: dict[str, Pool]
    parts: dict[str, tuple[tuple[Any, ...], ...]]
    reads: dict[str, dict[str, Read]]


def stand(sites: Sequence[Site], below: Below) -> Stood:
    """Raises: CommonweightError for a tenant whose change at a site is none that can be weighed there."""
    pools: dict[str, Pool] = {}
    parts: dict[str, list[list[Any]]] = {s.name: [[] for _ in below] for s in sites}
    reads: dict[str, dict[str, Read]] = {s.name: {} for s in sites}
    for i, (name, plan) in enumerate(below):
        for use in plan.uses:
            if use.site not in parts:  # a head for classes: what stands on it has its own
                continue
            bind = use.bind
            why = next((said for what, said in ALONE.items() if getattr(bind, what, None)), None)
            if getattr(bind, "output", None) is None or getattr(bind, "input", None) is not None:
                why = "is no addition to what the site gives"
            if why is not None:
                raise CommonweightError(
                    f"{name}: at {use.site} it {why} ({type(bind).__name__}); stand on tenants of methods such as lora"
                )
            j = len(parts[use.site][i])
            parts[use.site][i].append(bind)
            for slot, read in use.reads.items():
                reads[use.site][f"{i}.{j}.{slot}"] = Read(read.address, tuple(f"{i}/{p}" for p in read.pools))
                pools |= {
                    f"{i}/{p}": replace(plan.pools[p], train=False, save=False, scope="tenant") for p in read.pools
                }
    return Stood(pools, {n: tuple(map(tuple, ps)) for n, ps in parts.items()}, reads)


def frozen(pool: Pool) -> Pool:
    return replace(pool, train=False, save=False, scope="tenant")


def values(below: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """The numbers of `Stood.pools`, the very tensors of the tenants below."""
    out = {}
    for name, pool in plan.pools.items():
        at, slash, rest = name.partition("/")
        if slash and at.isdigit() and not pool.save:
            out[name] = below[int(at)][rest].detach()
    return out
