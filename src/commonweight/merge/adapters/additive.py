"""Whether the changes of weights that pools make add up as the pools do: measured, in float64, without the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core import Plan, Rng, Site
from ..sources.opened import Opened


def _changes(plan: Plan, pools: Mapping[str, Tensor], shapes: Mapping[str, Site]) -> dict[str, Tensor]:
    """Site -> what happens to its weight and bias, flat, in float64. Heads and changes of activations are left out.

    The base is not at hand: a weight that the change depends on, and pools derived from it, are random numbers. What
    is asked is whether changes add up, and then they do so for any base.
    """
    out: dict[str, list[Tensor]] = {}
    for use in plan.uses:
        form, site = getattr(use.bind, "weight", None), shapes.get(use.site)
        if form is None or site is None:
            continue
        seen = {p: pools[p] if p in pools else _any(plan, p) for r in use.reads.values() for p in r.pools}
        slots = {k: _double(r.address(*(_double(seen[p]) for p in r.pools))) for k, r in use.reads.items()}
        if (factors := getattr(use.bind, "factors", None)) is not None:
            A, B = factors(**slots)
            found = B @ A
        else:
            w = Rng(0, use.site).normal((site.out,) if site.kind == "norm" else (site.out, site.inp)).double()
            found = form(w, **slots).double() - w
        parts = out.setdefault(use.site, [])
        parts.append(found.reshape(-1))
        if site.bias and (bias := getattr(use.bind, "bias", None)) is not None:
            b = Rng(1, use.site).normal((site.out,)).double()
            parts.append((bias(b, **slots).double() - b).reshape(-1))
    return {site: torch.cat(parts) for site, parts in out.items()}


def _any(plan: Plan, name: str) -> Tensor:
    pool = plan.pools[name]
    dtype, draw = getattr(torch, pool.dtype), Rng(2, name)
    return draw.normal(pool.shape) if dtype.is_floating_point else draw.integers(pool.shape, 2).to(dtype)


def _double(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


@torch.no_grad()
def errors(opened: Sequence[Opened], merged: Mapping[str, Tensor], by: Sequence[float]) -> dict[str, float]:
    """Site -> |what the merged pools do - the sum, by these numbers, of what the tenants' do|_F over that sum's."""
    plan, out = opened[0].plan, {}
    shapes = {s.name: s for s in opened[0].sites}
    for site in dict.fromkeys(u.site for u in plan.uses):
        part = plan._replace(uses=tuple(u for u in plan.uses if u.site == site))
        each = [_changes(part, o.pools, shapes).get(site) for o in opened]
        got = _changes(part, merged, shapes).get(site)
        if got is None:
            continue
        wanted = sum((c * x for c, x in zip(by, each) if x is not None), torch.zeros_like(got))
        lost, whole = (got - wanted).norm().item(), wanted.norm().item()
        out[site] = lost / whole if whole else (0.0 if lost == 0 else float("inf"))
    return out
