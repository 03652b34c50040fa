"""A site as one call of a bind sees it: with an ear for its router, and with what another site was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..core import CommonweightError
from .heard import Heard, keep, keeps
from .route import Bucket, Route
from .sites import Physical


class Seat:
    """at: the site. keep: takes its name and a router's logits, where somebody listens. lent: what other sites were
    given in this pass, for the very places that the bind is called for."""

    def __init__(self, at: Any, keep: Callable | None, lent: Mapping[str, Tensor], suffix: str = ""):
        self._at, self._keep, self._lent, self._suffix = at, keep, lent, suffix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at, name)

    def rows(self, rows: tuple[int, int] | None) -> Seat:
        return self if rows is None else Seat(self._at.rows(rows), self._keep, self._lent, f"[{rows[0]}:{rows[1]}]")

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


def of_one(at: Physical, route: Route, x: Tensor, heard: Heard | None, given: dict[str, Tensor]) -> Any:
    """For the one tenant of a batch."""
    entries = route.single.table[at.name]  # type: ignore[union-attr]
    if entries[0].lends:
        given[at.name] = x
    source = entries[0].source
    if not source and heard is None:
        return at
    tell = partial(keep, heard, [route.single], None, heard.real(x)) if heard is not None and keeps(heard) else None
    return Seat(at, tell, _taken(given, source))


class Places:
    """For the buckets of a mixed batch at one site: what each of their places has beside its input."""

    def __init__(self, real: Tensor | None, lent: Mapping[str, Tensor]):
        self.real, self.lent = real, lent  # both with the route's places first

    @classmethod
    def of(cls, at: Physical, route: Route, x: Tensor, heard: Heard | None, given: dict[str, Tensor]) -> Places | None:
        """None where no bucket needs any."""
        found = [t.table[at.name][0] for t, _ in route.groups if t is not None and t.table.get(at.name)]
        if any(e.lends for e in found):
            given[at.name] = x
        sources = {e.source for e in found if e.source}
        if not sources and heard is None:
            return None
        real = None if heard is None else route.fold(heard.real(x))[0]  # type: ignore[index]
        lent = {k: t for s in sources for k, t in _taken(given, s).items()}
        folded = {k: f[0] for k, t in lent.items() if (f := route.fold(t)) is not None}
        return cls(real, folded)

    def seat(self, at: Physical, bucket: Bucket, heard: Heard | None) -> Any:
        w, tell = bucket.where, None
        if self.real is not None and heard is not None and keeps(heard):
            tell = partial(keep, heard, bucket.tenants, bucket.reader, self.real if w is None else self.real[w])
        lent = {k: t if w is None else t[w] for k, t in self.lent.items()}
        if len(bucket.entries) > 1:
            lent = {k: t.reshape(len(t), -1, t.shape[-1]) for k, t in lent.items()}
        return Seat(at, tell, lent)


def _taken(given: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Given out once: no pass holds what it was given for longer than it needs it."""
    return {source: given.pop(source)} if source in given else {}
