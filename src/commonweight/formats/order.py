"""In which order a tenant's sites stand in the model, and of what kind they are: with it a plan needs no model.

Two fields of the header, beside ``sites``, whose keys (sorted) are numbered from 0:

- ``order``: [[[keys' numbers, ...], "0-5"], ...]: those sites for layer 0, then for layer 1, ..., then the next entry.
- ``kinds``: one letter a key: l(inear), e(xpert), r(outer), c(onv), v (embedding: a vocabulary), n(orm), p(arameter),
  b(lock), a(ttention), f(fn), k (prefix), d (aside), s(oft prompt), i (positions), h (state), t(runk) or q(ueries); a
  capital where the site has a bias, of a block where a token sees those before it alone, and of a trunk that ends
  before the last block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..core import Site
from . import native

_LETTERS = {"linear": "l", "norm": "n", "block": "b", "expert": "e", "router": "r", "conv": "c",
            "embedding": "v", "parameter": "p", "attention": "a", "ffn": "f", "prefix": "k", "aside": "d",
            "prompt": "s", "positions": "i", "state": "h", "trunk": "t", "queries": "q"}  # fmt: skip
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}
_ROLES = {"block": ("", "causal"), "trunk": ("whole", "early")}  # of these a capital tells the role; they have no bias


class Place(NamedTuple):
    """What `sites` does not say of one site."""

    name: str
    kind: str
    bias: bool
    role: str | None = None  # None: its name tells


def site_fields(sites: Sequence[Site]) -> dict[str, Any]:
    """The header's fields about sites in the model's order: ``sites``, ``order``, ``kinds``.

    The last two are left out where sites of one key differ in kind or bias; such a file needs its model to be read.
    """
    packed = native.pack_sites(list(sites))
    keys = {k: i for i, k in enumerate(sorted(packed))}
    homes = {name: (keys[k], n) for k, entry in packed.items() for name, n in _names(k, entry[2])}
    letters: dict[int, str] = {}
    for s in sites:
        capital = s.role == _ROLES[s.kind][1] if s.kind in _ROLES else s.bias
        letter = _LETTERS[s.kind].upper() if capital else _LETTERS[s.kind]
        if letters.setdefault(homes[s.name][0], letter) != letter:
            return {"sites": packed}
    runs: list[tuple[list[int], list[int | None]]] = []  # keys, and the layers that have them in turn
    for key, number in (homes[s.name] for s in sites):
        if runs and runs[-1][1] == [number]:
            runs[-1][0].append(key)
            continue
        _join(runs)
        runs.append(([key], [number]))
    _join(runs)
    order = [[ks, native.pack_numbers([n for n in ns if n is not None])] for ks, ns in runs]
    return {"sites": packed, "order": order, "kinds": "".join(letters[i] for i in range(len(keys)))}


def _join(runs: list[tuple[list[int], list[int | None]]]) -> None:
    """The last run becomes a part of the one before it where it goes on with it."""
    if len(runs) > 1 and runs[-2][0] == runs[-1][0]:
        last, new = runs[-2][1][-1], runs[-1][1][0]
        if last is not None and new is not None and last < new:
            runs.pop()
            runs[-1][1].append(new)


def places(where: str, header: Mapping[str, Any]) -> list[Place] | None:
    """Every site in the model's order; None for a file that does not say it.

    Raises: CommonweightError, with `where`, for what `site_fields` does not write.
    """
    order, kinds = header.get("order"), header.get("kinds")
    if order is None and kinds is None:
        return None
    keys = sorted(header["sites"])
    if not isinstance(kinds, str) or len(kinds) != len(keys) or not {*kinds.lower()} <= {*_KINDS}:
        raise native.damaged(where, f"'kinds' is {kinds!r}")
    out: list[Place] = []
    for entry in order if isinstance(order, list) else [order]:
        found = entry if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list) else [[None], ""]
        numbers = native.unpack_numbers(found[1])
        if numbers is None or not all(native.whole(k) and k < len(keys) for k in found[0]):
            raise native.damaged(where, f"'order' has {entry!r}")
        for n in numbers or [None]:
            for k in found[0]:
                name = keys[k] if n is None else keys[k].replace("{}", str(n), 1)
                out.append(_place(name, kinds[k]))
    if sorted(p.name for p in out) != sorted(native.unpack_sites(where, header["sites"])):
        raise native.damaged(where, "'order' has not the names of 'sites'")
    return out


def _place(name: str, letter: str) -> Place:
    kind, capital = _KINDS[letter.lower()], letter.isupper()
    return Place(name, kind, False, _ROLES[kind][capital]) if kind in _ROLES else Place(name, kind, capital)


def _names(key: str, ranges: str) -> list[tuple[str, int | None]]:
    return [(key.replace("{}", str(n), 1), n) for n in native.unpack_numbers(ranges) or ()] or [(key, None)]
