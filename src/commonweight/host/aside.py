"""Tokens of a tenant that queries read beside those of their row, in a softmax of their own, added behind attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current
from .route import Route
from .sites import Aside
from .tenant import Entry, Tenant


class AsideHook:
    """At one attention, behind the function that attends. Nothing of it is in a cache or in a mask."""

    def __init__(self, at: Aside, current: Current):
        self.at, self.current = at, current

    def added(self, route: Route, y: Any, query: Tensor, scaling: float | None) -> Any:
        """y with its first part changed, (B, T, heads, d); query (B, heads, T, d), rotated where the model does so."""
        at, given = self.at, y[0]
        b, h, t, d = query.shape
        if given.shape != (b, t, h, d) or h != at.heads:
            raise CommonweightError(
                f"{at.name}: attention gives {tuple(given.shape)} for queries of {tuple(query.shape)}; wanted (rows, "
                "tokens, heads, width). No tokens can be read beside it: leave it out with sites"
            )
        self.current.thread.joined.add(at.name)
        scale = d**-0.5 if scaling is None else scaling
        if route.single is not None:
            return (given + self.of(route, route.single, query, scale).transpose(1, 2), *y[1:])
        packed = b == 1 and route.shape == (t,) and t > 1  # requests of an engine, one behind another
        rows = query[0].transpose(0, 1)[:, :, None] if packed else query  # (places, heads, tokens of a place, d)
        if route.length != len(rows) or (route.shape is not None and len(route.shape) > 1):
            raise Unfit(
                f"{at.name}: tokens are read for a row, and the route names {counted(route.length, 'reader')} for "
                f"{counted(len(rows), 'row')}; give one reader per row",
                at.name,
            )
        more = torch.zeros_like(rows)
        for tenant, places in route.groups:
            if tenant is not None and at.name in tenant.table:
                index = torch.tensor(places, device=query.device)
                more = more.index_copy(0, index, self.of(route, tenant, rows[index], scale))
        more = more[:, :, 0].transpose(0, 1)[None] if packed else more
        return (given + more.transpose(1, 2), *y[1:])

    def of(self, route: Route, tenant: Tenant, query: Tensor, scale: float) -> Tensor:
        """(B, heads, T, d) for rows of one tenant."""
        total = torch.zeros_like(query)
        for i, entry in enumerate(tenant.table[self.at.name]):
            slots = entry.slots(query.dtype)
            k, v = self.projected(route, (tenant.number, i), entry, slots, query)
            total = total + entry.bind.aside(query, k, v, scale, **slots)
        return total

    def projected(
        self, route: Route, key: tuple, entry: Entry, slots: dict[str, Tensor], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, N, d) of its tokens; without gradients they are kept while no pool is written."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.made(entry, slots, like)
        try:
            written = [(p._version, p.data_ptr()) for _, _, read in entry.reads for p in read]
        except RuntimeError:  # pools made in inference mode do not count their writes
            return self.made(entry, slots, like)
        at = ("aside", self.at.name, *key, like.dtype, like.device)
        found = route.kept.get(at)
        if found is None or found[0] != written:
            found = route.kept[at] = written, self.made(entry, slots, like)
        return found[1]

    def made(self, entry: Entry, slots: dict[str, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        tokens, (heads, width) = entry.bind.tokens(**slots), self.at.shape
        out = []
        for at in (self.at.keys, self.at.values):
            w, b = at.weight, at.bias
            y = at.call(tokens.to(w.dtype), w, None if b is None else b.to(w.dtype)).to(like)
            out.append(y.unflatten(-1, (heads, width)).transpose(-3, -2))
        return out[0], out[1]
