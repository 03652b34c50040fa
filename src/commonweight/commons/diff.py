"""What two tenants of a store have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

from .manifest import Manifest


class Diff(NamedTuple):
    """same: tensors that are one pool. changed: of one name, of other content. only_a, only_b: the rest.

    common_bytes: of the pools that both read, under whatever name. about: {field: (in a, in b)} where the headers
    differ.
    """

    a: str
    b: str
    same: tuple[str, ...]
    changed: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    common_bytes: int
    about: dict[str, tuple[Any, Any]]


def diff(a: Manifest, b: Manifest) -> Diff:
    both = [k for k in a.pools if k in b.pools]
    common = {r.hash: r.nbytes for r in a.pools.values()}.items() & {r.hash: r.nbytes for r in b.pools.values()}.items()
    return Diff(
        a.label,
        b.label,
        tuple(k for k in both if a.pools[k].hash == b.pools[k].hash),
        tuple(k for k in both if a.pools[k].hash != b.pools[k].hash),
        tuple(k for k in a.pools if k not in b.pools),
        tuple(k for k in b.pools if k not in a.pools),
        sum(n for _, n in common),
        {k: (x, y) for k, x, y in _fields(a.tenant, b.tenant) if x != y},
    )


def _fields(a: Any, b: Any, before: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves of both, by dotted name; None where one side has none."""
    out = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            out += _fields(x, y, f"{before}{key}.")
        else:
            out.append((f"{before}{key}", x, y))
    return out
