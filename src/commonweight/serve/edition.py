"""A tenant as it is at one moment: what a request is answered by, to its end."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from ..core import CommonweightError
from ..host import Tenant
from ..host.moved import places
from ..host.pools import stored
from .blend import Part, total
from .flight import Flights
from .frozen import Frozen, finite, frozen, why
from .places import placed
from .pooled import Common, common

_stamps = itertools.count(1)


class Edition:
    """name: for messages. tenants: the object, or those that it is a weighted sum of. stamp: a number that no other
    edition of this process has; the cache of prefixes is salted with it. form: what it is at each layer, None where it
    has no common form and is read through the host's route. common: what it has of its own, where the rest is a
    common's; its form is made only when somebody asks for it.

    sound: whether all its numbers are finite. An attention that meets a NaN may answer with zeros, which nothing in the
    scores would show, so that an edition that is not sound answers nothing.

    A tenant that is removed, replaced or trained on meanwhile leaves its editions as they were, but for those without
    a form, whose pools are read as they stand. reader, places: the tenant for the host's route, see `places.placed`.
    """

    def __init__(
        self,
        name: str,
        tenants: tuple[Tenant, ...],
        form: Mapping[str, Frozen] | Callable[[], Mapping[str, Frozen] | None] | None,
        sound: bool,
        common: Common | None = None,
    ):
        self.name, self.tenants, self.sound, self.common = name, tenants, sound, common
        self._form, self.stamp = form, next(_stamps)
        self.reader, self.places = placed(tenants[0]) if form is None and len(tenants) == 1 else (tenants[0], None)

    @property
    def form(self) -> Mapping[str, Frozen] | None:
        if callable(self._form):
            self._form = self._form()
        return self._form

    @cached_property
    def ahead(self) -> int:
        """How many positions in front of a request it takes."""
        return 0 if self.common is not None else max((places(t, "") for t in self.tenants), default=0)

    @cached_property
    def invocation(self) -> tuple[int, ...]:
        """Tokens of the prompt from whose last occurrence on it acts; none: everywhere."""
        return next((i for t in self.tenants for i in t.invocations), ())

    @cached_property
    def prompted(self) -> bool:
        """Whether it goes by the embedding of a request's prompt."""
        return any(t.prompted for t in self.tenants)

    @cached_property
    def whole(self) -> bool:
        """Whether it reads whole rows, which a cache does not hold: a network beside the trunk, queries."""
        return self.common is None and self.form is None and not (self.prompted or self.reader.tokenwise)

    def reads(self, site: str) -> bool:
        """Whether it changes what happens there."""
        if self.common is not None:
            return site in self.common.layers
        return any(site in t.table for t in self.tenants)


class Editions:
    """The edition of a tenant as its pools are now; one object for all requests that find them so."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[Any, Edition] = weakref.WeakValueDictionary()
        self._flights = Flights()

    def of(self, tenant: Tenant, modules: Mapping[str, Any]) -> Edition:
        """Cost: the first time as `frozen.frozen`, in the thread that asks; then a look at each pool's version."""

        def made() -> Edition:
            if not finite(tenant):
                return Edition(tenant.name, (tenant,), None, False)
            shared = common(tenant, modules)
            if shared is not None:  # its table has been read; thousands of tenants are resident without one
                tenant.rest()
            form = frozen(tenant, modules) if shared is None else lambda: frozen(tenant, modules)
            return Edition(tenant.name, (tenant,), form, True, shared)

        return self._once(_key(tenant), made)

    def sum(self, name: str, parts: Sequence[tuple[float, Tenant]], modules: Mapping[str, Any]) -> Edition:
        """The weighted sum of tenants. Raises: CommonweightError, with the reason, where they have none."""

        def made() -> Edition:
            editions = [(w, self.of(t, modules)) for w, t in parts]
            tenants = tuple(t for _, t in parts)
            if len({t.invocations for t in tenants}) > 1:
                raise CommonweightError(
                    f"model {name!r}: some of these tenants act on a part of a text alone (activated LoRA), and others "
                    "on another part or on all of it; a sum is of such as begin at the same tokens"
                )
            if bad := next((e for _, e in editions if not e.sound), None):
                return Edition(bad.name, tenants, None, False)
            of = [_part(w, e, modules) for w, e in editions]
            return Edition(name, tenants, total(of), True)

        return self._once(tuple((w, _key(t)) for w, t in parts), made)

    def _once(self, key: Any, made: Callable[[], Edition]) -> Edition:
        def work() -> Edition:
            found = self._known.get(key)  # another thread may have been here first
            if found is None:
                found = self._known[key] = made()
            return found

        return self._known.get(key) or self._flights(key, work)


def _part(weight: float, edition: Edition, modules: Mapping[str, Any]) -> Part:
    tenant = edition.tenants[0]
    told = why(tenant, modules) if edition.form is None else ""
    return Part(weight, edition.name, tenant.method.name, edition.form, told)


def _key(tenant: Tenant) -> Any:
    return tenant.key, tuple(p._version for p in stored(tenant.pools))
