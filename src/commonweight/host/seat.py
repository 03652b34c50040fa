"""A site as one call of a bind sees it: an ear for its router and states, what another site was given, which tokens
act, and which are no padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError
from . import invoked, wholly
from .current import NOTHING, Current
from .embedded import embedded
from .heard import Ear, Heard, keeps
from .picked import alike
from .placed import places as places_of
from .route import Bucket, Route
from .sites import Physical
from .states import recomputing
from .tenant import Entry


@dataclass
class Lent:
    """What a site was given, and how many sites are still to read it."""

    x: Tensor
    left: int


class Seat:
    """at: the site. ear: takes its name and what a bind says, where somebody listens. lent: what other sites were
    given in this pass, for the very places that the bind is called for; lenders: these sites. since: how far behind the
    bind's invocation each place is, below 0 before it; None: it has none. there: which are no padding, (rows, T), for a
    bind that goes by whole rows. context: their mean embeddings, of decoders those of their prompts, for a bind that
    asks for them: (rows, d), or where places are tokens their rows', (places, d). place: of a bind with `placed`, which
    token of its row each place is, (..., T, 1)."""

    def __init__(
        self,
        at: Any,
        ear: Ear | None,
        lent: Mapping[str, Tensor],
        suffix: str = "",
        since: Tensor | None = None,
        there: Tensor | None = None,
        lenders: Mapping[str, Any] = NOTHING,
        context: Tensor | None = None,
        place: Tensor | None = None,
    ):
        self._at, self._ear, self._lent, self._suffix, self._lenders = at, ear, lent, suffix, lenders
        self.since, self.there, self.context, self.place = since, there, context, place

    @property
    def active(self) -> Tensor | None:
        """Which places act, bool; None: all do."""
        return None if self.since is None else self.since >= 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at, name)

    def rows(self, rows: tuple[int, int] | None) -> Seat:
        if rows is None:
            return self
        at, suffix = self._at.rows(rows), f"[{rows[0]}:{rows[1]}]"
        return Seat(at, self._ear, self._lent, suffix, self.since, self.there, self._lenders, self.context, self.place)

    def of_places(self, place: Tensor) -> Seat:
        """For some of the places that it is for."""
        at, ear, lent = self._at, self._ear, self._lent
        return Seat(at, ear, lent, self._suffix, self.since, self.there, self._lenders, self.context, place)

    def tell(self, logits: Tensor) -> None:
        """What a router says of each place, (..., E)."""
        if self._ear is not None:
            self._ear.tell(f"{self._at.name}{self._suffix}", logits)

    def show(self, states: Tensor) -> None:
        """States of each place, (..., d), for a schedule that is shown them and their gradients."""
        if self._ear is not None:
            self._ear.show(f"{self._at.name}{self._suffix}", states)

    def lent(self, site: str) -> Tensor:
        """What the site `site` was given: (..., its d_in), of the same places. Raises: CommonweightError where it did
        not run before this one."""
        if site not in self._lent:
            raise CommonweightError(
                f"{self._at.name}: it reads what {site} is given, which did not run before it in this pass; "
                "leave one of the two out with sites, and gradient checkpointing, which runs blocks one by one, aside"
            )
        return self._lent[site]

    def lender(self, site: str) -> Any:
        """The site `site` itself, a `core.Base`, which `lent` what it was given."""
        return self._lenders[site]


def of_one(at: Physical, route: Route, x: Tensor, current: Current, y: Tensor | None = None) -> Any:
    """For the one tenant of a batch. y: what the site gives, where it has run."""
    thread = current.thread
    heard, given = thread.heard, thread.given_to
    entries = route.single.table[at.name]  # type: ignore[union-attr]
    sources, tokens, whole = entries[0].sources, entries[0].invocation, entries[0].whole
    there = wholly.there(at, x, current) if whole else None
    there = there if there is None or y is None else wholly.behind(at, there, y)
    if entries[0].lends:
        made = _handed(y, there) if entries[0].hands else x
        given[at.name], thread.lenders[at.name] = Lent(made, entries[0].lends), at
    placed = any(e.placed for e in entries)
    if not sources and heard is None and not tokens and not whole and not entries[0].context and not placed:
        return at
    ear = None
    if heard is not None and keeps(heard):
        real = x.new_ones(len(x), dtype=torch.float32) if whole else heard.real(x)
        ear = Ear(heard, [route.single], None, real)
    since = _since(at, route, x, current, tokens) if tokens else None
    lent = _taken(current, sources, x)
    context = embedded(at.name, len(x), current) if entries[0].context else None
    place = places_of(at, x, current) if placed else None
    return Seat(at, ear, lent, since=since, there=there, lenders=thread.lenders, context=context, place=place)


class Places:
    """For the buckets of a mixed batch at one site: what each of their places has beside its input."""

    def __init__(
        self,
        real: Tensor | None,
        lent: Mapping[str, Tensor],
        since: Mapping[tuple[int, ...], Tensor],
        there: Tensor | None,
        lenders: Mapping[str, Any],
        context: Tensor | None,
        place: Tensor | None,
    ):
        self.real, self.lent, self.since, self.there = real, lent, since, there  # all with the route's places first
        self.lenders, self.context, self.place = lenders, context, place

    @classmethod
    def of(cls, at: Physical, route: Route, x: Tensor, current: Current, y: Tensor | None = None) -> Places | None:
        """None where no bucket needs any. y: what the site gives, where it has run."""
        heard, thread = current.thread.heard, current.thread
        found = [t.table[at.name][0] for t, _ in route.groups if t is not None and t.table.get(at.name)]
        by_row, there = route.by_row((route.rows, route.tokens)), None  # else the hook refuses
        whole = any(e.whole for e in found)
        if whole and by_row:
            there = wholly.there(at, x, current)
            there = there if y is None else wholly.behind(at, there, y)
        if lends := max([0, *[e.lends for e in found]]):
            made = _handed(y, there) if any(e.hands for e in found) else x
            thread.given_to[at.name], thread.lenders[at.name] = Lent(made, lends), at
        sources = dict.fromkeys(s for e in found for s in e.sources)
        invoked = {e.invocation for e in found if e.invocation}
        asks = any(e.context for e in found)
        placed = by_row and any(e.placed for e in found)
        if not sources and heard is None and not invoked and not whole and not asks and not placed:
            return None
        real = None if heard is None else route.fold(heard.real(x))[0]  # type: ignore[index]
        lent = _taken(current, sources, x)
        folded = {k: f[0] for k, t in lent.items() if (f := route.fold(t)) is not None}
        since: dict[tuple[int, ...], Tensor] = {}
        if invoked and by_row:
            since = {i: route.fold(_since(at, route, x, current, i))[0] for i in invoked}  # type: ignore[index]
        if asks and not by_row and route.context is None:
            raise CommonweightError(
                f"{at.name}: it goes by the embedding of a row; name readers of rows, not of tokens"
            )
        context = embedded(at.name, len(x) if by_row else route.length, current) if asks else None
        place = route.fold(places_of(at, x, current))[0] if placed else None  # type: ignore[index]
        return cls(real, folded, since, there, thread.lenders, context, place)

    def seat(self, at: Physical, bucket: Bucket, heard: Heard | None) -> Any:
        w, ear = bucket.where, None
        if self.real is not None and heard is not None and keeps(heard):
            real = self.real if w is None else self.real[w]
            real = torch.ones_like(real[:, 0]) if bucket.entries[0][0].whole else real
            ear = Ear(heard, bucket.tenants, bucket.reader, real)
        lent = {k: t if w is None else t[w] for k, t in self.lent.items()}
        entry: Entry = bucket.entries[0][0]
        since = self.since.get(entry.invocation)
        if since is not None and w is not None:
            since = since[w]
        place = self.place if entry.placed else None
        place = place if place is None or w is None else place[w]
        if len(bucket.entries) > 1:
            place = None if place is None else place.reshape(len(place), -1, 1)
            lent = {k: t.reshape(len(t), -1, t.shape[-1]) for k, t in lent.items()}
            since = None if since is None else since.reshape(len(since), -1, 1)
        there = self.there if entry.whole else None
        there = there if there is None or w is None else there[w]
        context = self.context if entry.context else None
        context = context if context is None or w is None else context[w]
        return Seat(at, ear, lent, since=since, there=there, lenders=self.lenders, context=context, place=place)


def _handed(y: Tensor | None, there: Tensor | None) -> Tensor:
    """What a site gives, (rows, T, d), and behind it whether a token is no padding: (rows, T, d + 1)."""
    assert y is not None
    rows = y.reshape(len(y), -1, y.shape[-1])
    real = torch.ones_like(rows[..., :1]) if there is None else there[..., None].to(rows.dtype)
    return torch.cat([rows, real], -1)


def _since(at: Physical, route: Route, x: Tensor, current: Current, tokens: tuple[int, ...]) -> Tensor:
    mask = invoked.since(current.thread.run, route, tokens, at.name, current.replayed or recomputing())
    return invoked.fitted(alike(mask.to(x.device), x, current.thread.run), x, at.name)


def _taken(current: Current, sources: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """No pass holds what it was given for longer than its readers need it. x: what this site is given, which may be of
    some tokens alone, those whose scores are wanted."""
    given, found = current.thread.given_to, {}
    for s in sources:
        if s in given:
            found[s] = alike(given[s].x, x, current.thread.run)
            given[s].left -= 1
            if not given[s].left:
                del given[s]
    return found
