"""A tenant as it is at one moment: what a request is answered by, to its end."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

from ..host import Tenant
from .frozen import Frozen, finite, frozen
from .places import placed

_stamps = itertools.count(1)


class Edition:
    """tenant: the object. stamp: a number that no other edition of this process has; the cache of prefixes is salted
    with it. form: what it is at each layer, None where it has no common form and is read through the host's route.

    sound: whether all its numbers are finite. An attention that meets a NaN may answer with zeros, which nothing in the
    scores would show, so that an edition that is not sound answers nothing.

    A tenant that is removed, replaced or trained on meanwhile leaves its editions as they were, but for those without
    a form, whose pools are read as they stand. reader, places: the tenant for the host's route, see `places.placed`.
    """

    def __init__(self, tenant: Tenant, form: Mapping[str, Frozen] | None, sound: bool):
        self.sound = sound
        self.tenant, self.form, self.stamp = tenant, form, next(_stamps)
        self.reader, self.places = placed(tenant) if form is None else (tenant, None)


class Editions:
    """The edition of a tenant as its pools are now; one object for all requests that find them so."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[Any, Edition] = weakref.WeakValueDictionary()

    def of(self, tenant: Tenant, modules: Mapping[str, Any]) -> Edition:
        """Cost: the first time as `frozen.frozen`, in the thread that asks; then a look at each pool's version."""
        key = tenant.number, tuple(p._version for p in tenant.pools.values())
        found = self._known.get(key)
        if found is None:
            sound = finite(tenant)
            found = self._known[key] = Edition(tenant, frozen(tenant, modules) if sound else None, sound)
        return found
