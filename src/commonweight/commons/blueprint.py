"""A blueprint: what the manifests of many tenants have in common, written once.

Method, config, sites, base, codec, the common and its pools: for the tenants of one common all of this is the same, and
most of what a manifest would say. Its file, ``blueprints/<hash>.json``, is named by its content, as a pool is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from ..formats import atomic
from . import pool
from .pool import Gone, Ref

FOLDER, CHECK = "blueprints", "~check"
Get = Callable[[str], "Blueprint"]


class Lost(CommonweightError):
    """A blueprint that was altered: what its tenants are is not known. hash: which one."""

    def __init__(self, what: str, hash: str):
        super().__init__(what)
        self.hash = hash


class Missing(Gone):
    """A blueprint that is not there."""

    def __init__(self, what: str, hash: str):
        super().__init__(what)
        self.hash = hash


@dataclass(frozen=True)
class Blueprint:
    """hash: BLAKE2b-256 of `text`, the file's bytes. tenant: the header of a tenant's file but for what is each
    tenant's: labels, metrics, seed and the plan's digest. pools: tensor -> its pool, of those that others read too.
    own: the tensors that each tenant has for itself."""

    hash: str
    text: bytes
    tenant: Mapping[str, Any]
    pools: Mapping[str, Ref]
    own: tuple[str, ...]

    @classmethod
    def of(cls, tenant: Mapping[str, Any], pools: Mapping[str, Ref], own: tuple[str, ...]) -> Blueprint:
        every = {**{k: r[:3] for k, r in pools.items()}, **dict.fromkeys(own)}
        text = json.dumps({"pools": every, "tenant": tenant}, sort_keys=True, separators=(",", ":")).encode()
        return cls(address(text), text, tenant, pools, tuple(sorted(own)))

    @classmethod
    def read(cls, where: str, hash: str, text: bytes) -> Blueprint:
        """From the file's bytes. Raises: Lost when it was altered."""
        if address(text) != hash:
            raise Lost(f"{where}: this blueprint was altered; it does not have the content its name says", hash)
        try:
            raw = json.loads(text)
            pools = {k: None if r is None else Ref.checked(*r) for k, r in raw["pools"].items()}
            tenant = raw["tenant"]
            own = tuple(k for k, r in pools.items() if r is None)
            if own:  # as the header of the tenant's file says it
                tenant = {**tenant, "own": True if not {*pools} - {*own, CHECK} else [*own]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise Lost(f"{where}: not a blueprint that commonweight wrote ({e})", hash) from e
        return cls(hash, text, tenant, {k: r for k, r in pools.items() if r is not None}, own)

    def write(self, root: Path) -> None:
        """Unless it is there already, bit for bit; mends one that is damaged."""
        at = path(root, self.hash)
        try:
            if at.read_bytes() == self.text:
                return
        except OSError:
            pass
        if not at.parent.is_dir():
            at.parent.mkdir(exist_ok=True)
            atomic.sync(root)
        atomic.write(at, self.text)


def address(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=32).hexdigest()


def path(root: Path, hash: str) -> Path:
    if not isinstance(hash, str) or not pool.HASH.fullmatch(hash):
        raise CommonweightError(f"{hash!r} is not a blueprint's hash; wanted 64 hex digits")
    return root / FOLDER / f"{hash}.json"


def open_all(root: Path) -> Get:
    """Hash -> blueprint; each is read once. Raises: Missing when it is not there, Lost when it was altered."""
    known: dict[str, Blueprint] = {}

    def get(hash: str) -> Blueprint:
        if hash not in known:
            at = path(root, hash)
            try:
                known[hash] = Blueprint.read(str(at), hash, at.read_bytes())
            except FileNotFoundError as e:
                raise Missing(f"{at}: this blueprint is missing", hash) from e
            except OSError as e:
                raise Lost(f"{at}: cannot be read ({e.strerror})", hash) from e
        return known[hash]

    return get
