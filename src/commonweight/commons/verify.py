"""Looks at every bit of a store."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from ..core import CommonweightError
from . import blueprint, index, pool
from .manifest import Entry, Manifest


class Problem(NamedTuple):
    """path: the file, from the store's folder. what: what is wrong and what to do. tenants: whom it concerns."""

    path: str
    what: str
    tenants: tuple[str, ...]

    def __str__(self) -> str:
        who = f" (tenants: {', '.join(self.tenants)})" if self.tenants else ""
        return f"{self.path}: {self.what}{who}"


LOST = (
    f"is missing, and {index.FILE} still has it: write what stands behind its name there into the file, or forget it "
    "with `commonweight store remove`"
)
MANIFEST = "publish the tenant again, then remove"
AGAIN, NOBODY = "publish one of its tenants again", "nobody reads it, `gc` takes it"
UNKNOWN = "nobody reads it; look at its disk"


def problems(root: Path, store: Collection[bytes], entries: list[Entry], lost_keys: list[str]) -> Iterator[Problem]:
    """All that is wrong. store: what its first file may hold. lost_keys: of manifests that are not there. Cost: reads
    every file once. Takes no lock: what leaves meanwhile is no problem."""
    try:
        if (root / "store.json").read_bytes() not in store:
            yield Problem("store.json", "altered; write it anew with `commonweight store init`", ())
    except OSError as e:
        yield Problem("store.json", f"cannot be read ({e.strerror})", ())
    readers: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    lost: dict[str, tuple[CommonweightError, list[str]]] = {}  # blueprints, by path
    get = blueprint.open_all(root)
    for entry in entries:
        where = f"tenants/{entry.file}"
        try:
            m = Manifest.read(where, entry, (root / where).read_bytes(), get)
        except FileNotFoundError:
            continue
        except OSError as e:
            yield Problem(where, f"cannot be read ({e.strerror}); {MANIFEST} {entry.label}", (entry.label,))
            continue
        except (blueprint.Lost, blueprint.Missing) as e:
            lost.setdefault(e.hash, (e, []))[1].append(entry.label)
            continue
        except CommonweightError as e:
            yield Problem(where, f"{_after(e, where)}; {MANIFEST} {entry.label}", (entry.label,))
            continue
        for hash, content in m.files.items():
            readers.setdefault(hash, {})[m.label] = content
    for key in lost_keys:
        label = key.rsplit(".", 2)[0]
        yield Problem(f"tenants/{key}", LOST, (label,))
    files = {e.label: root / "tenants" / e.file for e in entries}
    for at in (root / blueprint.FOLDER).glob("*.json"):
        if pool.HASH.fullmatch(at.stem) and at.stem not in lost:
            try:
                get(at.stem)
            except blueprint.Lost as e:
                lost[at.stem] = (e, [])
            except blueprint.Missing:
                pass  # it has just left
    for hash, (e, labels) in sorted(lost.items()):
        at = blueprint.path(root, hash)
        where = at.relative_to(root).as_posix()
        kept = tuple(n for n in sorted(labels) if files[n].exists())
        if isinstance(e, blueprint.Lost) or kept:
            yield Problem(where, f"{_after(e, str(at))}; {AGAIN if kept else NOBODY}", kept)
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
            if kept := tuple(n for n in labels if files[n].exists()):
                yield Problem(where, f"missing; {AGAIN}", kept)
            continue
        except OSError as e:
            yield Problem(where, f"cannot be read ({e.strerror}); {AGAIN if labels else UNKNOWN}", labels)
            continue
        except CommonweightError as e:
            yield Problem(where, f"{_after(e, str(at))}; {AGAIN if labels else NOBODY}", labels)
            continue
        wrong = tuple(n for n in labels if who[n] != found[:2])
        if wrong:
            yield Problem(where, f"is {found.dtype} {found.shape}, not what its readers say", wrong)
    for what in index.damage(root):
        yield Problem(index.FILE, f"{what}; harmless, `gc` writes it anew", ())


def _after(e: CommonweightError, where: str) -> str:
    return str(e).removeprefix(f"{where}: ")
