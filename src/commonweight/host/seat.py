"""A site as one call of a bind sees it: an ear for its router, what another site was given, which tokens act, and
which are no padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError
from . import invoked, wholly
from .current import Current
from .heard import Heard, keep, keeps
from .route import Bucket, Route
from .sites import Physical
from .states import recomputing
from .tenant import Entry


class Seat:
    """at: the site. keep: takes its name and a router's logits, where somebody listens. lent: what other sites were
    given in this pass, for the very places that the bind is called for. active: which of these act; None: all do.
    there: which are no padding, (rows, T), for a bind that goes by whole rows."""

    def __init__(
        self,
        at: Any,
        keep: Callable | None,
        lent: Mapping[str, Tensor],
        suffix: str = "",
        active: Tensor | None = None,
        there: Tensor | None = None,
    ):
        self._at, self._keep, self._lent, self._suffix = at, keep, lent, suffix
        self.active, self.there = active, there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at, name)

    def rows(self, rows: tuple[int, int] | None) -> Seat:
        if rows is None:
            return self
        return Seat(self._at.rows(rows), self._keep, self._lent, f"[{rows[0]}:{rows[1]}]", self.active, self.there)

    def tell(self, logits: Tensor) -> None:
        if self._keep is not None:
            self._keep(f"{self._at.name}{self._suffix}", logits)

    def lent(self, site: str) -> Tensor:
        """What the site `site` was given: (..., its d_in), of the same places. Raises: CommonweightError where it did
        not run before this one."""
        if site not in self._lent:
            raise CommonweightError(
                f"{self._at.name}: it reads what {site} is given, which did not run before it in this pass; "
                "leave one of the two out with sites, and gradient checkpointing, which runs blocks one by one, aside"
            )
        return self._lent[site]


def of_one(at: Physical, route: Route, x: Tensor, current: Current) -> Any:
    """For the one tenant of a batch."""
    thread = current.thread
    heard, given = thread.heard, thread.given_to
    entries = route.single.table[at.name]  # type: ignore[union-attr]
    if entries[0].lends:
        given[at.name] = x
    source, tokens, whole = entries[0].source, entries[0].invocation, entries[0].whole
    if not source and heard is None and not tokens and not whole:
        return at
    tell = None
    if heard is not None and keeps(heard):
        real = x.new_ones(len(x), dtype=torch.float32) if whole else heard.real(x)
        tell = partial(keep, heard, [route.single], None, real)
    active = _active(at, route, x, current, tokens) if tokens else None
    there = wholly.there(at, x, current) if whole else None
    return Seat(at, tell, _taken(given, source), active=active, there=there)


class Places:
    """For the buckets of a mixed batch at one site: what each of their places has beside its input."""

    def __init__(
        self,
        real: Tensor | None,
        lent: Mapping[str, Tensor],
        active: Mapping[tuple[int, ...], Tensor],
        there: Tensor | None,
    ):
        self.real, self.lent, self.active, self.there = real, lent, active, there  # all with the route's places first

    @classmethod
    def of(cls, at: Physical, route: Route, x: Tensor, current: Current) -> Places | None:
        """None where no bucket needs any."""
        heard, given = current.thread.heard, current.thread.given_to
        found = [t.table[at.name][0] for t, _ in route.groups if t is not None and t.table.get(at.name)]
        if any(e.lends for e in found):
            given[at.name] = x
        sources = {e.source for e in found if e.source}
        invoked = {e.invocation for e in found if e.invocation}
        whole = any(e.whole for e in found)
        if not sources and heard is None and not invoked and not whole:
            return None
        real = None if heard is None else route.fold(heard.real(x))[0]  # type: ignore[index]
        lent = {k: t for s in sources for k, t in _taken(given, s).items()}
        folded = {k: f[0] for k, t in lent.items() if (f := route.fold(t)) is not None}
        active: dict[tuple[int, ...], Tensor] = {}
        by_row, there = route.by_row((route.rows, route.tokens)), None  # else the hook refuses
        if invoked and by_row:
            active = {i: route.fold(_active(at, route, x, current, i))[0] for i in invoked}  # type: ignore[index]
        if whole and by_row:
            there = wholly.there(at, x, current)
        return cls(real, folded, active, there)

    def seat(self, at: Physical, bucket: Bucket, heard: Heard | None) -> Any:
        w, tell = bucket.where, None
        if self.real is not None and heard is not None and keeps(heard):
            real = self.real if w is None else self.real[w]
            real = torch.ones_like(real[:, 0]) if bucket.entries[0][0].whole else real
            tell = partial(keep, heard, bucket.tenants, bucket.reader, real)
        lent = {k: t if w is None else t[w] for k, t in self.lent.items()}
        entry: Entry = bucket.entries[0][0]
        active = self.active.get(entry.invocation)
        if active is not None and w is not None:
            active = active[w]
        if len(bucket.entries) > 1:
            lent = {k: t.reshape(len(t), -1, t.shape[-1]) for k, t in lent.items()}
            active = None if active is None else active.reshape(len(active), -1, 1)
        there = self.there if entry.whole else None
        there = there if there is None or w is None else there[w]
        return Seat(at, tell, lent, active=active, there=there)


def _active(at: Physical, route: Route, x: Tensor, current: Current, tokens: tuple[int, ...]) -> Tensor:
    mask = invoked.active(current.thread.run, route, tokens, at.name, current.replayed or recomputing())
    return invoked.fitted(mask.to(x.device), x, at.name)


def _taken(given: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Given out once: no pass holds what it was given for longer than it needs it."""
    return {source: given.pop(source)} if source in given else {}
