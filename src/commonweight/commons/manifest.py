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
from . import pool

FORMAT = 1
_FILE = re.compile(r"(?P<name>[^@/\\]+)@(?P<version>[1-9][0-9]{0,8})\.(?P<digest>[0-9a-f]{16})\.json")


class Ref(NamedTuple):
    """A pool as a manifest names it."""

    hash: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the pool's file."""
        return pool.size(self.dtype, self.shape)


class Entry(NamedTuple):
    """What the name of a manifest's file says."""

    file: str
    name: str
    version: int
    digest: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

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

    @cached_property
    def text(self) -> bytes:
        """The file's bytes: one line of JSON, keys sorted."""
        whole = {
            "commons": FORMAT, "name": self.name, "version": self.version, "tenant": self.tenant,
            "pools": self.pools, "parents": self.parents, "created": self.created,
        }  # fmt: skip
        try:
            return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as e:
            raise CommonweightError(f"{self.name}: metrics that are no JSON: {e}; give finite numbers") from e

    @property
    def file(self) -> str:
        return f"{self.label}.{digest(self.text)}.json"

    @classmethod
    def read(cls, where: str, entry: Entry, text: bytes) -> Manifest:
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
            pools = {k: Ref(h, d, tuple(s)) for k, (h, d, s) in raw["pools"].items()}
            out = cls(safe(raw["name"]), raw["version"], raw["tenant"], pools, tuple(raw["parents"]), raw["created"])
            wrong = [r for r in pools.values() if not pool.HASH.fullmatch(r.hash) or r.dtype not in pool.DTYPES]
            if wrong or (out.name, out.version) != entry[1:3]:
                raise ValueError(wrong[0] if wrong else f"it calls itself {out.label}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            if isinstance(e, CommonweightError):
                raise
            raise CommonweightError(f"{where}: not a manifest that commonweight wrote ({e})") from e
        out.__dict__["text"] = text  # what it was read from: the same bytes, without writing them again
        return out


def digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=8).hexdigest()
