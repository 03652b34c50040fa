"""Which tenants are loaded: by name from the host, else from a store, the longest unused ones making room."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import NamedTuple, Protocol

from ..commons import Commons
from ..core import CommonweightError, WrongTask, unknown
from ..host import Host, Tenant
from ..host.pools import stored
from ..host.said_tasks import none
from .blend import several, terms
from .edition import Edition, Editions
from .flight import Flights


class Held(Protocol):
    """What is answered, or is to be: readers: by whom, none for the plain base. reason: why it is over, else None."""

    @property
    def readers(self) -> tuple[Tenant, ...]: ...
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
    happens in the thread that asks, beside the running batch and beside other loads: a tenant that several threads ask
    for is loaded once, and who asks for a tenant that is in memory waits for nobody.
    """

    def __init__(self, host: Host, store: Commons | str | Path | None, memory: int | None):
        self.host, self.memory = host, memory
        self.store = Commons(store, make=False) if isinstance(store, str | Path) else store
        self._loaded: dict[str, Tenant] = {}  # from the store, the longest unused one first
        self._editions = Editions()
        self.left = threading.Event()  # a tenant was removed: what the batch holds of it may go
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()
        self._lock = threading.Lock()  # held for a look, never while something is read
        self._loads = Flights()
        self._outdated: set[str] = set()  # names whose load began before they were dropped
        self._over = False  # more is loaded than there is memory for, since it is read
        self._read: set[int] = set()  # by whom answers were made when that was looked at last

    def edition(self, name: str | None, task: str | int | None = None) -> Edition | None:
        """A tenant as it is now, loaded if need be; None for the plain base. A sum as `a+0.5*b`: of these tenants.
        task: of one that goes by tasks, which; of a sum, of those among them that do.

        Raises: as `get`, `Tenant.at`, and as `blend.terms` and `blend.total`; WrongTask for a task of the plain base,
        or of a sum in which nobody goes by tasks.
        """
        if name is None:
            none([task], "the plain base")
            return None
        if not several(name):
            return self._editions.of(self.get(name).at(task), self.host.base.modules)
        found = [(w, self.get(n)) for n, w in sorted(terms(name).items())]
        parts = [(w, t.at(task) if t.tasks else t) for w, t in found]
        if len(lists := {t.tasks for _, t in found if t.tasks}) > 1 and not isinstance(task, str):
            raise WrongTask(f"tenants of {name!r} have their tasks in other orders, and {task!r} is said; say a name")
        if not lists:
            none([task], f"{name!r}, in which nobody goes by tasks,")
        if [w for w, _ in parts] == [1.0]:
            return self._editions.of(parts[0][1], self.host.base.modules)
        return self._editions.sum(name, parts, self.host.base.modules)

    def widen(self) -> None:
        """Makes the vocabulary as large as tenants of the store want it that bring their added rows themselves.

        Once an engine is at work it cannot grow. Cost: a look at every manifest.
        """
        here = self.host.base.vocabulary
        if self.store is None or here is None:
            return
        wanted = here
        for name in self.store:
            try:
                said = self.store.manifest(name).tenant
            except CommonweightError:  # told when it is asked for
                continue
            if "rows" in said and said["rows"] <= here:
                wanted = max(wanted, said.get("vocabulary", 0))
        self.host.resize_vocabulary(wanted)

    def get(self, name: str) -> Tenant:
        """Raises: CommonweightError for a name that neither has, and for a file that cannot be read."""
        if not isinstance(name, str):
            raise CommonweightError(f"tenant is {name!r}; wanted a name, or None for the plain base")
        return self._there(name) or self._loads(name, lambda: self._load(name))

    def ready(self, name: str | None) -> bool:
        """Whether it is in memory, so that nobody waits for it."""
        names = () if name is None else terms(name) if several(name) else (name,)
        return all(n in self.host and n not in self._loads for n in names)

    def _there(self, name: str) -> Tenant | None:
        with self._lock:
            if not self.ready(name):
                return None
            if name in self._loaded:
                self._loaded[name] = self._loaded.pop(name)
            return self.host.roster.tenants.get(name)

    def _load(self, name: str) -> Tenant:
        """From the store. What was published or put in its place while it was read is read instead."""
        while True:
            with self._lock:
                self._outdated.discard(name)
                if (there := self.host.roster.tenants.get(name)) is not None:
                    return there
            if self.store is None:
                raise unknown("tenant", name, list(self.host))
            try:
                tenant = self.host.load_from(self.store, name, as_=name)
            except CommonweightError:
                if name in self.host:
                    continue
                raise
            with self._lock:
                if self.host.roster.tenants.get(name) is not tenant:
                    continue
                self._loaded[name] = tenant
                if name not in self._outdated:
                    self._make_room()
                    return tenant
                self._remove(name)

    def names(self) -> list[str]:
        """Of all that can be asked. Cost: a listing of the store's folder."""
        return sorted({*self.host, *(() if self.store is None else self.store)})

    def hold(self, asked: Held) -> None:
        """Its tenant stays while it is open."""
        self._held.add(asked)

    def drop(self, name: str) -> bool:
        """Takes a tenant out of memory; requests that have begun keep it. Whether it was there. One that stands in the
        store is loaded again when it is asked for."""
        with self._lock:
            if name in self._loads:
                self._outdated.add(name)
            if name not in self.host:
                return False
            self._remove(name)
            return True

    def _remove(self, name: str) -> None:
        self.host.roster.remove(name, stood=True)
        self._loaded.pop(name, None)
        self.left.set()

    def leaving(self, edition: Edition) -> bool:
        """Whether one of its tenants is the host's no more."""
        return any(self.host.roster.tenants.get(t.name) is not t.origin for t in edition.tenants)

    def gone(self, edition: Edition) -> bool:
        """Whether no open answer reads it either."""
        return self.leaving(edition) and self._used().isdisjoint(id(t.origin) for t in edition.tenants)

    def _used(self) -> set[int]:
        return {id(t.origin) for held in list(self._held) if held.reason is None for t in held.readers}

    def rename(self, old: str, new: str) -> None:
        """A tenant of the host under another name, in the place of the one that has it: nobody finds none."""
        with self._lock, self.host.roster.lock:
            if new in self.host:
                self._remove(new)
            self.host.roster.rename(old, new)

    def resident(self) -> list[Resident]:
        """Those in memory; those from the store last, the longest unused one of them first."""
        with self._lock:
            there = [*self.host.roster.tenants.items()]
            loaded = {n: t for n, t in self._loaded.items() if self._mine(n)}
            mine = [(n, t) for n, t in there if n not in loaded and n not in self._loads]  # half loaded: not yet
        found = [*((n, "host", t) for n, t in mine), *((n, "store", t) for n, t in loaded.items())]
        return [Resident(n, level, t.nbytes) for n, level, t in found]

    @property
    def nbytes(self) -> int:
        """Of what was loaded from the store; a common's pools count once."""
        pools = {p.data_ptr(): p.nbytes for t in [*self._loaded.values()] for p in stored(t.pools)}
        return sum(pools.values())

    def trim(self) -> None:
        """Tenants that could not make room, since they were read, do so when their answers have ended. Cost: a look
        at a flag where there is room."""
        if self._over and (used := self._used()) != self._read:
            self._read = used
            with self._lock:
                self._make_room()

    def _make_room(self) -> None:
        """The one that was asked for last stays, however large."""
        if self.memory is None:
            return
        used = self._used()
        for name in list(self._loaded)[:-1]:
            if self.nbytes <= self.memory:
                break
            if not self._mine(name):
                del self._loaded[name]
            elif id(self._loaded[name]) not in used:
                self._remove(name)
        self._over = self.nbytes > self.memory

    def _mine(self, name: str) -> bool:
        """Whether the host has it as it was loaded here: a program may have removed it, or put another in its place."""
        return self.host.roster.tenants.get(name) is self._loaded[name]
