"""What every tenant costs, from all manifests at once.

Works on the manifests' plain JSON: ten thousand of them are listed within a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from ..core import CommonweightError
from . import pool
from .blueprint import Blueprint, Get
from .manifest import Entry

_size = lru_cache(4096)(pool.size)
Sizes = dict[str, int]  # by hash, of files


@dataclass(frozen=True)
class Record:
    """A tenant in a listing: its newest version.

    nbytes: files of the pools it reads, its manifest and its blueprint. marginal_bytes: what the store would shrink by
    if the tenant left with all its versions: what of that nobody else reads. pools: tensor -> hash of its file.
    """

    name: str
    method: str
    version: int
    nbytes: int
    marginal_bytes: int
    pools: dict[str, str]
    metrics: dict[str, Any]
    base: str
    common: str | None
    parents: tuple[str, ...]
    created: str
    versions: tuple[int, ...]


class _Version(NamedTuple):
    """What a record needs of one manifest; the rest of its JSON is dropped at once, which halves the time."""

    version: int
    nbytes: int
    method: str
    base: str
    common: str | None
    parents: tuple[str, ...]
    created: str
    metrics: dict[str, Any]
    pools: dict[str, str]


class _Plans(NamedTuple):
    """Of a blueprint: its header, its pools by tensor, all its files with its own among them."""

    tenant: Mapping[str, Any]
    pools: dict[str, str]
    own: Sequence[str]
    files: Sizes
    nbytes: int


def records(texts: Iterable[tuple[Entry, bytes]], blueprint: Get, only: str | None = None) -> list[Record]:
    """By name. texts: every manifest of the store. only: one tenant's versions, a record for each."""
    found: dict[str, list[_Version]] = {}
    plans: dict[str, _Plans] = {}
    readers: dict[str, str | None] = {}  # of a file, or of all files of a blueprint: the one tenant, or None
    sizes: Sizes = {}
    alone: dict[str, int] = {}
    files: dict[str, tuple[Sizes, str]] = {}  # by label, those of its own and its blueprint
    over: list[tuple[str, str]] = []  # (name, label of what it stands on)
    for entry, text in texts:
        name = entry.name
        try:
            raw = json.loads(text)
            t = raw["tenant"]
            if raw["commons"] == 1:
                about, common = t, 0
                pools, mine = _all(raw["pools"])
            else:
                hash = raw["blueprint"]
                plan = plans.get(hash) or plans.setdefault(hash, _plans(blueprint(hash)))
                about, common = plan.tenant, plan.nbytes
                pools, mine = _own(plan, raw)
                if readers.setdefault(hash, name) != name:
                    readers[hash] = None
            files[entry.label] = mine, "" if raw["commons"] == 1 else raw["blueprint"]
            if on := {n for n, _ in about.get("over", ())}:
                over += [(name, p) for p in raw["parents"] if p.partition("@")[0] in on]
            for hash, size in mine.items():
                sizes[hash] = size
                if readers.setdefault(hash, name) != name:
                    readers[hash] = None
            if only is None or only == name:
                fields = about["method"], about["base"], about.get("common"), tuple(raw["parents"]), raw["created"]
                nbytes = len(text) + common + sum(mine.values())
                found.setdefault(name, []).append(_Version(entry.version, nbytes, *fields, t.get("metrics", {}), pools))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, CommonweightError):
                raise
            raise CommonweightError(f"tenants/{entry.file}: not a manifest that commonweight wrote ({e!r})") from e
        alone[name] = alone.get(name, 0) + len(text)
    for made, plan in plans.items():
        who = readers[made]
        sizes |= plan.files
        for hash in plan.files:
            if readers.setdefault(hash, who) != who:
                readers[hash] = None
    for name, label in over:  # what it stands on is read by it too
        mine, made = files.get(label, ({}, ""))
        for hash in [*mine, *(plans[made].files if made else ())]:
            if readers.get(hash) != name:
                readers[hash] = None
    for hash, size in sizes.items():
        if (who := readers[hash]) is not None:
            alone[who] += size
    out = []
    for name, versions in sorted(found.items()):
        versions.sort(key=lambda v: v.version)
        numbers = tuple(v.version for v in versions)
        for v in versions if only else versions[-1:]:
            out.append(
                Record(
                    name=name,
                    method=v.method,
                    version=v.version,
                    nbytes=v.nbytes,
                    marginal_bytes=alone[name],
                    pools=v.pools,
                    metrics=v.metrics,
                    base=v.base,
                    common=v.common,
                    parents=v.parents,
                    created=v.created,
                    versions=numbers,
                )
            )
    return out


def _plans(b: Blueprint) -> _Plans:
    files = {r.hash: _size(r.dtype, r.shape) for r in b.pools.values()} | {b.hash: len(b.text)}
    return _Plans(b.tenant, {k: r.hash for k, r in b.pools.items()}, b.own, files, sum(files.values()))


def _own(plan: _Plans, raw: Mapping[str, Any]) -> tuple[dict[str, str], Sizes]:
    """(tensor -> hash, sizes of the files that the tenant does not have from its blueprint)."""
    pools, files, packed = plan.pools.copy(), {}, 0
    for tensor, (dtype, shape, *file) in zip(plan.own, raw["own"], strict=True):
        if file:
            pools[tensor] = file[0]
            files[file[0]] = _size(dtype, tuple(shape))
        else:
            pools[tensor] = raw["pack"]
            packed += prod(shape) * pool.DTYPES[dtype][0]
    if "pack" in raw:
        files[raw["pack"]] = _size("U8", (packed,))
    return pools, files


def _all(given: Mapping[str, Any]) -> tuple[dict[str, str], Sizes]:
    """The same of a manifest of format 1."""
    files = {hash: _size(dtype, tuple(shape)) for hash, dtype, shape in given.values()}
    return {k: r[0] for k, r in given.items()}, files
