"""Whose tokens a step has, seat by seat: what the banks of `lanes` need to know of a step, and nothing of a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

_HOT = 4  # requests of one tenant that are worth a product of their own where others have one or two


class Span(NamedTuple):
    """Tokens first..end, all of the tenant in one seat: a prompt, or several requests that go on."""

    first: int
    end: int
    seat: int


class Lead:
    """Tokens first..end of which each is a request that goes on, in seats low..high of one bank.

    Where they have these seats one after the other, `places` is None and the stacks are read as they lie. Else the
    tokens are laid beside the stacks: `width` places a seat, `places` (n,) says where. seats: (n,). kept: what layers
    have taken out of their stacks for these tokens.
    """

    __slots__ = ("end", "first", "high", "kept", "low", "places", "seats", "width")

    def __init__(self, first: int, seats: Sequence[int], device: torch.device):
        self.first, self.end, self.low, self.high = first, first + len(seats), min(seats), max(seats) + 1
        self.width = max(Counter(seats).values())
        self.seats = torch.tensor(seats, device=device)
        self.kept: dict[Any, Tensor] = {}
        self.places: Tensor | None = None
        if list(seats) != list(range(self.low, self.high)):
            at: Counter[int] = Counter()
            places = []
            for seat in seats:
                places.append((seat - self.low) * self.width + at[seat])
                at[seat] += 1
            self.places = torch.tensor(places, device=device)

    def of(self, x: Tensor) -> Tensor:
        """Of a step's rows x (T, d), those of these tokens."""
        return x if self.end - self.first == len(x) else x[self.first : self.end]

    def stack(self, key: Any, held: Tensor) -> Tensor:
        """Of a stack (S, ...), what these seats have; looked up once for all steps with the same readers."""
        found = self.kept.get(key)
        if found is None:
            whole = self.low == 0 and self.high == len(held)
            found = self.kept[key] = held if whole else held[self.low : self.high]
        return found

    def beside(self, x: Tensor) -> Tensor:
        """x (n, d) -> (seats, width, d); places that no token has are left as they come."""
        size = self.high - self.low
        if self.places is None:
            return x.unsqueeze(1)
        return x.new_empty(size * self.width, x.shape[1]).index_copy_(0, self.places, x).view(size, self.width, -1)

    def back(self, y: Tensor) -> Tensor:
        """(seats, width, d) -> (n, d)."""
        flat = y.view(-1, y.shape[-1])
        return flat if self.places is None else flat.index_select(0, self.places)


class Part:
    """The tokens of a step that read one bank. shrunk: what its last group of layers made of its input."""

    __slots__ = ("bank", "leads", "shrunk", "spans")

    def __init__(self, bank: Any, leads: list[Lead], spans: list[Span]):
        self.bank, self.leads, self.spans = bank, leads, spans
        self.shrunk: tuple[Any, Tensor | None, list[Sequence[Tensor]]] = None, None, []


class Step:
    """readers: (bank, seat, tokens) of each request, the plain base with None; those with one token come first, as the
    scheduler has them. Requests of one bank that stand together are read together, in the order of their seats best."""

    __slots__ = ("length", "parts")

    def __init__(self, readers: Sequence[tuple[Any, int, int]], device: torch.device):
        ones = next((i for i, r in enumerate(readers) if r[2] != 1), len(readers))
        parts: dict[int, Part] = {}
        at = 0
        for bank, group in groupby(readers[:ones], lambda r: r[0]):
            seats = [seat for _, seat, _ in group]
            if bank is not None:
                part = parts.setdefault(id(bank), Part(bank, [], []))
                _divide(at, seats, part, device)
            at += len(seats)
        for bank, seat, n in readers[ones:]:
            if bank is not None:
                parts.setdefault(id(bank), Part(bank, [], [])).spans.append(Span(at, at + n, seat))
            at += n
        self.length, self.parts = at, list(parts.values())


def _divide(first: int, seats: list[int], part: Part, device: torch.device) -> None:
    """Into leads and, where one tenant has many requests and others few, spans, so that nothing is padded far."""
    size = (max(seats) + 1 - min(seats)) * max(Counter(seats).values())
    if size <= 1.5 * len(seats) + 2:
        part.leads.append(Lead(first, seats, device))
        return
    run: list[int] = []
    at = first
    for seat, group in groupby(seats):
        n = len(list(group))
        if n < _HOT:
            run += [seat] * n
        else:
            if run:
                part.leads.append(Lead(at - len(run), run, device))
            part.spans.append(Span(at, at + n, seat))
            run = []
        at += n
    if run:
        part.leads.append(Lead(at - len(run), run, device))
