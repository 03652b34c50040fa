"""Tenants of one common at a layer: factors or rows of pools that all share, and a core of each one's own.

y' = y + B C A x, with C a tenant's matrix (r, r) or diagonal (r,), or nothing. What is shared is held once, whatever
the number of tenants; where a tenant's A and B are rows of pools (`Gather`), it has their numbers alone, and the rows
are read where they lie: A's are laid into a buffer that stays in the processor's cache, B's are summed up as they are
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..address import WHOLE, Gather
from ..bind import LowRank
from ..host import Tenant
from ..host.tenant import Entry
from .readers import Lead, Part


class Shared(NamedTuple):
    """One tenant at one layer. A (r, inp) and B (out, r) are the common's, or, with rows_A (r, l) and rows_B (r, l),
    pools (n, inp / l) and (n, out / l) of which those rows are read. core: (r,), (r, r) or None."""

    A: Tensor
    B: Tensor
    rows_A: Tensor | None
    rows_B: Tensor | None
    core: Tensor | None
    scale: float


class Common(NamedTuple):
    """A tenant of a common. key: equal for those whose shared tensors are the same, as they are now."""

    key: Any
    layers: Mapping[str, Shared]


def common(tenant: Tenant, modules: Mapping[str, Any]) -> Common | None:
    """None for a tenant without a common, or whose change is not of this form at some layer. Cost: its own numbers."""
    if tenant.common is None:
        return None
    theirs = {tenant.pools[n].data_ptr() for n in tenant.common.pools if n in tenant.pools}
    layers, key = {}, []
    for name, entries in tenant.table.items():
        at = modules.get(name)
        if at is None or at.kind != "linear" or at.slot != "weight" or ".experts." in name or len(entries) != 1:
            return None
        found = _at(entries[0], theirs)
        if found is None:
            return None
        layers[name] = found
        key.append((name, entries[0].signature, *((p.data_ptr(), p._version) for p in (found.A, found.B))))
    return Common((tenant.common, tuple(key)), layers)


def _at(entry: Entry, theirs: set[int]) -> Shared | None:
    """Reads of A and B that are the common's, of M or d that are whole; no other."""
    bind, reads = entry.bind, {slot: (address, pools) for slot, address, pools in entry.reads}
    if type(bind) is not LowRank or entry.rows is not None or not {"A", "B"} <= reads.keys() <= {"A", "B", "M", "d"}:
        return None
    if len(reads) == 4 or any(address is not WHOLE for slot, (address, _) in reads.items() if slot in "Md"):
        return None
    rows: dict[str, Tensor | None] = {}
    for slot in "AB":
        address, pools = reads[slot]
        if pools[0].data_ptr() not in theirs:
            return None
        if address is WHOLE:
            rows[slot] = None
        elif isinstance(address, Gather) and address.transpose == (slot == "B"):
            rows[slot] = pools[1].view(address.shape[0], -1)
        else:
            return None
    core = next((pools[0].detach().float().clone() for slot, (_, pools) in reads.items() if slot in "Md"), None)
    return Shared(reads["A"][1][0], reads["B"][1][0], rows["A"], rows["B"], core, bind.scale)


class Layer:
    """One layer of a bank. A and B as in `Shared`, B times the scale. held: rows of A (S, r l), of B (S, l r)."""

    def __init__(self, shared: dict[Any, Tensor], buffers: dict[int, Tensor], like: Shared):
        self.A = _once(shared, like.A, 1.0)
        self.B = _once(shared, like.B, like.scale)
        self._buffers = buffers
        self.held: dict[str, Tensor] = {}
        self.ranks = like.rows_A.shape if like.rows_A is not None else (len(like.A), 1)
        self.gathers = like.rows_A is not None, like.rows_B is not None

    def room(self, size: int) -> None:
        self.held = {k: torch.cat([v, v.new_zeros(size - len(v), *v.shape[1:])]) for k, v in self.held.items()}

    def put(self, seat: int, size: int, what: Shared) -> None:
        rows_B = None if what.rows_B is None else what.rows_B.T  # a row of the output's l parts after the other
        for name, value in (("A", what.rows_A), ("B", rows_B), ("core", what.core)):
            if value is None:
                continue
            flat = value if name == "core" else value.reshape(-1)
            if name not in self.held:
                self.held[name] = flat.new_zeros(size, *flat.shape)
            self.held[name][seat] = flat

    def scales_input(self) -> bool:
        return False

    def before(self, x: Tensor, part: Part) -> None: ...

    def after(self, y: Tensor, x: Tensor, part: Part) -> None:
        if self.A.dtype is not y.dtype:
            self.A, self.B = self.A.to(y.dtype), self.B.to(y.dtype)
            self.held |= {k: v.to(y.dtype) for k, v in self.held.items() if k == "core"}
        x = x.reshape(-1, x.shape[-1])
        for lead in part.leads:
            self._each(lead.of(y), lead.of(x), lead)
        for s in part.spans:
            mine = {k: v[s.seat] for k, v in self.held.items()}
            A, B = self._laid("A", mine), self._laid("B", mine)
            h = x[s.first : s.end] @ A.T
            if "core" in mine:
                h = h * mine["core"] if mine["core"].dim() == 1 else h @ mine["core"].T
            y[s.first : s.end].addmm_(h, B)

    def _laid(self, name: str, mine: Mapping[str, Tensor]) -> Tensor:
        """One tenant's A (r, inp), or B (r, out)."""
        if name == "A":
            return self.A.index_select(0, mine["A"]).view(self.ranks[0], -1) if self.gathers[0] else self.A
        if not self.gathers[1]:
            return self.B.T
        r = self.ranks[0]
        return self.B.index_select(0, mine["B"]).view(-1, r, self.B.shape[1]).transpose(0, 1).reshape(r, -1)

    def _of(self, name: str, lead: Lead) -> Tensor:
        """What the tenants of these tokens have, a row a token."""
        key = id(self), name
        if key not in lead.kept:
            lead.kept[key] = self.held[name].index_select(0, lead.seats)
        return lead.kept[key]

    def _buffer(self, rows: int) -> Tensor:
        """Memory for rows of A's pool, the same at each layer, so that it stays near the processor."""
        width = self.A.shape[1]
        found = self._buffers.get(width)
        if found is None or len(found) < rows or found.dtype is not self.A.dtype:
            found = self._buffers[width] = self.A.new_empty(rows, width)
        return found[:rows]

    def _each(self, y: Tensor, x: Tensor, lead: Lead) -> None:
        n = len(x)
        if self.gathers[0]:
            A = self._buffer(n * self._of("A", lead).shape[1])
            torch.index_select(self.A, 0, self._of("A", lead).view(-1), out=A)
            h = torch.bmm(x.unsqueeze(1), A.view(n, self.ranks[0], -1).mT)[:, 0]
        else:
            h = x @ self.A.T
        if "core" in self.held:
            core = self._of("core", lead)
            h = h * core if core.dim() == 2 else torch.bmm(h.unsqueeze(1), core.mT)[:, 0]
        if not self.gathers[1]:
            y.addmm_(h, self.B.T)
            return
        at = self._of("B", lead).view(-1, h.shape[1])  # (n l, r)
        weights = h.unsqueeze(1).expand(n, len(at) // n, h.shape[1]).reshape(at.shape)
        if h.dtype == torch.float32:
            y.add_(F.embedding_bag(at, self.B, mode="sum", per_sample_weights=weights).view(y.shape))
        else:
            rows = self.B.index_select(0, at.view(-1)).view(*at.shape, -1)
            y.add_(torch.bmm(weights.unsqueeze(1), rows).view(y.shape))


def _once(shared: dict[Any, Tensor], pool: Tensor, scale: float) -> Tensor:
    """A copy of a shared pool, as it is now: one for all layers that read it."""
    key = pool.data_ptr(), scale
    if key not in shared:
        found = pool.detach().float()
        shared[key] = found.clone() if scale == 1 else found * scale
    return shared[key]


class Commons:
    """The tenants of one common, a seat each, like `bank.Bank`."""

    def __init__(self) -> None:
        self.size = 0
        self.layers: dict[str, Layer] = {}
        self._shared: dict[Any, Tensor] = {}
        self._buffers: dict[int, Tensor] = {}  # width -> rows

    def put(self, seat: int, edition: Any) -> Iterable[str]:
        """edition: one with a `common` of this bank. Returns the layers that it has."""
        if seat >= self.size:
            self.size = max(4, 2 * self.size, seat + 1)
            for layer in self.layers.values():
                layer.room(self.size)
        for name, what in edition.common.layers.items():
            if name not in self.layers:
                self.layers[name] = Layer(self._shared, self._buffers, what)
            self.layers[name].put(seat, self.size, what)
        return self.layers

    def clear(self, seat: int) -> None:
        """Nothing is another's: the next one in the seat writes over all of it."""
