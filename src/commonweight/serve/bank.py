"""Many finished tenants side by side: at each layer one stack of each part of the form, a seat for a tenant.

y' = s * y + c + B A (t * x), with A (S, inp, R), B (S, R, out), s and c (S, out), t (S, inp). All tenants of a bank
have one rank R, so that none pays for another's: what is narrower is filled up with zeros. Layers that are given the
same input (q, k and v; gate and up) have their A side by side, (S, inp, R of all), and are one product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .edition import Edition
from .frozen import Frozen
from .readers import Lead, Part

NARROW = 8  # columns of an A


class Layer(Protocol):
    """What a bank has at one layer: `before` changes the layer's input x (T, inp) in place, `after` its output y."""

    def scales_input(self) -> bool: ...
    def before(self, x: Tensor, part: Part) -> None: ...
    def after(self, y: Tensor, x: Tensor, part: Part) -> None: ...


class Group:
    """The A of layers with one input, rank columns for each. members: layer -> which of them it is."""

    def __init__(self, inp: int, rank: int, size: int, like: Tensor):
        self.rank, self.members = rank, dict[str, int]()
        self.A = like.new_zeros(size, inp, 0)

    def room(self, size: int) -> None:
        self.A = grown(self.A, size, 0.0)

    def join(self, name: str) -> None:
        self.members[name] = len(self.members)
        self.A = torch.cat([self.A, self.A.new_zeros(*self.A.shape[:2], self.rank)], 2)

    def columns(self, name: str) -> slice:
        """Of A, a layer's own."""
        first = self.rank * self.members[name]
        return slice(first, first + self.rank)

    def down(self, x: Tensor, part: Part) -> list[Sequence[Tensor]]:
        """A x of each lead (seats, width, R) and span (n, R), for each member: once for all that see this x."""
        group, seen, found = part.shrunk
        if group is self and seen is x:
            return found
        if self.A.dtype is not x.dtype:
            self.A = self.A.to(x.dtype)
        A, rows = self.A, x.reshape(-1, x.shape[-1])
        found: list[Sequence[Tensor]] = [
            torch.bmm(d.beside(d.of(rows)), d.stack((id(self), "A"), A)).split(self.rank, 2) for d in part.leads
        ]
        found += [_down(rows[s.first : s.end], A[s.seat]).split(self.rank, 1) for s in part.spans]
        part.shrunk = self, x, found
        return found


def _down(x: Tensor, A: Tensor) -> Tensor:
    """x A. A narrow A is three times as quick from the other side."""
    return x @ A if A.shape[1] > NARROW else torch.mm(A.mT, x.T).T


class Own:
    """One layer of tenants that have factors, scales and shifts of their own."""

    def __init__(self, name: str, group: Group | None, size: int):
        self.name, self.group, self.size = name, group, size
        self.held: dict[str, Tensor] = {}  # B, s, t, c

    def room(self, size: int) -> None:
        self.size = size
        self.held = {k: grown(v, size, 1.0 if k in "st" else 0.0) for k, v in self.held.items()}

    def scales_input(self) -> bool:
        return "t" in self.held

    def put(self, seat: int, what: Frozen | None) -> None:
        """None: nothing there. What A was stays, under a B of zeros."""
        low = what is not None and what.A is not None and what.B is not None
        for name, stack in self.held.items():
            if not (low and name == "B"):
                stack[seat] = 1.0 if name in "st" else 0.0
        if what is None:
            return
        if low:
            assert self.group is not None and what.A is not None and what.B is not None
            if self.name not in self.group.members:
                self.group.join(self.name)
            B = self._stack("B", (self.group.rank, len(what.B)), what.B)[seat]
            A, r = self.group.A[seat][:, self.group.columns(self.name)], len(what.A)
            A[:, :r], B[:r] = what.A.T, what.B.T
            if r < self.group.rank:
                A[:, r:], B[r:] = 0, 0
        for name in "stc":
            if (value := getattr(what, name)) is not None:
                self._stack(name, (len(value),), value)[seat] = value

    def _stack(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if name not in self.held:
            self.held[name] = like.new_full((self.size, *shape), 1.0 if name in "st" else 0.0, dtype=torch.float32)
        return self.held[name]

    def rows(self, name: str, lead: Lead) -> Tensor:
        """Of each token its s, t or c, (n, ...), float32."""
        key = self.name, name
        if key not in lead.kept:
            held = self.held[name]
            lead.kept[key] = lead.stack(key, held) if lead.places is None else held.index_select(0, lead.seats)
        return lead.kept[key]

    def before(self, x: Tensor, part: Part) -> None:
        for lead in part.leads:
            lead.of(x).mul_(self.rows("t", lead))
        for s in part.spans:
            x[s.first : s.end].mul_(self.held["t"][s.seat])

    def after(self, y: Tensor, x: Tensor, part: Part) -> None:
        """y (T, out) is written over; x as the layer was given it."""
        held = self.held
        for name in ("s", "c"):
            if name in held:
                for lead in part.leads:
                    _on(name, lead.of(y), self.rows(name, lead))
                for s in part.spans:
                    _on(name, y[s.first : s.end], held[name][s.seat])
        if "B" not in held:
            return
        assert self.group is not None
        if held["B"].dtype is not y.dtype:
            held["B"] = held["B"].to(y.dtype)
        B, mine = held["B"], self.group.members[self.name]
        found = self.group.down(x, part)
        for lead, h in zip(part.leads, found):
            stack = lead.stack((self.name, "B"), B)
            if lead.places is None:
                lead.of(y).unsqueeze(1).baddbmm_(h[mine], stack)
            else:
                lead.of(y).add_(lead.back(torch.bmm(h[mine], stack)))
        for s, h in zip(part.spans, found[len(part.leads) :]):
            y[s.first : s.end].addmm_(h[mine], B[s.seat])


def _on(name: str, y: Tensor, by: Tensor) -> None:
    y.mul_(by) if name == "s" else y.add_(by)


def grown(stack: Tensor, size: int, fill: float) -> Tensor:
    """With so many seats, the new ones filled."""
    return torch.cat([stack, stack.new_full((size - len(stack), *stack.shape[1:]), fill)])


class Bank:
    """Tenants of one rank. groups: layer -> the name of those that are given its input."""

    def __init__(self, rank: int, groups: Mapping[str, str]):
        self.rank, self.size, self._of = rank, 0, groups
        self.layers: dict[str, Own] = {}
        self._groups: dict[str, Group] = {}

    def put(self, seat: int, edition: Edition) -> Iterable[str]:
        """The layers that it now has. Cost: a copy of the tenant's factors."""
        form = edition.form or {}
        if seat >= self.size:
            self.size = max(4, 2 * self.size, seat + 1)
            for held in (*self.layers.values(), *self._groups.values()):
                held.room(self.size)
        for name, what in form.items():
            if name not in self.layers or (self.layers[name].group is None and what.A is not None):
                group = None if what.A is None else self._group(name, what.A)
                self.layers.setdefault(name, Own(name, group, self.size)).group = group
        for name, layer in self.layers.items():
            layer.put(seat, form.get(name))
        return self.layers

    def clear(self, seat: int) -> None:
        for layer in self.layers.values():
            layer.put(seat, None)

    def _group(self, name: str, like: Tensor) -> Group:
        of = self._of.get(name, name)
        if of not in self._groups:
            self._groups[of] = Group(like.shape[1], self.rank, self.size, like)
        return self._groups[of]


def together(seen: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """Layer -> the first of those that were given the very same input one after the other. seen: (layer, input)."""
    out: dict[str, str] = {}
    before: tuple[str, Any] | None = None
    for name, x in seen:
        out[name] = out[before[0]] if before is not None and before[1] is x else name
        before = name, x
    return out
