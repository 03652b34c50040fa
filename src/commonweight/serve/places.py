"""Binds that go by positions of a sequence, where the tokens of many sequences lie in one row.

A bind that counts positions from the left end of a row cannot do so in a packed one. Here it is told, for each step,
where in its own sequence each of its tokens stands. One that acts from an invocation on is given no other tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..bind import Activated
from ..bind.intervene import Edit
from ..core import Base
from ..host import Tenant
from ..host.tenant import Entry


class Places:
    """Of one tenant, where its tokens of this step stand in their sequences, (T,)."""

    now: Tensor | None = None


class PlacedEdit:
    """An `Edit` of the first positions, for tokens in any order."""

    tokenwise = precise = True

    def __init__(self, edit: Edit, places: Places):
        self.edit, self.places = edit, places
        self.everywhere = Edit(0, edit.direct)

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        assert self.places.now is not None
        first = (self.places.now < self.edit.prefix).view(*[1] * (y.dim() - 2), -1, 1)
        if not bool(first.any()):
            return y
        return torch.where(first, self.everywhere.output(x, y, base, **slots), y)


def placed(tenant: Tenant) -> tuple[Tenant, Places | None]:
    """(the tenant as a packed batch reads it, where its tokens stand); the tenant itself where no use counts
    positions."""
    if tenant.tokenwise or tenant.prompted:
        return tenant, None
    places, reader = Places(), copy.copy(tenant)
    reader.table = {site: [_entry(e, places) for e in entries] for site, entries in tenant.table.items()}
    return reader, places


def _entry(entry: Entry, places: Places) -> Entry:
    bind: Any = entry.bind
    if isinstance(bind, Edit):
        return Entry(PlacedEdit(bind, places), entry.reads, entry.rows)
    return Entry(bind.low, entry.reads, entry.rows) if isinstance(bind, Activated) else entry
