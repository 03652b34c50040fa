"""Looks at every bit of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..core import CommonweightError
from . import index, pool
from .manifest import Entry, Manifest, Ref


class Problem(NamedTuple):
    """path: the file, from the store's folder. what: what is wrong and what to do. tenants: whom it concerns."""

    path: str
    what: str
    tenants: tuple[str, ...]

    def __str__(self) -> str:
        who = f" (tenants: {', '.join(self.tenants)})" if self.tenants else ""
        return f"{self.path}: {self.what}{who}"


def problems(root: Path, store: bytes, entries: list[Entry]) -> Iterator[Problem]:
    """All that is wrong. Cost: reads every file once. Takes no lock: what leaves meanwhile is no problem."""
    if (root / "store.json").read_bytes() != store:
        yield Problem("store.json", "altered; write it anew with `commonweight store init`", ())
    readers: dict[str, dict[str, Ref]] = {}
    for entry in entries:
        where = f"tenants/{entry.file}"
        try:
            m = Manifest.read(where, entry, (root / where).read_bytes())
        except FileNotFoundError:
            continue
        except CommonweightError as e:
            yield Problem(
                where, f"{_after(e, where)}; publish the tenant again, then remove {entry.label}", (entry.label,)
            )
            continue
        for ref in m.pools.values():
            readers.setdefault(ref.hash, {})[m.label] = ref
    there = {p.name.removesuffix(".safetensors") for p in (root / "pools").glob("??/*.safetensors")}
    for hash in sorted(there | readers.keys()):
        who = readers.get(hash, {})
        labels = tuple(sorted(who))
        try:
            at = pool.path(root, hash)
        except CommonweightError:
            continue  # somebody else's file
        where = at.relative_to(root).as_posix()
        try:
            found = pool.open_pool(root, hash).content()
        except pool.Gone:
            files = {e.label: root / "tenants" / e.file for e in entries}
            if kept := tuple(n for n in labels if files[n].exists()):
                yield Problem(where, "missing; publish one of its tenants again", kept)
            continue
        except CommonweightError as e:
            todo = "publish one of its tenants again" if labels else "nobody reads it, `gc` takes it"
            yield Problem(where, f"{_after(e, str(at))}; {todo}", labels)
            continue
        wrong = tuple(n for n in labels if (who[n].dtype, who[n].shape) != found[:2])
        if wrong:
            yield Problem(where, f"is {found.dtype} {found.shape}, not what its readers say", wrong)
    for what in index.damage(root):
        yield Problem(index.FILE, f"{what}; harmless, `gc` writes it anew", ())


def _after(e: CommonweightError, where: str) -> str:
    return str(e).removeprefix(f"{where}: ")
