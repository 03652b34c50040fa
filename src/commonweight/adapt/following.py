"""A tenant in training is given another plan, and what its optimizer holds of the pools follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Pool
from ..core.schedule import Places, Pools, carried
from ..host import Tenant
from ..host.replanned import become, planned

POINTS = ("z",)  # where a schedule-free optimizer is itself: no moment, of new places it is the pool's value
MEANS = {"row_var": -1, "col_var": -2}  # of Adafactor, a mean over one dimension, which stays one wide


@torch.no_grad()
def replan(
    tenant: Tenant, optimizer: Any, rates: Any, config: Any, places: Mapping[str, Places], first: Pools, again: bool
) -> None:
    """The tenant by another config. first: values, which what an optimizer holds of new places may begin with. again:
    pools that went may come back, which no optimizer holds. Else as `core.schedule.Edit` says.

    Raises: CommonweightError for a plan that does not fit, and an optimizer whose tensors cannot be carried.
    """
    plan, before = planned(tenant, config), dict(tenant.named_parameters())
    values = {n: replaced(tenant, n, p, places) for n, p in plan.pools.items() if n in tenant.pools}
    fresh = [n for n, p in plan.pools.items() if p.train and n not in before]
    if fresh and not again:
        raise CommonweightError(
            f"{tenant.method.name}: its schedule's new plan trains {fresh[0]}, which the old one does not; let it "
            "begin there, with no rows or columns"
        )
    become(tenant, config, plan, {n: v for n, v in values.items() if v is not None})
    for n in first.keys() & places.keys() & tenant.pools.keys():
        tenant.pools[n].copy_(first[n])
    after = dict(tenant.named_parameters())
    for n, p in before.items():
        if (new := after.get(n)) is not p:
            follow(optimizer, rates, p, new, places.get(n, ()), tenant.method.name)


def nowhere(tenant: Tenant, config: Any) -> dict[str, Places]:
    """Of pools that have another shape by a config: nothing is carried."""
    old, new = tenant.plan.pools, planned(tenant, config).pools
    other = [n for n, p in new.items() if n in old and old[n].shape != p.shape]
    return {n: tuple(torch.full((s,), -1) for s in new[n].shape) for n in other}


def fitted(t: Tensor, places: Places | None, fill: float) -> Tensor:
    return t if places is None else carried(t, places, fill)


def replaced(tenant: Tenant, name: str, spec: Pool, places: Mapping[str, Places]) -> Tensor | None:
    """A pool that a tenant has, in the shape of a new plan: the same tensor where that is its shape; None where it must
    be made anew. Raises: CommonweightError where the places do not give this shape."""
    old, was = tenant.pools[name], tenant.plan.pools[name]
    if spec.dtype != was.dtype:
        raise CommonweightError(
            f"{tenant.method.name}: {name} is {spec.dtype} in its schedule's new plan, and was {was.dtype}"
        )
    if name not in places and not (spec.train or spec.save) and spec != was:
        return None
    if name in places and len(places[name]) == old.dim():
        new = carried(old.detach(), places[name])
    else:
        new = old if spec.train == was.train else old.detach().clone()
    if tuple(new.shape) != spec.shape or (name in places and new is old):
        raise CommonweightError(
            f"{tenant.method.name}: {name} is {spec.shape} in its schedule's new plan, and {tuple(new.shape)} by "
            f"its places; it was {tuple(old.shape)}"
        )
    return nn.Parameter(new) if spec.train and not isinstance(new, nn.Parameter) else new


def follow(optimizer: Any, rates: Any, old: Tensor, new: Tensor | None, places: Places, method: str) -> None:
    """The optimizer trains `new` in the place of `old`, with its tensors carried and its count of steps; None: no pool
    any more, and its group goes. rates: the scheduler of the groups' rates.

    Raises: CommonweightError where what it holds cannot be carried by rows and columns.
    """
    before = 0  # groups of the parts in front
    for part in getattr(optimizer, "parts", [optimizer]):
        for i, group in enumerate(part.param_groups):
            at = next((k for k, p in enumerate(group["params"]) if p is old), None)
            if at is None:
                continue
            held = part.state.pop(old, None)
            if new is None:
                del group["params"][at]
                if not group["params"]:
                    _ungroup(part, i, rates, before + i)
                return
            group["params"][at] = new
            if held:
                part.state[new] = {k: _moved(k, v, old, new, places, method) for k, v in held.items()}
            return
        before += len(part.param_groups)


def _ungroup(part: Any, i: int, rates: Any, place: int) -> None:
    del part.param_groups[i]
    for name in ("base_lrs", "lr_lambdas", "_last_lr"):
        if rates is not None and hasattr(rates, name):
            del getattr(rates, name)[place]


def _moved(key: str, value: Any, old: Tensor, new: Tensor, places: Places, method: str) -> Any:
    if not isinstance(value, Tensor) or (value.numel() == 1 and value.dim() == 0):
        return value
    if key in MEANS and value.dim() == old.dim():
        mine = list(places)
        mine[MEANS[key]] = None
        return carried(value, tuple(mine))
    if value.shape != old.shape or value.dtype not in (torch.float32, old.dtype):
        raise CommonweightError(
            f"{method} gives its pools other shapes as it trains, and this optimizer holds {key} as "
            f"{tuple(value.shape)} of a pool {tuple(old.shape)}, which has no rows and columns to carry: take adamw"
        )
    return carried(value, places, new.detach() if key in POINTS else 0.0)
