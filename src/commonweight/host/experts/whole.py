"""The module's own forward with a tenant's weights in place of its own: right for every class, at the cost of them all.

For routers, which are small, and for experts of classes that are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..apart import Unfit
from ..route import Route
from ..tenant import Tenant
from .readers import in_order
from .stacked import Stacked


def reads(parts: Sequence[Stacked], tenant: Tenant | None) -> bool:
    return tenant is not None and any(p.name in tenant.table for p in parts)


def run(own: Any, module: nn.Module, parts: Sequence[Stacked], tenant: Tenant | None, args: tuple, kwargs: dict) -> Any:
    """As one tenant. own: the module's forward as the base has it."""
    if tenant is None or not reads(parts, tenant):
        return own(*args, **kwargs)
    new: dict[str, Tensor] = {}
    for p in parts:
        if p.name in tenant.table:
            new |= p.changed(tenant.table[p.name])
    bare = object.__new__(type(module))
    bare.__dict__ = {k: v for k, v in module.__dict__.items() if k != "forward"}
    bare.__dict__ |= {"_forward_hooks": {}, "_forward_pre_hooks": {}}
    bare._parameters = {**module._parameters, **new}  # type: ignore[dict-item]
    return type(module).forward(bare, *args, **kwargs)


def run_mixed(own: Any, module: nn.Module, parts: Sequence[Stacked], route: Route, args: tuple, kwargs: dict) -> Any:
    """Reader by reader, on the tokens of its rows: the module is given (B, T, d), or all in one list in the batch's
    order, and beside it what has a row for each row or token. Whole rows stay such; tokens of several are (1, N, d)."""
    sites = [p.name for p in parts]
    x = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
    if not isinstance(x, Tensor) or not in_order(route, x, sites[0]) or given_by_expert(parts):
        raise Unfit(f"{sites[0]}: its tokens are not those of the batch in their order", *sites)
    lead, n = x.shape[:-1], x.shape[:-1].numel()
    rows = x.dim() > 2 and lead[0] == route.length
    found, where = [], []
    for tenant, places in route.groups:
        picked = torch.as_tensor(places, device=x.device)
        each = n // route.length
        mine = (picked[:, None] * each + torch.arange(each, device=x.device)).flatten()

        def cut(v: Any, picked: Tensor = picked, mine: Tensor = mine) -> Any:
            if not isinstance(v, Tensor) or v.dim() == 0:
                return v
            if x.dim() > 2 and v.shape[: x.dim() - 1] == lead:
                return v[picked] if rows else v.flatten(0, x.dim() - 2)[mine][None]
            if len(v) == n:
                return v[mine]
            return v.flatten(0, 1)[mine] if v.dim() > 1 and v.shape[:2].numel() == n and len(v) == route.length else v

        found.append(run(own, module, parts, tenant, tuple(map(cut, args)), {k: cut(v) for k, v in kwargs.items()}))
        where.append(mine)
    return _joined(found, torch.cat(where).argsort(), lead, [len(w) for w in where], sites)


def given_by_expert(parts: Sequence[Stacked]) -> bool:
    """Whether tokens come sorted by their expert, as often as they have experts: layers of one projection (JetMoe)."""
    return any(p.kind == "expert" and p.slot == "weight" for p in parts)


def _joined(found: list[Any], order: Tensor, lead: torch.Size, sizes: list[int], sites: list[str]) -> Any:
    """In the order of the batch: tensors with a row for each token, or laid out as tokens are, or tuples of such."""
    if isinstance(found[0], tuple):
        return type(found[0])(_joined(list(each), order, lead, sizes, sites) for each in zip(*found))
    if all(isinstance(t, Tensor) and t.dim() and len(t) == n for t, n in zip(found, sizes)):
        return torch.cat(found).index_select(0, order)
    wide = len(lead)
    if all(isinstance(t, Tensor) and t.dim() >= wide > 1 and t.shape[:wide].numel() == n for t, n in zip(found, sizes)):
        flat = torch.cat([t.flatten(0, wide - 1) for t in found]).index_select(0, order)
        return flat.unflatten(0, lead)
    raise Unfit(f"{sites[0]}: what its module gives has no row for each token", *sites)
