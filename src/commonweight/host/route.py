"""Who reads: one tenant for the whole batch, one per row, or one per token."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import CommonweightError

if TYPE_CHECKING:
    from .tenant import Tenant


class Route:
    """single: the one tenant, or None. Otherwise `groups`: (tenant or None, its places in order of the batch)."""

    __slots__ = ("groups", "inverse", "length", "reader", "single")

    def __init__(self, readers: Sequence[Tenant | None] | None = None, single: Tenant | None = None):
        self.single = single
        self.length = 0
        self.groups: list[tuple[Tenant | None, Tensor]] = []
        self.inverse: Tensor | None = None
        self.reader: Tensor | None = None  # per row, its group; None when row i is group i
        if readers is not None:
            places: dict[Any, list[int]] = {}
            for i, tenant in enumerate(readers):
                places.setdefault(tenant, []).append(i)
            self._group([(t, torch.tensor(p)) for t, p in places.items()], len(readers))

    def _group(self, groups: list[tuple[Tenant | None, Tensor]], length: int) -> None:
        self.groups, self.length = groups, length
        order = torch.cat([p for _, p in groups]) if groups else torch.empty(0, dtype=torch.long)
        self.inverse = torch.empty_like(order)
        self.inverse[order] = torch.arange(length)
        if len(groups) != length:
            self.reader = torch.cat([torch.full((len(p),), i) for i, (_, p) in enumerate(groups)])[self.inverse]

    @classmethod
    def numbered(cls, numbers: Tensor, tenants: dict[int, Tenant]) -> Route:
        """From a LongTensor of tenant numbers, -1 for the plain base: per row, or per token when it has T per row."""
        flat = numbers.reshape(-1).cpu()
        route = cls()
        groups: list[tuple[Tenant | None, Tensor]] = []
        for n in flat.unique().tolist():
            if n != -1 and n not in tenants:
                raise CommonweightError(
                    f"no tenant has the number {n}; known: {sorted(tenants)}, and -1 for the plain base"
                )
            groups.append((None if n == -1 else tenants[n], (flat == n).nonzero().squeeze(1)))
        route._group(groups, flat.numel())
        return route


class Current(threading.local):
    """The route in force in this thread. Copies of a host start with none."""

    def __init__(self) -> None:
        self.route: Route | None = None

    def __deepcopy__(self, memo: dict) -> Current:
        return Current()

    def __reduce__(self):
        return (Current, ())
