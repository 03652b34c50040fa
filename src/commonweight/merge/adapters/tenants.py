"""Tenants merged with each other: in their pools where that is exact, else as the changes of weights that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, dump
from ...formats import atomic, native
from ...formats.coding import Choice
from ...formats.order import site_fields
from ...formats.pairs import commonest, others
from ...methods import head, resolve
from ...methods import plan as make_plan
from .. import registry
from ..sources.opened import Opened, open_tenant, start
from . import lora as adapters
from .additive import errors

EXACT = 1e-5  # relative, in float64: what counts as the weighted sum of the changes
Space = Literal["pools", "weights"]


class MergedTenant(NamedTuple):
    """A merged tenant, not yet on a host. space: where it was merged; why: the reason, in a sentence.

    error: per site, |change - wanted|_F / |wanted|_F. In pool space wanted is the sum of the tenants' changes by the
    weights (for other methods than linear sums: by equal weights, which says whether pools are a space to merge in); in
    weight space it is what the method gives before it is brought to its rank.
    """

    header: Mapping[str, Any]
    plan: Plan
    pools: Mapping[str, Tensor]
    check: Tensor | None
    space: Space
    why: str
    error: Mapping[str, float]

    def save(self, path: str | Path, codec: Choice = None, *, overwrite: bool = True) -> Path:
        """One tenant file, written atomically, that `Host.load` reads on the tenants' base. overwrite: False refuses
        to replace another file, with a CommonweightError."""
        data = native.encode(self.header, self.plan, self.pools, self.check, codec)
        return atomic.write_new(Path(path), data, overwrite=overwrite)


def tenants(
    inputs: Sequence[str | Path],
    *,
    method: str = "linear",
    weights: Any = None,
    space: Space | None = None,
    rank: int | None = None,
    **options: Any,
) -> MergedTenant:
    """Merges tenants of one base into a tenant. inputs: tenant files, or "STORE:TENANT".

    method: any that needs no data, with its options. space="pools": pool by pool, for tenants of equal plans (method,
    options, seed, sites, labels). The result is a tenant of the same method and size. A method that needs a base gets
    the pools before training.
    space="weights": merges the changes B A of the weights, of all sites in one call, like whole models. The result is
    a LoRA tenant: of the sum of the ranks for linear (exact); otherwise, or with `rank`, cut to a rank by SVD.
    None: "pools" if the mean of the pools gives the mean of the changes (one trained pool a read: LoRA-XS, SVF, IA3,
    LoRI, biases), else "weights": averaging LoRA's A and B separately is not the average of B A.
    Heads are merged by the same method, but separately: they count in no threshold of the sites.
    Cost: one change per site and tenant, in float64. Raises: CommonweightError for other bases, plans or labels.
    """
    if len(inputs) < 2:
        raise CommonweightError(f"tenants: {len(inputs)} given; give at least two")
    found = registry.get(method)
    if found.data != "none":
        raise CommonweightError(f"tenants: {method} needs {found.data} data; take a method that needs none")
    if space not in (None, "pools", "weights"):
        raise CommonweightError(f"tenants: space is {space!r}; wanted 'pools', 'weights', or None")
    opened = [open_tenant(name) for name in inputs]
    for other in opened[1:]:
        if other.header["base"] != opened[0].header["base"]:
            raise CommonweightError(f"{other.label}: made for another base than {opened[0].label}; train both on one")
        if other.header.get("labels") != opened[0].header.get("labels"):
            raise CommonweightError(
                f"{other.label}: its labels are not those of {opened[0].label}; one head has one list"
            )
    odd = next((o for o in opened[1:] if o.header["plan"] != opened[0].header["plan"]), None)
    apart = f"the plans of {opened[0].label} and {odd.label} differ ({_differ(opened[0], odd)})" if odd else ""
    if odd and space == "pools":
        raise CommonweightError(f"tenants: {apart}; space='weights' merges what they do to the weights")
    given = {} if weights is None else {"weights": weights}
    about = {"method": method, "weights": weights, "options": options, "of": [o.label for o in opened]}
    if space != "weights" and not odd:
        if rank is not None and space == "pools":
            raise CommonweightError("tenants: rank goes with space='weights'; in pool space the ranks stay")
        by, more = (
            (found, {**options, **given}) if method in ("linear", "task_arithmetic") else (registry.get("linear"), {})
        )
        trial = _pools(opened, by, more)
        error = errors(opened, trial, coefficients(by, more, len(opened)))
        worst = max(error, key=error.__getitem__, default=None)
        blind = _uncompared(opened[0], error)
        linear = blind is None and (worst is None or error[worst] <= EXACT)
        if blind and space is None:
            raise CommonweightError(
                f"{opened[0].label}: {blind}: {opened[0].header['method']} makes no change of weights, which could be "
                "summed; space='pools' merges its pools all the same"
            )
        if space == "pools" or (linear and rank is None):
            pools = trial if by is found else _pools(opened, found, {**options, **given})
            why = f"what its pools do at {blind} is no change of weights, and was not compared" if blind else ""
            why = why or ("a sum of these pools is the sum of the changes" if linear else _cross(worst, error))
            return _made(
                opened[0], opened[0].plan, pools, opened[0].check, "pools", why, error, about, opened[0].header
            )
        apart = _cross(worst, error) if not linear else f"rank={rank} was asked for"
    return _as_lora(opened, method, weights, rank, options, apart or "space='weights' was asked for", about)


def _uncompared(tenant: Opened, error: Mapping[str, float]) -> str | None:
    """A site where something else happens than a change of weights."""
    known = {s.name for s in tenant.sites}
    return next((u.site for u in tenant.plan.uses if u.site in known and u.site not in error), None)


def _differ(a: Opened, b: Opened) -> str:
    names = [k for k in ("method", "config", "seed", "sites") if a.header[k] != b.header[k]]
    if "config" in names and a.header["method"] == b.header["method"]:
        x, y = a.header["config"], b.header["config"]
        key = next(k for k in sorted({*x, *y}) if x.get(k) != y.get(k))
        return f"{key}: {x.get(key, 'the default')} and {y.get(key, 'the default')}"
    return ", ".join(names)


def _cross(worst: str | None, error: Mapping[str, float]) -> str:
    return f"a sum of these pools is not the sum of the changes (relative error {error[worst or '']:.2g} at {worst})"


def _pools(opened: Sequence[Opened], method: registry.Method, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every pool of the result. Those that are not trained, or of one common, must be and stay the same."""
    first, states, out = opened[0], [dict[str, Tensor]() for _ in opened], dict[str, Tensor]()
    for name, pool in first.plan.pools.items():
        if name not in first.pools:
            continue
        mine = [o.pools[name].detach() for o in opened]
        same = all(torch.equal(m, mine[0]) for m in mine)
        if not pool.train and not same:
            raise CommonweightError(f"{name}: a frozen pool that differs between the tenants; use space='weights'")
        if pool.train and not (same and pool.scope == "shared"):
            for state, m in zip(states, mine):
                state[name] = m
        else:
            out[name] = mine[0]
    base = start(first, list(states[0])) if method.base == "required" else None
    out |= method(dict(zip(_labels(opened), states)), base, **options)
    return {n: out[n] for n in first.plan.pools if n in out}


def _labels(opened: Sequence[Opened]) -> list[str]:
    return [
        f"{o.label}" if sum(p.label == o.label for p in opened) == 1 else f"{o.label} ({i})"
        for i, o in enumerate(opened)
    ]


def coefficients(method: registry.Method, options: Mapping[str, Any], n: int) -> list[float]:
    """What a linear method multiplies each tenant by."""
    units = [{"x": row} for row in torch.eye(n)]
    return method(units, {"x": torch.zeros(n)} if method.base == "required" else None, **options)["x"].tolist()


@torch.no_grad()
def _as_lora(
    opened: Sequence[Opened],
    method: str,
    weights: Any,
    rank: int | None,
    options: Mapping[str, Any],
    why: str,
    about: Any,
) -> MergedTenant:
    states, heads = zip(*map(_factors, opened))
    n = len(opened)
    by = registry.get(method)
    given = {} if weights is None else {"weights": weights}
    if method == "linear":
        sums, left = coefficients(by, {**options, **given}, n), {}
    else:
        sums, left = (
            weights if weights is None or not isinstance(weights, int | float) else [weights] * n,
            dict(options),
        )
    done = adapters.lora(states, weights=sums, method=method, rank=rank, **left)
    sites = {s.name: s for o in opened for s in o.sites}
    names = [n for n in sites if n + adapters.A in done.adapter]
    ranks = {n: len(done.adapter[n + adapters.A]) for n in names}
    most = commonest(ranks.values())
    more = others(ranks, most)
    alphas = tuple((site, float(r)) for site, r in more)
    _, lora = resolve("lora", {"rank": most, "alpha": float(most), "ranks": more, "alphas": alphas})
    plan = make_plan(lora, [sites[n] for n in names], seed=0)
    pools = {f"{n}.{x}": done.adapter[f"{n}.lora_{x}.weight"].contiguous() for n in names for x in "AB"}
    if heads[0]:
        named = next(u.site for u in opened[0].plan.uses if f"{u.site}.W" in heads[0])
        width = heads[0][f"{named}.W"].shape
        plan += head(Site(named, 0, width[1], "head", "", False), width[0])
        zero = {k: torch.zeros_like(v) for k, v in heads[0].items()} if by.base == "required" else None
        pools |= by(dict(zip(_labels(opened), heads)), zero, **options, **given)
    body = dump(lora)
    body.pop("is")
    kept = ("version", "base", "labels", *(("weights",) if names == [s.name for s in opened[0].sites] else ()))
    header = {
        **{k: opened[0].header[k] for k in kept if k in opened[0].header},
        "method": "lora", "config": body, "seed": 0, **site_fields([sites[n] for n in names]),
        "plan": plan.digest(),
    }  # fmt: skip
    return _made(opened[0], plan, pools, None, "weights", why, done.error, about, header)


def _factors(tenant: Opened) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(a state dict as `adapters.lora` takes it, the head's pools)."""
    out: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    known = {s.name for s in tenant.sites}
    for use in tenant.plan.uses:
        if use.site not in known:
            heads |= {p: tenant.pools[p].detach() for r in use.reads.values() for p in r.pools}
            continue
        factors = getattr(use.bind, "factors", None)
        if factors is None or any(p not in tenant.pools for r in use.reads.values() for p in r.pools):
            raise CommonweightError(
                f"{tenant.label}: {use.site}: the change that {tenant.header['method']} makes is known with its base "
                "alone; merge them as models of a recipe: BASE+TENANT"
            )
        slots = {k: r.address(*(tenant.pools[p].detach() for p in r.pools)).float() for k, r in use.reads.items()}
        pair, a, b = factors(**slots), use.site + adapters.A, use.site + adapters.B
        out[a] = torch.cat([out[a], pair[0]]) if a in out else pair[0]
        out[b] = torch.cat([out[b], pair[1]], 1) if b in out else pair[1]
    return out, heads


def _made(
    first: Opened, plan: Plan, pools: Mapping[str, Tensor], check: Tensor | None, space: Space, why: str,
    error: Mapping[str, float], about: Mapping[str, Any], header: Mapping[str, Any],
) -> MergedTenant:  # fmt: skip
    kept = {k: v for k, v in header.items() if k not in ("format", "digest", "codec", "metrics", "common")}
    known = {k: v for k, v in about.items() if v}
    metrics = {"merged": {**known, "space": space, "largest error": max(error.values(), default=0.0)}}
    return MergedTenant({**kept, "metrics": metrics}, plan, dict(pools), check, space, why, dict(error))
