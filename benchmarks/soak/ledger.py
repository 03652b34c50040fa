"""What each tenant may answer, by what has happened to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .shop import BAD

GONE, BROKEN = "gone", "broken"  # what may come in the place of a version: no such tenant; its files are damaged
Version = int | str
May = frozenset[Version]


class Ledger:
    """store: the version that the store has, or none. loaded: by vLLM's route, which stands before the store. stale:
    earlier ones of the store that may still be in memory. damaged: tenants of which files have lost bytes; they may
    answer as any of their versions, or not at all, until they are put anew."""

    def __init__(self, names: Sequence[str], versions: int):
        self.store: dict[str, Version | None] = dict.fromkeys(names)
        self.loaded: dict[str, Version] = {}
        self.stale: dict[str, set[Version]] = {n: set() for n in names}
        self.damaged: set[str] = set()
        self.every: set[Version] = {*range(1, versions + 1), BAD}
        self.history: list[tuple[str, May]] = []

    def may(self, name: str) -> May:
        if name in self.loaded:
            return frozenset({self.loaded[name]})
        if name in self.damaged:
            return frozenset({*self.every, BROKEN, GONE})
        now = self.store[name]
        return frozenset({GONE if now is None else now, *self.stale[name]})

    def since(self, name: str | None, at: int) -> May:
        """What it may answer to a request that came when the history was so long, and that was taken since."""
        if name is None:
            return frozenset()
        before = next((m for n, m in reversed(self.history[:at]) if n == name), frozenset())
        return before.union(*(m for n, m in self.history[at:] if n == name))

    def _told(self, names: Iterable[str]) -> None:
        self.history += [(n, self.may(n)) for n in names]

    def put(self, name: str, version: Version) -> None:
        self.loaded.pop(name, None)
        self.damaged.discard(name)
        self.store[name], self.stale[name] = version, set()
        self._told([name])

    def elsewhere(self, name: str, version: Version | None) -> None:
        """Another process has changed the store."""
        before = self.store[name]
        if before is not None:
            self.stale[name].add(before)
        self.store[name] = version
        self._told([name])

    def noticed(self) -> None:
        for name in self.stale:
            self.stale[name] = set()
        self._told(self.stale)

    def unloaded(self, name: str) -> None:
        self.loaded.pop(name, None)
        self.stale[name] = set()
        self._told([name])

    def load(self, name: str, version: Version) -> None:
        self.loaded[name] = version
        self._told([name])

    def deleted(self, name: str) -> None:
        self.loaded.pop(name, None)
        self.damaged.discard(name)
        self.store[name], self.stale[name] = None, set()
        self._told([name])

    def damage(self, names: Iterable[str]) -> None:
        found = list(names)
        self.damaged |= set(found)
        self._told(found)
