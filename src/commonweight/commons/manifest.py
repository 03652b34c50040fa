"""A manifest: what one version of a tenant is, and which pools it reads. Immutable once written.

Its file is called ``<name>@<version>.<digest>.json``, the digest that of its bytes: a listing of the folder says which
versions exist, and a flipped bit shows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..core import CommonweightError, safe
from .blueprint import CHECK, Blueprint, Get
from .pool import Ref

FORMAT = 2
JOINT = re.compile("[0-9a-f]{16}")  # a folder of manifests that were published together
_FILE = re.compile(r"(?:[0-9a-f]{16}/)?(?P<name>[^@/\\]+)@(?P<version>[1-9][0-9]{0,8})\.(?P<digest>[0-9a-f]{16})\.json")
_EACH = ("labels", "metrics", "plan", "seed")  # what of a header is each tenant's: the rest is its blueprint's


class Entry(NamedTuple):
    """What the name of a manifest's file says. file: from the folder ``tenants``."""

    file: str
    name: str
    version: int
    digest: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> str:
        """The file's name without the folder of those that it was published with."""
        return self.file.rpartition("/")[2]

    @classmethod
    def of(cls, file: str) -> Entry | None:
        """None for a file that is no manifest."""
        found = _FILE.fullmatch(file)
        return cls(file, found["name"], int(found["version"]), found["digest"]) if found else None


@dataclass(frozen=True)
class Manifest:
    """One version of one tenant.

    tenant: the header of its file (method, config, seed, sites, plan, base, labels, metrics), see File format.
    pools: tensor of that file -> the pool that holds it. parents: ``name@version`` of what it was made from.
    """

    name: str
    version: int
    tenant: Mapping[str, Any]
    pools: Mapping[str, Ref]
    parents: tuple[str, ...]
    created: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.tenant.get("metrics", {}))

    @property
    def below(self) -> tuple[str, ...]:
        """``name@version`` of the tenants that it stands on, without which it is nothing."""
        names = {name for name, _ in self.tenant.get("over", ())}
        return tuple(p for p in self.parents if p.partition("@")[0] in names)

    @cached_property
    def blueprint(self) -> Blueprint | None:
        """What it has in common with other manifests; None of one of format 1, which says all by itself."""
        header = {k: v for k, v in self.tenant.items() if k not in (*_EACH, "own")}
        own = self.own or ()
        return Blueprint.of(header, {k: r for k, r in self.pools.items() if k not in own}, own)

    @property
    def own(self) -> tuple[str, ...] | None:
        """The tensors that no other tenant reads; None when its file does not say which these are."""
        said = self.tenant.get("own")
        return tuple(k for k in sorted(self.pools) if k != CHECK) if said is True else said and tuple(sorted(said))

    @property
    def shared(self) -> dict[str, str]:
        """Tensor -> hash, of the pools of its common; also of others where its file does not say which are its own."""
        own = self.own or ()
        return {k: r.hash for k, r in self.pools.items() if k not in own and k != CHECK}

    @cached_property
    def text(self) -> bytes:
        """The file's bytes: one line of JSON, keys sorted."""
        assert self.blueprint is not None
        refs = [self.pools[k] for k in self.blueprint.own]
        whole = {
            "commons": FORMAT, "name": self.name, "version": self.version, "blueprint": self.blueprint.hash,
            "tenant": {k: self.tenant[k] for k in _EACH if k in self.tenant}, "parents": self.parents,
            "created": self.created,
            "own": [[r.dtype, r.shape] if r.at is not None else [r.dtype, r.shape, r.hash] for r in refs],
        }  # fmt: skip
        if packs := {r.hash for r in refs if r.at is not None}:
            (whole["pack"],) = packs
        try:
            return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as e:
            raise CommonweightError(f"{self.name}: the metrics are not JSON: {e}; give finite numbers") from e

    @property
    def file(self) -> str:
        return f"{self.label}.{digest(self.text)}.json"

    @property
    def files(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Hash -> (dtype, shape) of every file of a pool that it reads."""
        out = {r.hash: (r.dtype, r.shape) for r in self.pools.values()}
        packed = [r for r in self.pools.values() if r.at is not None]
        return out | {r.hash: ("U8", (sum(p.numbers for p in packed),)) for r in packed[:1]}

    @classmethod
    def read(cls, where: str, entry: Entry, text: bytes, blueprint: Get) -> Manifest:
        """From the file's bytes. Raises: CommonweightError when it was altered, or by a newer version."""
        if digest(text) != entry.digest:
            raise CommonweightError(f"{where}: this manifest was altered; it does not have the content its name says")
        try:
            raw = json.loads(text)
            if isinstance(raw["commons"], int) and raw["commons"] > FORMAT:
                raise CommonweightError(
                    f"{where}: manifest format {raw['commons']}; this version reads up to {FORMAT}: "
                    "upgrade commonweight"
                )
            old = raw["commons"] == 1
            made = None if old else blueprint(raw["blueprint"])
            tenant = raw["tenant"] if made is None else {**made.tenant, **raw["tenant"]}
            pools = {k: Ref.checked(*r) for k, r in raw["pools"].items()} if made is None else _pools(made, raw)
            out = cls(safe(raw["name"]), raw["version"], tenant, pools, tuple(raw["parents"]), raw["created"])
            if (out.name, out.version) != entry[1:3]:
                raise ValueError(f"it calls itself {out.label}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            if isinstance(e, CommonweightError):
                raise
            raise CommonweightError(f"{where}: not a manifest that commonweight wrote ({e})") from e
        # what it was read from: the same bytes, without writing them again
        out.__dict__.update(text=text, blueprint=made)
        return out


def _pools(made: Blueprint, raw: Mapping[str, Any]) -> dict[str, Ref]:
    """Those of the blueprint, and the tenant's own: one after another in its pack, but for those that name a file."""
    pools, at = dict(made.pools), 0
    for name, (dtype, shape, *file) in zip(made.own, raw["own"], strict=True):
        pools[name] = Ref.checked(file[0] if file else raw["pack"], dtype, shape, None if file else at)
        at += 0 if file else pools[name].numbers
    return dict(sorted(pools.items()))


def digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=8).hexdigest()
