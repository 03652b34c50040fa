"""Keys of a server: whose each is, what it may ask for, how often. A file holds their digests, never themselves.

A key is 256 random bits, so that SHA-256 is enough: there is nothing to guess, as there is with a password.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ...core import CommonweightError, safe
from ...formats import atomic
from .logs import say
from .quota import Bucket, Limit, limit

_FORM = "commonweight-keys"


@dataclass(frozen=True)
class Key:
    """tenants: which it may ask, "base" the plain model; None: all. requests, tokens: limits, tokens of prompts and
    answers together. admin: may change tenants."""

    name: str
    digest: str
    tenants: frozenset[str] | None = None
    requests: Limit | None = None
    tokens: Limit | None = None
    admin: bool = False
    created: str = ""

    def may(self, tenant: str) -> bool:
        return self.tenants is None or tenant in self.tenants

    @property
    def told(self) -> dict[str, Any]:
        """As the file has it."""
        found = {
            "name": self.name, "sha256": self.digest, "tenants": None if self.tenants is None else sorted(self.tenants),
            "limit": self.requests and self.requests.text, "token_limit": self.tokens and self.tokens.text,
            "admin": self.admin or None, "created": self.created or None,
        }  # fmt: skip
        return {k: v for k, v in found.items() if v is not None}


ANYBODY = Key("", "")


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def make(
    name: str,
    tenants: Sequence[str] | None = None,
    requests: str | None = None,
    tokens: str | None = None,
    admin: bool = False,
) -> tuple[str, Key]:
    """(a new key itself, what the file has of it). Raises: CommonweightError for a name or a limit that is none."""
    secret = "cw-" + secrets.token_urlsafe(32)
    limits = [None if text is None else limit(text) for text in (requests, tokens)]
    key = Key(
        safe(name), digest(secret), None if tenants is None else frozenset(tenants), limits[0], limits[1], admin,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return secret, key


def read(path: Path) -> list[Key]:
    """Raises: CommonweightError for a file that is missing or no file of keys, naming the entry."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as e:
        raise CommonweightError(
            f"{path}: {e.strerror}; `commonweight keys add NAME --file {path}` makes a file of keys"
        ) from e
    except ValueError as e:
        raise CommonweightError(f"{path}: no JSON ({e}); wanted a file that `commonweight keys add` wrote") from e
    entries = raw.get(_FORM) if isinstance(raw, dict) else None
    if not isinstance(entries, list):
        raise CommonweightError(f"{path}: no list {_FORM!r}; wanted a file that `commonweight keys add` wrote")
    found = [_key(path, i, e) for i, e in enumerate(entries)]
    names = [k.name for k in found]
    if twice := {n for n in names if names.count(n) > 1}:
        raise CommonweightError(f"{path}: the key {min(twice)!r} stands there twice")
    return found


def _key(path: Path, i: int, raw: Any) -> Key:
    where = f"{path}: key {i}"
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise CommonweightError(f"{where} has no name")
    where = f"{where} ({raw['name']})"
    known = {"name", "sha256", "tenants", "limit", "token_limit", "admin", "created"}
    if odd := sorted(raw.keys() - known):
        raise CommonweightError(f"{where} has {odd[0]!r}; known are {', '.join(sorted(known))}")
    hashed, tenants = raw.get("sha256"), raw.get("tenants")
    if not (isinstance(hashed, str) and len(hashed) == 64 and set(hashed) <= set("0123456789abcdef")):
        raise CommonweightError(f"{where}: sha256 is {hashed!r}; wanted 64 hex digits")
    if tenants is not None and not (isinstance(tenants, list) and all(isinstance(t, str) for t in tenants)):
        raise CommonweightError(f"{where}: tenants is {tenants!r}; wanted a list of names")
    if not isinstance(raw.get("admin", False), bool):
        raise CommonweightError(f"{where}: admin is {raw['admin']!r}; wanted true or false")
    limits = []
    for name in ("limit", "token_limit"):
        value = raw.get(name)
        if value is not None and not isinstance(value, str):
            raise CommonweightError(f"{where}: {name} is {value!r}; wanted text as 60/min")
        limits.append(None if value is None else limit(value))
    return Key(
        raw["name"], hashed, None if tenants is None else frozenset(tenants), limits[0], limits[1],
        raw.get("admin", False), str(raw.get("created", "")),
    )  # fmt: skip


def write(path: Path, keys: Sequence[Key]) -> None:
    """Whole or not at all, readable by its owner alone."""
    text = json.dumps({_FORM: [k.told for k in keys]}, indent=1, ensure_ascii=False) + "\n"
    atomic.write(path, text.encode("utf-8"))
    os.chmod(path, 0o600)


def add(path: Path, key: Key) -> None:
    """Raises: CommonweightError for a name that is there already."""
    there = read(path) if path.exists() else []
    if any(k.name == key.name for k in there):
        raise CommonweightError(f"{path}: there is a key {key.name!r} already; remove it first")
    write(path, [*there, key])


def remove(path: Path, name: str) -> None:
    there = read(path)
    left = [k for k in there if k.name != name]
    if len(left) == len(there):
        raise CommonweightError(f"{path}: no key {name!r}; there are {', '.join(k.name for k in there) or 'none'}")
    write(path, left)


class Guard(Protocol):
    """guarded: whether every request needs a key. administered: whether somebody has one that may change tenants."""

    @property
    def guarded(self) -> bool: ...
    @property
    def administered(self) -> bool: ...


class Keys:
    """The keys of a running server. A file that changes is read again at the next request, so that a key is withdrawn
    without a new start; one that cannot be read then leaves the keys as they were: the log says why, and `problem`."""

    def __init__(self, path: Path | None, admin: str | None = None):
        self.path = path
        self.problem: str | None = None
        self._admin = None if admin is None else Key("admin", digest(admin), admin=True)
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._keys = {} if path is None else {k.digest: k for k in read(path)}

    @property
    def guarded(self) -> bool:
        return self.path is not None

    @property
    def administered(self) -> bool:
        return self._admin is not None or any(k.admin for k in self._keys.values())

    def find(self, secret: str | None) -> Key | None:
        """Whose key it is; None where it is nobody's."""
        self._look()
        if secret is None:
            return None
        hashed = digest(secret)  # the digests are compared: how long that takes tells nothing of a key
        if self._admin is not None and secrets.compare_digest(hashed, self._admin.digest):
            return self._admin
        return self._keys.get(hashed)

    def buckets(self, key: Key) -> tuple[Bucket | None, Bucket | None]:
        """(of its requests, of its tokens)."""
        return self._bucket(key, "requests", key.requests), self._bucket(key, "tokens", key.tokens)

    def _bucket(self, key: Key, what: str, most: Limit | None) -> Bucket | None:
        if most is None:
            return None
        with self._lock:
            found = self._buckets.get((key.digest, what))
            if found is None or found.limit != most:
                found = self._buckets[key.digest, what] = Bucket(most)
            return found

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = None if self.path is None else os.stat(self.path)
        except OSError:
            return None
        return None if stat is None else (stat.st_mtime_ns, stat.st_size)

    def _look(self) -> None:
        if self.path is None or (stamp := self._stamp()) == self._seen:
            return
        with self._lock:
            self._seen = stamp
            try:
                self._keys = {k.digest: k for k in read(self.path)}
                self.problem = None
            except CommonweightError as e:  # a key that was to be withdrawn may still be one
                self.problem = str(e)
                say("keys", 40, error=f"{e}; the keys stay as they were")
