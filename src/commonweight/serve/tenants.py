"""Which tenants are loaded: by name from the host, else from a store, the longest unused ones making room."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import NamedTuple, Protocol

from ..commons import Commons
from ..core import CommonweightError, unknown
from ..host import Host, Tenant
from .edition import Edition, Editions


class Held(Protocol):
    """What is answered, or is to be: tenant: by whom, None for the plain base. reason: why it is over, else None."""

    @property
    def tenant(self) -> Tenant | None: ...
    @property
    def reason(self) -> str | None: ...


class Resident(NamedTuple):
    """A tenant in memory. level: "store" for one that was loaded from the store and may make room, else "host"."""

    name: str
    level: str
    nbytes: int


class Tenants:
    """Tenants by name. Those that the host had stay; those that come from the store are kept within `memory` bytes.

    A request holds its tenant itself, so that one that is removed or replaced meanwhile serves it to its end. Loading
    happens in the thread that asks, beside the running batch.
    """

    def __init__(self, host: Host, store: Commons | str | Path | None, memory: int | None):
        self.host, self.memory = host, memory
        self.store = Commons(store) if isinstance(store, str | Path) else store
        self._loaded: dict[str, Tenant] = {}  # from the store, the longest unused one first
        self._editions = Editions()
        self.left = threading.Event()  # a tenant was removed: what the batch holds of it may go
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()
        self._lock = threading.Lock()

    def edition(self, name: str | None) -> Edition | None:
        """A tenant as it is now, loaded if need be; None for the plain base."""
        if name is None:
            return None
        tenant = self.get(name)
        with self._lock:
            return self._editions.of(tenant, self.host.base.modules)

    def get(self, name: str) -> Tenant:
        """Raises: CommonweightError for a name that neither has, and for a file that cannot be read."""
        if not isinstance(name, str):
            raise CommonweightError(f"tenant is {name!r}; wanted a name, or None for the plain base")
        with self._lock:
            if name in self.host:
                tenant = self.host[name]
                if name in self._loaded:
                    self._loaded[name] = self._loaded.pop(name)
                return tenant
            if self.store is None:
                raise unknown("tenant", name, list(self.host))
            tenant = self.host.load_from(self.store, name, as_=name)
            self._loaded[name] = tenant
            self._make_room()
            return tenant

    def names(self) -> list[str]:
        """Of all that can be asked. Cost: a listing of the store's folder."""
        return sorted({*self.host, *(() if self.store is None else self.store)})

    def hold(self, asked: Held) -> None:
        """Its tenant stays while it is open."""
        self._held.add(asked)

    def reload(self, name: str) -> Tenant:
        """The store's newest version from now on; requests that have begun keep theirs."""
        with self._lock:
            if name in self._loaded and name in self.host:
                self._remove(name)
        return self.get(name)

    def drop(self, name: str) -> bool:
        """Takes a tenant out of memory; requests that have begun keep it. Whether it was there. One that stands in the
        store is loaded again when it is asked for."""
        with self._lock:
            if name not in self.host:
                return False
            self._remove(name)
            return True

    def _remove(self, name: str) -> None:
        self.host.remove(name)
        self._loaded.pop(name, None)
        self.left.set()

    def leaving(self, edition: Edition) -> bool:
        """Whether its tenant is the host's no more."""
        name = edition.tenant.name
        return name not in self.host or self.host[name] is not edition.tenant

    def gone(self, edition: Edition) -> bool:
        """Whether no open answer reads it either."""
        return self.leaving(edition) and id(edition.tenant) not in self._used()

    def _used(self) -> set[int]:
        return {id(t.tenant) for t in list(self._held) if t.reason is None and t.tenant is not None}

    def rename(self, old: str, new: str) -> None:
        """A tenant of the host under another name, in the place of the one that has it: nobody finds none."""
        with self._lock:
            if new in self.host:
                self._remove(new)
            self.host.roster.rename(old, new)

    def resident(self) -> list[Resident]:
        """Those in memory; those from the store last, the longest unused one of them first."""
        with self._lock:
            loaded = dict(self._loaded)
            mine = [n for n in self.host if n not in loaded]
            found = [*((n, "host", self.host[n]) for n in mine), *((n, "store", t) for n, t in loaded.items())]
        return [Resident(n, level, t.nbytes) for n, level, t in found]

    @property
    def nbytes(self) -> int:
        """Of what was loaded from the store; a common's pools count once."""
        pools = {p.data_ptr(): p.nbytes for t in [*self._loaded.values()] for p in t.pools.values()}
        return sum(pools.values())

    def _make_room(self) -> None:
        if self.memory is None:
            return
        used = self._used()
        for name in list(self._loaded)[:-1]:
            if self.nbytes <= self.memory:
                return
            if id(self._loaded[name]) not in used:
                self._remove(name)
