"""Who reads which expert: what a route makes of the experts of one tensor, and of the tokens that come to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..apart import Unfit
from ..route import Route
from ..tenant import Entry, Tenant
from .stacked import Stacked


class Uses(NamedTuple):
    """of: for each reader of a route, its uses by expert."""

    of: list[Mapping[int, list[Entry]]]

    @property
    def readers(self) -> int:
        return len(self.of)

    def at(self, piece: int) -> Sequence[Entry]:
        """The uses of reader g at expert e, for e * readers + g."""
        e, g = divmod(piece, len(self.of))
        return self.of[g].get(e, ())


def tenants(route: Route) -> list[Tenant | None]:
    return [route.single] if route.single is not None else [t for t, _ in route.groups]


def uses(route: Route, part: Stacked) -> Uses:
    """Worked out once a route."""
    key = ("experts", part.name)
    found = None if torch.compiler.is_compiling() else route.kept.get(key)
    if found is None:
        found = route.kept[key] = Uses([_by_expert(t, part) for t in tenants(route)])
    return found


def _by_expert(tenant: Tenant | None, part: Stacked) -> Mapping[int, list[Entry]]:
    if tenant is None or part.name not in tenant.table:
        return {}
    if part.name not in tenant.by_expert:
        tenant.by_expert[part.name] = part.by_expert(tenant.table[part.name])
    return tenant.by_expert[part.name]


def in_order(route: Route, x: Tensor, where: str) -> bool:
    """Whether these are all tokens of the batch in their order, as far as a pass can tell."""
    folded = route.fold(x)
    rows = route.length if route.shape is None else route.shape[0]
    return folded is not None and (route.order is None or route.order.holds(where, folded[0], rows))


def reader_of(route: Route, x: Tensor, *where: str) -> Tensor | None:
    """The reader of each token, by its number among `tenants`: (N,) for x (N, d); None where one reads them all.
    where: the sites that they come to.

    Raises: Unfit where the tokens are not those of the batch in their order.
    """
    if route.single is not None:
        return None
    if x.dim() != 2 or not in_order(route, x, where[0]):
        raise Unfit(f"{where[0]}: its tokens are not those of the batch in their order", *where)
    key = ("reader", len(x), x.device)
    found = None if torch.compiler.is_compiling() else route.kept.get(key)
    if found is None:
        of = [0] * route.length
        for g, (_, places) in enumerate(route.groups):
            for p in places:
                of[p] = g
        found = torch.tensor(of, device=x.device).repeat_interleave(len(x) // route.length)
        route.kept[key] = found
    return found
