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
    """Reader by reader, on the tokens of its rows: the module is given all in one list, in the batch's order."""
    x = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
    if not isinstance(x, Tensor) or route.fold(x) is None:
        raise Unfit(f"{parts[0].name}: its tokens are not those of the batch in their order")
    flat = x.reshape(-1, x.shape[-1])
    tokens = len(flat) // route.length
    found, where = [], []
    for tenant, places in route.groups:
        first = torch.as_tensor(places, device=x.device)[:, None] * tokens
        mine = (first + torch.arange(tokens, device=x.device)).flatten()

        def cut(v: Any, mine: Tensor = mine) -> Any:
            if v is x:
                return flat[mine]
            return v[mine] if isinstance(v, Tensor) and v.dim() and len(v) == len(flat) else v

        found.append(run(own, module, parts, tenant, tuple(map(cut, args)), {k: cut(v) for k, v in kwargs.items()}))
        where.append(mine)
    return _joined(found, torch.cat(where).argsort(), [len(w) for w in where], parts[0].name)


def _joined(found: list[Any], order: Tensor, rows: list[int], name: str) -> Any:
    """Tensors with a row for each token, or tuples of such, in the order of the batch."""
    if isinstance(found[0], tuple):
        return type(found[0])(_joined(list(each), order, rows, name) for each in zip(*found))
    if not all(isinstance(t, Tensor) and t.dim() and len(t) == n for t, n in zip(found, rows)):
        raise Unfit(f"{name}: what its module gives has no row for each token")
    return torch.cat(found).index_select(0, order)
